"""Blended pruning criteria, searched for your network."""

__version__ = "0.1.0"
