"""Whether a run that goes on still has the task that it began with, on the kind of machine that it began on."""

from __future__ import annotations

import math
from typing import Any

from blend.checking import first_judgement
from blend.errors import InputError
from blend.evaluation.executors import deciding_versions
from blend.problem import Problem
from blend.progress import say
from blend.runs import Run
from search.machine import kind

SAME = 1e-3
"""Relative difference of a loss or metric up to which another kind of processor may be the reason."""


def marks(problem: Problem) -> dict[str, Any]:
    """What a run keeps to know its task by: hashes of network and data, and what loss and metric say of them."""
    judged = first_judgement(problem.task, problem.splits.heldout)
    return {"identity": problem.identity, "judgement": judged, "machine": _machine()}


def warn_of_another_machine(run: Run) -> None:
    """Says if the rest of a run may have other last digits than it would have had where it began."""
    here = _machine()
    before = run.get("machine", here)  # runs of earlier versions have none
    if changes := [f"{here[what]}, not {before.get(what)}" for what in here if here[what] != before.get(what)]:
        say(
            f"note: run '{run.name}' did not begin with this: {'; '.join(changes)}; results may have other last digits "
            "now, so that the run may end otherwise than it would have"
        )


def _machine() -> dict[str, str]:
    """By what it is called: what decides over the last digits of a result."""
    return {"processor": kind(), **{name: f"{name} {found}" for name, found in deciding_versions().items()}}


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
