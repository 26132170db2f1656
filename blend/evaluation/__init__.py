"""Judging candidates: what a pruned network is worth, in which process, and when to stop asking."""

from blend.evaluation.judge import Judge, Settings, in_full_precision, pack, unpack
from blend.evaluation.workspace import HeldoutEvaluation, TestEvaluation, Workspace

__all__ = [
    "HeldoutEvaluation",
    "Judge",
    "Settings",
    "TestEvaluation",
    "Workspace",
    "in_full_precision",
    "pack",
    "unpack",
]
