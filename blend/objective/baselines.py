"""What a blend has to beat, at the same reduction and with the same recalibration: single criteria and controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from blend.blended.formula import Blender, GroupFormula, normalised, reproducing_offsets
from blend.budget import CostModel, Scores, is_reachable, keep_mask, uniform
from blend.objective.encoding import Clusters, Encoding
from criteria.graph import ChannelGraph, Keep
from criteria.scores import ScoreTable

RANDOM_MASKS = 5
PROTECTED = 1.0  # the offset of a group that a criterion cannot rank: it stays whole


@dataclass(frozen=True)
class Baseline:
    """One opponent of the blend.

    Attributes:
        name: For example ``l1`` or ``uniform-blend``.
        kind: ``single``, ``uniform_blend`` or ``random_mask``.
        allocation: ``uniform`` or ``global``.
        masks: Its keep masks; more than one where the mean is reported.
        genome: The same mask as a member of the first population, where the encoding can express it.
        note: What the reader has to know, for example which groups the criterion could not rank.
    """

    name: str
    kind: str
    allocation: str
    masks: tuple[Keep, ...]
    genome: tuple[float, ...] | None = None
    note: str = ""


UNRANKED = {
    "uniform": "cannot rank enough groups to reach the reduction",
    "global": "cannot rank all groups, and so not against each other",
}
"""For each allocation, why a criterion cannot be compared with the others there."""


@dataclass(frozen=True)
class Contest:
    """Everything that the baselines of one run have in common.

    Attributes:
        transform: What happens to a single criterion's scores before its global ranking.
    """

    graph: ChannelGraph
    table: ScoreTable
    clusters: Clusters
    encoding: Encoding
    blender: Blender
    cost: CostModel
    floor: Mapping[str, int]
    reduction: float
    allocations: tuple[str, ...]
    seed: int
    transform: Callable[[Scores], Scores] = lambda scores: scores

    def baselines(self) -> list[Baseline]:
        """Every single criterion and the uniform blend, under each allocation, and the mean of random masks."""
        blends = [self.uniform_blend(how) for how in self.allocations]
        return [*self.singles(), *blends, self.random_masks()]

    def singles(self) -> list[Baseline]:
        """Every single criterion under each allocation, as far as it can be compared with the others."""
        singles = [self.single(name, how) for how in self.allocations for name in self.table.criteria]
        return [single for single in singles if single is not None]

    def single(self, criterion: str, allocation: str) -> Baseline | None:
        """None where the groups that a criterion cannot rank keep it from being compared with the others.

        Raises:
            CriterionValueError: Its scores cannot be transformed.
        """
        missing = sorted(group for group in self.clusters if self.table.get(criterion, group) is None)
        if missing and (allocation == "global" or len(missing) == len(self.clusters)):
            return None  # its scores do not reach all groups, so they cannot be ranked against each other
        note = f"cannot rank {', '.join(missing)}: left whole" if missing else ""
        scores = {group: raw for group in self.clusters if (raw := self.table.get(criterion, group)) is not None}
        factors = {group: {criterion: 1.0} if group in scores else {} for group in self.clusters}
        if missing and not is_reachable(self.graph, scores, self.reduction, self.cost, self.floor):
            return None
        if allocation == "global":
            return self._baseline(criterion, "single", allocation, self.transform(scores), factors, note)
        return self._baseline(criterion, "single", allocation, scores, factors, note)

    def uniform_blend(self, allocation: str) -> Baseline:
        """All clusters speak with the same factor."""
        factors = self.encoding.uniform_factors()
        scores = {group: self.blender.blended(group, GroupFormula(normalised(part))) for group, part in factors.items()}
        return self._baseline("uniform-blend", "uniform_blend", allocation, scores, factors, "")

    def _baseline(
        self,
        name: str,
        kind: str,
        allocation: str,
        scores: Scores,
        factors: Mapping[str, Mapping[str, float]],
        note: str,
    ) -> Baseline:
        """The scores decide how many channels each group gives; which ones, their formula, as it does for a genome."""
        if allocation == "uniform":
            offsets = {group: 0.0 if group in scores else PROTECTED for group in self.clusters}
        else:
            offsets = reproducing_offsets(self.graph, self._keep(scores), self._level)
        formula = {group: GroupFormula(normalised(factors[group]), offsets[group]) for group in scores}
        keep = self._keep(self.blender.scores(formula))
        exact = self.encoding.offsets or (allocation == "uniform" and not note)
        genome = self.encoding.encode(factors, offsets) if exact else None
        return Baseline(name, kind, allocation, (keep,), tuple(genome) if genome else None, note)

    @cached_property
    def _level(self) -> float:
        """Where uniform allocation, with all its offsets zero, cuts the ranking: the share that each group gives."""
        scores = {group: self.blender.normalised_part(self.table.usable(group)[0], group) for group in self.clusters}
        return float(np.mean([np.mean(~part) for _, part in self.graph.split(self._keep(uniform(scores)))]))

    def _keep(self, scores: Scores) -> Keep:
        return keep_mask(self.graph, scores, self.reduction, self.cost, self.floor)

    def random_masks(self, count: int = RANDOM_MASKS) -> Baseline:
        """Chance alone, every group giving the same share; more masks begin with the same ones."""
        rng = np.random.default_rng([self.seed, 5])
        masks = [self._keep(uniform(self._random_scores(rng))) for _ in range(count)]
        return Baseline("random-mask", "random_mask", "uniform", tuple(masks), None, f"mean of {count}")

    def _random_scores(self, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
        return {group.name: rng.random(group.size) for group in self.graph.groups if group.name in self.clusters}
