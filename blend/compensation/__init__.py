"""Weights of what reads removed channels, corrected by least squares on unlabelled images (Xie et al., 2021)."""

from blend.compensation.correction import GRADES, Compensation, Corrected, compensation, gathered

__all__ = ["GRADES", "Compensation", "Corrected", "compensation", "gathered"]
