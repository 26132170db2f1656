"""Blended criteria in other people's pruners: one file for each, in which the foreign import stays."""
