"""Whether a run that goes on still has the task that it began with, on the kind of machine that it began on."""

from __future__ import annotations

import math
from typing import Any

import torch

from blend import __version__
from blend.checking import first_judgement
from blend.errors import InputError
from blend.evaluation.workspace import SAME
from blend.problem import Problem
from blend.progress import say
from blend.runs import Run
from search.machine import kind


def marks(problem: Problem) -> dict[str, Any]:
    """What a run keeps to know its task by: hashes of network and data, and what loss and metric say of them."""
    judged = first_judgement(problem.task, problem.splits.heldout)
    return {"identity": problem.identity, "judgement": judged, "machine": _machine(problem.config.device)}


def warn_of_another_machine(run: Run, device: str) -> None:
    """Says if the rest of a run may have other last digits than it would have had where it began."""
    here = _machine(device)
    before = run.get("machine", {})  # runs of earlier versions have none
    changes = [f"{here[what]}, not {before[what]}" for what in here if here[what] != before.get(what, here[what])]
    if changes:
        say(
            f"note: run '{run.name}' did not begin with this: {'; '.join(changes)}; results may have other last digits "
            "now, so that the run may end otherwise than it would have"
        )


def _machine(device: str) -> dict[str, str]:
    """By what it is called: what decides over the last digits of a result."""
    found = {"processor": kind(), "blend": f"blend {__version__}", "torch": f"torch {torch.__version__}"}
    if device.startswith("cuda"):
        found["accelerator"] = f"{torch.cuda.get_device_name(device)} with CUDA {torch.version.cuda}"
    return found


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
