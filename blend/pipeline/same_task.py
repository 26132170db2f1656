"""Whether a run that goes on still has the task that it began with."""

from __future__ import annotations

import math
from typing import Any

from blend.checking import first_judgement
from blend.errors import InputError
from blend.problem import Problem
from blend.runs import Run

SAME = 1e-3
"""Relative difference of a loss or metric up to which another kind of processor may be the reason."""


def marks(problem: Problem) -> dict[str, Any]:
    """What a run keeps to know its task by: hashes of network and data, and what loss and metric say of them."""
    return {"identity": problem.identity, "judgement": first_judgement(problem.task, problem.splits.heldout)}


def check_same_task(run: Run, problem: Problem) -> None:
    """Refuses another network, other data, and what judges them otherwise: what was found would not compare.

    Raises:
        InputError: Saying what has changed.
    """
    refusal = f"run '{run.name}' cannot go on: its task's"
    before = run.get("identity")
    for what, digest in problem.identity.items():
        if before[what] != digest:
            raise InputError(f"{refusal} {what} must be as at the start")
    judged = first_judgement(problem.task, problem.splits.heldout)
    before = run.get("judgement", judged)  # runs of earlier versions have none
    for what, value in judged.items():
        if not math.isclose(value, before[what], rel_tol=SAME, abs_tol=SAME**2):
            raise InputError(
                f"{refusal} {what} must be as at the start, when it was {before[what]:.6g} on the first held-out "
                f"batch, got {value:.6g}"
            )
