"""Putting a search's result into a file."""

from __future__ import annotations

from typing import Any

from blend.blended import BlendedCriterion, BlendedGroup, NetworkIdentity, Spokesman, layer_names, library_versions
from blend.problem import Problem
from criteria import CRITERIA
from search.archive import Evaluation


def blended_criterion(problem: Problem, best: Evaluation, result: dict[str, Any]) -> BlendedCriterion:
    """Puts the best candidate's formula, its frozen scores and the evidence together."""
    config = problem.config
    formula = problem.encoding.decode(best.genome or ())
    scores = problem.blender.scores(formula)
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
        criteria=tuple({"name": c.name, "family": c.family, "reference": c.reference} for c in records),
        network=NetworkIdentity(layout=identity["layout"], weights=identity["weights"], shapes=problem.graph.shapes),
        task={
            "name": problem.task.name,
            "options": config.options,
            "ignore": [*problem.task.ignore, *config.ignore],
            "splits": {split.name: {"examples": len(split), "hash": identity[split.name]} for split in problem.splits},
        },
        seed=config.seed,
        metrics=result,
        versions=library_versions(),
    )
