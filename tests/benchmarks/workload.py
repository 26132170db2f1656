"""What collection is measured on: the network and the calibration images of ``textures``, untrained.

``python -m tests.benchmarks.workload plain|sweep`` does one or the other once and prints its peak memory in bytes.
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F

from blend.task import accuracy
from blend.tasks.networks import build_network
from blend.tasks.textures import CLASSES, draw
from criteria import CRITERIA, ChannelGraph, Criterion, PassCriterion, ScoreTable, score
from tests.benchmarks.memory import high_water

IMAGES, BATCH = 1024, 64
BEYOND = {"hessian_diagonal", "hessian_gradient", "gate_curvature", "maps"}
"""Statistics that are not weights, BatchNorm, sums over activations or first-order gradients."""


class Workload:
    """ResNet-20 for 40 classes of 32 x 32 images, and 1,024 images in batches of 64; on one thread."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        classes = np.arange(IMAGES) % CLASSES
        self.images = torch.from_numpy(draw(classes, np.random.default_rng(0))).float() / 127.5 - 1
        self.batches = list(zip(self.images.split(BATCH), torch.from_numpy(classes).split(BATCH), strict=True))
        self.model = build_network("resnet20", in_channels=3, classes=CLASSES, stem_stride=2).eval()
        self.graph = ChannelGraph.build(self.model, self.images[:2])

    def plain(self) -> None:
        """One forward and one backward pass a batch, by all parameters."""
        for batch, labels in self.batches:
            torch.autograd.grad(F.cross_entropy(self.model(batch), labels), list(self.model.parameters()))

    def score(self, *criteria: str | Criterion) -> ScoreTable:
        """All that the criteria take, from the images to the table."""
        return score(self.model, self.graph, self.batches, F.cross_entropy, criteria, metric=accuracy)


def in_the_sweep() -> list[Criterion]:
    """All criteria of weights, BatchNorm, activations and first-order gradients."""
    return [
        criterion
        for criterion in CRITERIA
        if not isinstance(criterion, PassCriterion)
        and not BEYOND & {need.partition(":")[0] for need in criterion.needs}
    ]


if __name__ == "__main__":
    workload = Workload()
    workload.plain() if sys.argv[1] == "plain" else workload.score(*in_the_sweep())
    print(high_water("self"))
