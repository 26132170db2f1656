"""What one sweep of statistics costs, against a plain forward and backward pass over the same images."""

import torch
import torch.nn.functional as F

from blend.tasks.networks import build_network
from criteria import CRITERIA, ChannelGraph, collect, score_table
from tests.benchmarks.timing import Row, paired

IMAGES, BATCH = 256, 64
SWEEPS = {
    "first-order, activation, BN and weight criteria": (
        "l1", "l2", "fpgm", "bn_scale", "taylor_l1", "taylor_l2", "taylor_fo", "fisher", "mean_activation", "apoz",
    ),
    "the default criteria (with hrank)": (
        "l1", "l2", "fpgm", "bn_scale", "taylor_l1", "taylor_l2", "taylor_fo", "fisher", "mean_activation", "apoz",
        "hrank",
    ),
    "obd": ("obd",),
}  # fmt: skip


def rows() -> list[Row]:
    """One row a set of criteria."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build_network("resnet20", in_channels=3, classes=40, stem_stride=2).eval()
    inputs, targets = torch.randn(IMAGES, 3, 32, 32), torch.randint(0, 40, (IMAGES,))
    batches = list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))
    graph = ChannelGraph.build(model, inputs[:2])

    def plain() -> None:
        for batch, labels in batches:
            torch.autograd.grad(F.cross_entropy(model(batch), labels), list(model.parameters()))

    def ours(names: tuple[str, ...]) -> None:
        criteria = [CRITERIA.get(name) for name in names]
        needs = set().union(*(criterion.needs for criterion in criteria))
        score_table(collect(model, graph, batches, F.cross_entropy, needs), criteria)

    return [
        paired(f"resnet20: {title}", lambda names=names: ours(names), plain, "plain forward + backward")
        for title, names in SWEEPS.items()
    ]
