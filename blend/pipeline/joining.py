"""How many batches of a search's candidates go through the network as one."""

from __future__ import annotations

from typing import Any

from blend.evaluation import JoiningTrial, Workspace
from blend.pipeline.precision import WORTHWHILE, trial_masks
from blend.problem import Problem
from blend.progress import say
from search.executor import Executor, Failure


def chosen_joining(problem: Problem, workspace: Workspace, half: bool, executor: Executor) -> dict[str, Any]:
    """What is fastest where candidates are judged, as the run keeps it: ``joined-batches``.

    Args:
        problem: What is searched.
        workspace: Where workers find it.
        half: Whether candidates are judged in half precision.
        executor: One of its workers tries it.
    """
    if problem.config.evaluations < WORTHWHILE:
        return {"joined-batches": 1}
    [(_, answer)] = executor.run(JoiningTrial(workspace, half), trial_masks(problem)[:1])
    if isinstance(answer, Failure):
        return {"joined-batches": 1}
    joined, seconds = answer
    if joined > 1:
        images, share = joined * problem.config.batch_size, seconds[joined] / seconds[1]
        say(f"note: up to {images} images go through the network at once, which takes {share:.2f} of the time")
    return {"joined-batches": joined}
