"""What a candidate costs: building the pruned network, and judging it, on one thread."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp

from blend.budget import CostModel, keep_mask
from blend.evaluation import Judge, Settings
from blend.task import Split, accuracy
from blend.tasks.networks import build_network
from criteria import ChannelGraph
from tests.benchmarks.timing import Row, paired

NETWORKS = ("resnet20", "resnet56", "vgg16_bn", "mobilenetv2")
HELDOUT, RECALIBRATION = 500, 256


def rows() -> list[Row]:
    """Two rows a network: building against torch-pruning on a copy, judging against a bare forward pass."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return [row for name in NETWORKS for row in _network_rows(name)]


def _network_rows(name: str) -> list[Row]:
    model = build_network(name, in_channels=3, classes=10).eval()
    example = torch.randn(2, 3, 32, 32)
    graph = ChannelGraph.build(model, example)
    rng = np.random.default_rng(0)
    scores = {group.name: rng.random(group.size) for group in graph.groups}
    keep = keep_mask(graph, scores, 0.5, CostModel(graph))
    images = torch.randn(HELDOUT + RECALIBRATION, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    heldout = Split(images[:HELDOUT], torch.randint(0, 10, (HELDOUT,)), "held-out")
    judge = Judge(model, graph, F.cross_entropy, accuracy, images[HELDOUT:], Settings())
    removed = {group.name: np.flatnonzero(~part).tolist() for group, part in graph.split(keep)}
    pruned = copy.deepcopy(judge.network.prune(keep))

    def by_torch_pruning() -> None:
        copied = copy.deepcopy(model)
        dependencies = tp.DependencyGraph().build_dependency(copied, example, verbose=False)
        for layer, channels in removed.items():
            module = copied.get_submodule(layer)
            if channels:
                dependencies.get_pruning_group(module, _prune_out(module), channels).prune()

    def bare() -> None:
        with torch.no_grad():
            for batch in images.split(64):
                pruned(batch)

    return [
        paired(f"{name}: build a candidate", lambda: judge.network.prune(keep), by_torch_pruning, "deepcopy + prune"),
        paired(f"{name}: judge a candidate", lambda: judge.judge(keep, heldout), bare, "one bare forward pass", 5),
    ]


def _prune_out(module: torch.nn.Module) -> object:
    return tp.prune_linear_out_channels if isinstance(module, torch.nn.Linear) else tp.prune_conv_out_channels
