"""Genomes of blends: what evolution varies, and the formula that a genome stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from blend.formula import Formula, GroupFormula, normalised
from criteria.clustering import Cluster
from criteria.scores import ScoreTable
from search.space import Choice, Gene, Real, Space

Clusters = Mapping[str, Sequence[Cluster]]

FACTOR = Real(0.0, 1.0, sigma=0.25)
OFFSET = Real(-1.0, 1.0, sigma=0.2, spread=0.25)


class Encoding(Protocol):
    """A search space and the formulas that its genomes stand for."""

    space: Space
    offsets: bool

    def decode(self, genome: Sequence[float]) -> Formula:
        """The formula of a genome."""
        ...

    def encode(self, factors: Mapping[str, Mapping[str, float]], offsets: Mapping[str, float]) -> list[float]:
        """The genome nearest to the given factors (group to criterion to factor) and offsets (group to offset)."""
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

    def encode(self, factors: Mapping[str, Mapping[str, float]], offsets: Mapping[str, float]) -> list[float]:
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

    def encode(self, factors: Mapping[str, Mapping[str, float]], offsets: Mapping[str, float]) -> list[float]:
        """The largest factor that a criterion has in any group."""
        shared = [max(factors[group].get(name, 0.0) for group in self.groups) for name in self.table.criteria]
        return shared + ([offsets.get(group, 0.0) for group in self.groups] if self.offsets else [])

    def uniform_factors(self) -> dict[str, dict[str, float]]:
        """Every usable criterion."""
        return {group: dict.fromkeys(self.table.usable(group), 1.0) for group in self.groups}
