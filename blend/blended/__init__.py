"""The blended criterion: its formula, and the file that it is exported as."""

from blend.blended.criterion import (
    BlendedCriterion,
    BlendedGroup,
    Correction,
    CriterionRecord,
    NotCompensatedWarning,
    Spokesman,
    json_schema,
    layer_names,
    library_versions,
)

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
