"""Measurements, not tests: ratios taken side by side in one run, as a table and as JSON. ``make bench`` runs them."""
