"""The objective of a search: from a genome to the keep mask it stands for, and to its fitness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from blend.blended.formula import Blender
from blend.budget import CostModel, keep_mask
from blend.evaluation import HeldoutEvaluation, pack
from blend.objective.encoding import Genomes
from criteria.graph import ChannelGraph
from search.archive import Evaluation


@dataclass(frozen=True)
class BlendObjective:
    """Decode, blend, allocate: what happens to a genome before a network is sliced.

    Attributes:
        encoding: What the genes mean.
        blender: Makes calibrated scores of a formula.
        graph: The channel graph.
        cost: What the reduction counts.
        floor: Channels that stay in each group.
        reduction: The requested share.
        evaluate: Phenotype to answer, in a worker.
    """

    encoding: Genomes
    blender: Blender
    graph: ChannelGraph
    cost: CostModel
    floor: Mapping[str, int]
    reduction: float
    evaluate: HeldoutEvaluation

    def requested(self, genome: Sequence[float]) -> float:
        """The share of the cost that a genome removes at least."""
        return self.reduction

    def phenotype(self, genome: Sequence[float]) -> bytes:
        """What a genome stands for. Genomes with the same mask are the same candidate."""
        scores = self.blender.scores(self.encoding.decode(genome))
        keep = keep_mask(self.graph, scores, self.requested(genome), self.cost, self.floor)
        return pack(keep, half=self.evaluate.half)

    def against(self, rival: Evaluation) -> HeldoutEvaluation:
        """An evaluation that ends once it is clear that a candidate falls short of one that was judged to the end."""
        if rival.error is not None or rival.given_up:
            return self.evaluate
        return replace(self.evaluate, rival=tuple(rival.details["chunks"]))
