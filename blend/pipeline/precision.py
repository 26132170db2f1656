"""Judging candidates in half precision, where that ranks them as full precision does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from blend.budget import keep_mask
from blend.defaults import CPU
from blend.evaluation import HeldoutEvaluation, pack
from blend.problem import Problem
from blend.progress import progress, say
from search.archive import Evaluation
from search.executor import Executor, Failure

MASKS = 24
"""Random masks that both precisions are held against each other on."""
AGREEMENT = 0.998
"""Spearman rank correlation that half precision has to reach."""
WORTHWHILE = 200
"""Evaluations below which the comparison would cost more than half precision saves."""
FINALISTS = 8
"""Of each search, judged once more in full precision before the best is chosen."""


def chosen_precision(
    problem: Problem, evaluate: HeldoutEvaluation, executor: Executor, check: Callable[[], None]
) -> dict[str, Any]:
    """What the layers of a run's candidates are to compute in, as the run keeps it.

    Args:
        problem: What is searched.
        evaluate: Judges in full precision.
        executor: Where.
        check: Called between two candidates; raises to stop.

    Returns:
        ``precision``, and ``precision-agreement`` where both were compared.
    """
    config = problem.config
    if config.precision != "auto":
        return {"precision": config.precision}
    if config.evaluations < WORTHWHILE or not is_possible(problem.task.model, config.device):
        return {"precision": "fp32"}
    return _compared(problem, evaluate, executor, check)


def _compared(
    problem: Problem, evaluate: HeldoutEvaluation, executor: Executor, check: Callable[[], None]
) -> dict[str, Any]:
    masks = trial_masks(problem)
    answers: list[list[Any]] = []
    with progress("comparing fp32 and bf16", 2 * len(masks)) as bar:
        for half in (False, True):
            side: list[Any] = [None] * len(masks)
            for index, answer in executor.run(replace(evaluate, half=half), masks):
                side[index] = answer
                bar.advance(1)
                check()
            answers.append(side)
    correlation = agreement(*answers)
    chosen = "bf16" if correlation >= AGREEMENT else "fp32"
    say(f"note: the search computes in {chosen}: bf16 ranks {MASKS} random masks like fp32 to {correlation:.4f}")
    return {"precision": chosen, "precision-agreement": correlation}


def is_possible(model: nn.Module, device: str = CPU) -> bool:
    """Whether a device computes with bfloat16 faster than with float32, and the network is in float32."""
    if device.startswith("cuda"):
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device == CPU and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return bool(fast) and {p.dtype for p in model.parameters() if p.is_floating_point()} == {torch.float32}


def trial_masks(problem: Problem) -> list[bytes]:
    """Random candidates of the reduction that is searched."""
    random = np.random.default_rng(problem.config.seed)
    scores = ({g.name: random.random(g.size) for g in problem.graph.groups} for _ in range(MASKS))
    wanted = problem.config.reduction
    return [pack(keep_mask(problem.graph, s, wanted, problem.cost, problem.floor)) for s in scores]


def agreement(full: Sequence[Mapping[str, Any] | Failure], half: Sequence[Mapping[str, Any] | Failure]) -> float:
    """Spearman rank correlation of the fitnesses of the same candidates; -1 where it cannot be told."""
    answers = [*full, *half]
    if any(isinstance(answer, Failure) for answer in answers):
        return -1.0
    one, two = ([float(answer["fitness"]) for answer in side] for side in (full, half))  # type: ignore[index]
    correlation = float(stats.spearmanr(one, two).statistic) if np.ptp(one) and np.ptp(two) else np.nan
    return correlation if np.isfinite(correlation) else -1.0


def finalists(history: Sequence[Evaluation]) -> list[Evaluation]:
    """The fittest of a search, different from one another, that have been judged to the end; of equals the first."""
    judged = [e for e in history if e.error is None and not e.given_up]
    ranked: dict[bytes, Evaluation] = {}
    for evaluation in sorted(judged, key=lambda e: (-e.fitness, e.number)):
        ranked.setdefault(evaluation.phenotype, evaluation)
    return list(ranked.values())[:FINALISTS]
