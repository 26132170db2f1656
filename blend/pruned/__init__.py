"""Pruned networks that can be shipped: which channels go, what is left of the network, and how it is saved."""
