"""A front of reductions: how much goes is a gene of its own, and costs."""

from __future__ import annotations

from collections.abc import Sequence

from blend.blended.formula import Formula
from blend.evaluation import unpack
from blend.objective.encoding import Genomes
from blend.objective.phenotype import BlendObjective
from search.space import Real, Space

RATE = 0.5
"""Share of offspring that remove another share than their parent: else the front would stay where it began."""


class FrontEncoding:
    """The genomes of another encoding, with the reduction as one more gene, a block of its own at the end.

    Args:
        genomes: What the other genes mean.
        lowest: Lowest reduction.
        highest: Highest reduction.
    """

    def __init__(self, genomes: Genomes, lowest: float, highest: float) -> None:
        self.genomes = genomes
        reduction = Real(lowest, highest, sigma=(highest - lowest) / 10, rate=RATE)
        self.space = Space((*genomes.space.blocks, (reduction,)))

    def decode(self, genome: Sequence[float]) -> Formula:
        """The formula of all genes but the last."""
        return self.genomes.decode(genome[:-1])


class FrontObjective(BlendObjective):
    """An objective whose genomes say themselves how much they remove."""

    def requested(self, genome: Sequence[float]) -> float:
        """The last gene."""
        return genome[-1]

    def cost_of(self, genome: Sequence[float]) -> float:
        """What the network costs that a genome stands for."""
        return float(self.cost(unpack(self.phenotype(genome), len(self.graph))))
