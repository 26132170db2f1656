"""Genomes of blends: what evolution varies, and the formula that a genome stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from blend.blended.formula import Blender, Formula, GroupFormula, normalised
from blend.config import SearchConfig
from blend.errors import InputError
from criteria import CRITERIA
from criteria.clustering import Cluster
from criteria.scores import ScoreTable, normalise
from search.space import Choice, Gene, Real, Space

Clusters = Mapping[str, Sequence[Cluster]]

Factors = Mapping[str, Mapping[str, float]]

FACTOR = Real(0.0, 1.0, sigma=0.25)
SIGNED = Real(-1.0, 1.0, sigma=0.25)
OFFSET = Real(-1.0, 1.0, sigma=0.2, spread=0.25)
SCORE = Real(-1.0, 2.0, sigma=0.2)  # a rank in (0, 1) and an offset


class Genomes(Protocol):
    """A search space and the formulas that its genomes stand for."""

    @property
    def space(self) -> Space:
        """What is searched."""
        ...

    def decode(self, genome: Sequence[float]) -> Formula:
        """The formula of a genome."""
        ...


class Encoding(Genomes, Protocol):
    """Genomes in which blends can be written down."""

    offsets: bool

    def encode(self, factors: Factors, offsets: Mapping[str, float]) -> list[float] | None:
        """The genome nearest to factors (group to criterion to factor) and offsets (group to offset); None if far."""
        ...

    def uniform_factors(self) -> dict[str, dict[str, float]]:
        """Per group, the criteria of the uniform blend, each with factor 1: what one has before any search."""
        ...


class ClusterEncoding:
    """Per group and cluster, which criterion speaks and its factor; per group, one offset.

    Args:
        clusters: Clusters of every group that has usable criteria.
        offsets: False for uniform allocation, where every group gives the same share.
    """

    def __init__(self, clusters: Clusters, offsets: bool = True) -> None:
        self.clusters = clusters
        self.offsets = offsets
        self.space = Space(tuple(self._block(group) for group in clusters.values()))

    def decode(self, genome: Sequence[float]) -> Formula:
        """The formula of a genome: block by block, cluster by cluster."""
        formula = {}
        genes = iter(genome)
        for group, clusters in self.clusters.items():
            factors = {}
            for cluster in clusters:
                speaker = int(next(genes)) if len(cluster.criteria) > 1 else 0
                factors[cluster.criteria[speaker]] = next(genes)
            formula[group] = GroupFormula(normalised(factors), next(genes) if self.offsets else 0.0)
        return formula

    def encode(self, factors: Factors, offsets: Mapping[str, float]) -> list[float]:
        """In each cluster the criterion with the largest factor speaks; the others of the cluster are dropped."""
        genome: list[float] = []
        for group, clusters in self.clusters.items():
            for cluster in clusters:
                weights = [factors[group].get(criterion, 0.0) for criterion in cluster.criteria]
                speaker = weights.index(max(weights))
                genome += [float(speaker)] if len(weights) > 1 else []
                genome += [weights[speaker]]
            genome += [offsets.get(group, 0.0)] if self.offsets else []
        return genome

    def uniform_factors(self) -> dict[str, dict[str, float]]:
        """The medoid of every cluster."""
        return {group: {c.medoid: 1.0 for c in clusters} for group, clusters in self.clusters.items()}

    def _block(self, clusters: Sequence[Cluster]) -> tuple[Gene, ...]:
        genes: list[Gene] = []
        for cluster in clusters:
            genes += [Choice(len(cluster.criteria))] if len(cluster.criteria) > 1 else []
            genes += [FACTOR]
        return (*genes, OFFSET) if self.offsets else tuple(genes)


class SharedEncoding:
    """One factor per criterion for all groups; per group, one offset.

    Args:
        table: The scores; a criterion counts in the groups where it is usable.
        groups: Names of the groups that have usable criteria.
        offsets: False for uniform allocation.
    """

    def __init__(self, table: ScoreTable, groups: Sequence[str], offsets: bool = True) -> None:
        self.table = table
        self.groups = tuple(groups)
        self.offsets = offsets
        shared = tuple(FACTOR for _ in table.criteria)
        self.space = Space((shared, *((OFFSET,) for _ in self.groups)) if offsets else (shared,))

    def decode(self, genome: Sequence[float]) -> Formula:
        """The formula of a genome: the same factors everywhere, restricted to what is usable in a group."""
        shared = dict(zip(self.table.criteria, genome, strict=False))
        offsets = genome[len(shared) :] if self.offsets else [0.0] * len(self.groups)
        return {
            group: GroupFormula(normalised({name: shared[name] for name in self.table.usable(group)}), offset)
            for group, offset in zip(self.groups, offsets, strict=True)
        }

    def encode(self, factors: Factors, offsets: Mapping[str, float]) -> list[float]:
        """The largest factor that a criterion has in any group."""
        shared = [max(factors[group].get(name, 0.0) for group in self.groups) for name in self.table.criteria]
        return shared + ([offsets.get(group, 0.0) for group in self.groups] if self.offsets else [])

    def uniform_factors(self) -> dict[str, dict[str, float]]:
        """Every usable criterion."""
        return _every_usable(self.table, self.groups)


class DirectEncoding:
    """One factor per criterion and group; per group, one offset. Nothing is clustered.

    Args:
        table: The scores; a criterion counts in the groups where it is usable.
        groups: Names of the groups that have usable criteria.
        offsets: False for uniform allocation.
        signed: Let factors be negative, so that a criterion may speak against the channels that it ranks high.
    """

    def __init__(self, table: ScoreTable, groups: Sequence[str], offsets: bool = True, signed: bool = False) -> None:
        self.table = table
        self.groups = tuple(groups)
        self.offsets = offsets
        factor, offset = (SIGNED if signed else FACTOR), ((OFFSET,) if offsets else ())
        self.space = Space(tuple((*(factor for _ in table.usable(group)), *offset) for group in self.groups))

    def decode(self, genome: Sequence[float]) -> Formula:
        """The formula of a genome: block by block, criterion by criterion."""
        formula = {}
        genes = iter(genome)
        for group in self.groups:
            factors = {criterion: next(genes) for criterion in self.table.usable(group)}
            formula[group] = GroupFormula(normalised(factors), next(genes) if self.offsets else 0.0)
        return formula

    def encode(self, factors: Factors, offsets: Mapping[str, float]) -> list[float]:
        """The factors as they are."""
        genome: list[float] = []
        for group in self.groups:
            genome += [factors[group].get(criterion, 0.0) for criterion in self.table.usable(group)]
            genome += [offsets.get(group, 0.0)] if self.offsets else []
        return genome

    def uniform_factors(self) -> dict[str, dict[str, float]]:
        """Every usable criterion."""
        return _every_usable(self.table, self.groups)


class AllocationEncoding:
    """One criterion for the whole network; per group, one offset: only how much each group gives is searched.

    Args:
        table: The scores.
        groups: Names of the groups that have usable criteria.
        base: The criterion; by default which one it is is a gene, with every criterion that ranks all groups.

    Raises:
        InputError: If the criterion, or every criterion, leaves a group unranked.
    """

    offsets = True

    def __init__(self, table: ScoreTable, groups: Sequence[str], base: str | None = None) -> None:
        self.table = table
        self.groups = tuple(groups)
        for criterion in (base,) if base else ():
            missing = [group for group in self.groups if criterion not in table.usable(group)]
            if missing:
                raise InputError(f"base must rank every group, but '{criterion}' cannot rank '{missing[0]}'")
        everywhere = (c for c in table.criteria if all(c in table.usable(group) for group in self.groups))
        self.criteria = (base,) if base else tuple(everywhere)
        if not self.criteria:
            raise InputError("encoding 'allocation' needs a criterion that ranks every group, and there is none")
        chosen: tuple[tuple[Gene, ...], ...] = ((Choice(len(self.criteria)),),) if len(self.criteria) > 1 else ()
        self.space = Space((*chosen, *((OFFSET,) for _ in self.groups)))

    def decode(self, genome: Sequence[float]) -> Formula:
        """The formula of a genome: the same criterion everywhere, and the offsets."""
        speaker = self.criteria[int(genome[0])] if len(self.criteria) > 1 else self.criteria[0]
        offsets = genome[len(genome) - len(self.groups) :]
        return {g: GroupFormula(((speaker, 1.0),), offset) for g, offset in zip(self.groups, offsets, strict=True)}

    def encode(self, factors: Factors, offsets: Mapping[str, float]) -> list[float] | None:
        """None unless one and the same criterion speaks alone in every group."""
        spoken = {frozenset(name for name, factor in factors[group].items() if factor) for group in self.groups}
        speaker = next((c for c in self.criteria if spoken == {frozenset({c})}), None)
        if speaker is None:
            return None
        chosen = [float(self.criteria.index(speaker))] if len(self.criteria) > 1 else []
        return [*chosen, *(offsets.get(group, 0.0) for group in self.groups)]

    def uniform_factors(self) -> dict[str, dict[str, float]]:
        """Every usable criterion: a baseline that this encoding cannot express."""
        return _every_usable(self.table, self.groups)


class MaskEncoding:
    """One score per channel, its place in the ranking: no criterion speaks any more.

    Where blends are members of the first population they are turned into the scores that they give. It is a control:
    what it finds belongs to this network's channels and cannot be applied to fresh statistics.

    Args:
        blender: Turns blends into scores.
        groups: Names of the groups that have usable criteria.
        offsets: False for uniform allocation; scores count inside their group only then.
    """

    def __init__(self, blender: Blender, groups: Sequence[str], offsets: bool = True) -> None:
        self.blender = blender
        self.groups = tuple(groups)
        self.offsets = offsets
        sizes = [len(blender.normalised_part(blender.table.usable(group)[0], group)) for group in self.groups]
        self.space = Space(tuple((SCORE,) * size for size in sizes))

    def decode(self, genome: Sequence[float]) -> Formula:
        """A formula in which no criterion speaks: the scores are the genes, or their ranks."""
        parts = (np.array(genome[part]) for part in self.space.slices)
        scores = (part if self.offsets else normalise(part, "rank") for part in parts)
        return {g: GroupFormula((), 0.0, tuple(part.tolist())) for g, part in zip(self.groups, scores, strict=True)}

    def encode(self, factors: Factors, offsets: Mapping[str, float]) -> list[float] | None:
        """The scores of a blend; None where it cannot rank a group."""
        if not all(factors[group] for group in self.groups):
            return None
        shifts = {group: offsets.get(group, 0.0) if self.offsets else 0.0 for group in self.groups}
        formula = {group: GroupFormula(normalised(factors[group]), shifts[group]) for group in self.groups}
        scores = self.blender.scores(formula)
        return self.space.clip([score for group in self.groups for score in scores[group].tolist()])

    def uniform_factors(self) -> dict[str, dict[str, float]]:
        """Every usable criterion."""
        return _every_usable(self.blender.table, self.groups)


def encoding_for(config: SearchConfig, clusters: Clusters, blender: Blender) -> Encoding:
    """The encoding that a configuration asks for."""
    table, groups, offsets = blender.table, tuple(clusters), config.allocation == "global"
    match config.encoding:
        case "cluster":
            return ClusterEncoding(clusters, offsets)
        case "shared":
            return SharedEncoding(table, groups, offsets)
        case "direct":
            return DirectEncoding(table, groups, offsets, config.signed)
        case "allocation":
            return AllocationEncoding(table, groups, config.base and CRITERIA.get(config.base).name)
        case "mask":
            return MaskEncoding(blender, groups, offsets)


def _every_usable(table: ScoreTable, groups: Sequence[str]) -> dict[str, dict[str, float]]:
    return {group: dict.fromkeys(table.usable(group), 1.0) for group in groups}
