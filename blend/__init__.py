"""Blended pruning criteria, searched for your network."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blend.blended import BlendedCriterion
    from blend.pruned.saved import load_pruned
    from blend.pruning import recalibrate
    from blend.task import FineTuning, Task

__version__ = "0.1.0"
__all__ = ["BlendedCriterion", "FineTuning", "Task", "load_pruned", "recalibrate"]

_HOMES = {
    "BlendedCriterion": "blend.blended",
    "FineTuning": "blend.task",
    "Task": "blend.task",
    "load_pruned": "blend.pruned.saved",
    "recalibrate": "blend.pruning",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is asked for, because torch takes seconds to import."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'blend' has no attribute {name!r}")
