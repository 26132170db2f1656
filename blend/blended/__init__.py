"""The blended criterion: its formula, and the file that it is exported as."""

from blend.blended.criterion import BlendedCriterion, NotCompensatedWarning, json_schema, layer_names, library_versions
from blend.blended.records import BlendedGroup, Correction, CriterionRecord, Spokesman

__all__ = [
    "BlendedCriterion",
    "BlendedGroup",
    "Correction",
    "CriterionRecord",
    "NotCompensatedWarning",
    "Spokesman",
    "json_schema",
    "layer_names",
    "library_versions",
]
