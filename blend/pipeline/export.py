"""Putting a search's result into a file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from blend.blended import (
    BlendedCriterion,
    BlendedGroup,
    Correction,
    CriterionRecord,
    Spokesman,
    layer_names,
    library_versions,
)
from blend.blended.formula import Formula
from blend.identity import NetworkIdentity
from blend.problem import Problem
from criteria import CRITERIA


def blended_criterion(
    problem: Problem, formula: Formula, polished: Formula | None, result: dict[str, Any]
) -> BlendedCriterion:
    """Puts the best blend's formula, the frozen scores and the evidence together.

    Args:
        problem: What was searched.
        formula: The best blend.
        polished: The same with the scores that polishing has found, if it has.
        result: The evidence.
    """
    config = problem.config
    own = problem.blender.scores(formula)
    scores = own if polished is None else problem.blender.scores(polished)
    layers = layer_names(problem.graph)
    groups = tuple(
        BlendedGroup(
            name=name,
            size=len(scores[name]),
            layers=layers[name],
            clusters=tuple(c.criteria for c in problem.clusters[name]),
            candidates=tuple(Spokesman(criterion=criterion, factor=factor) for criterion, factor in part.factors),
            offset=part.offset,
            scores=tuple(scores[name].tolist()),
            corrections=_corrections(own[name], scores[name]),
        )
        for name, part in formula.items()
    )
    used = sorted({candidate.criterion for group in groups for candidate in group.candidates})
    records = [CRITERIA.get(name) for name in used]
    identity = problem.identity
    return BlendedCriterion(
        groups=groups,
        normalisation=config.normalisation,
        allocation=config.allocation,
        reduction=config.reduction,
        cost=config.cost,
        floor=config.floor,
        calibration_loss=config.calibration_loss,
        compensate=config.compensate,
        criteria=tuple(
            CriterionRecord(name=c.name, family=c.family, reference=c.reference, parameters=dict(c.parameters))
            for c in records
        ),
        network=NetworkIdentity(layout=identity["layout"], weights=identity["weights"], shapes=problem.graph.shapes),
        task={
            "name": problem.task.name,
            "options": config.options,
            "ignore": [*problem.task.ignore, *config.ignore],
            "splits": {split.name: {"examples": len(split), "hash": identity[split.name]} for split in problem.splits},
        },
        seed=config.seed,
        metrics=result,
        versions=library_versions(records),
    )


def _corrections(own: NDArray[np.float64], scores: NDArray[np.float64]) -> tuple[Correction, ...]:
    changed = np.flatnonzero(own != scores).tolist()
    return tuple(Correction(channel=c, own=own[c], delta=scores[c] - own[c]) for c in changed)
