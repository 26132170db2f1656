"""What a pruned network gains in time: half of its MACs gone, 64 images on one core, against the unpruned one.

Every channel counts the same inside its group (L1 norms of random weights, equal shares), as only the widths matter
here. Networks take turns; what counts is processor time, so that other processes only disturb through the caches.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from blend.budget import CostModel, Scores, floors, keep_mask, uniform
from blend.pruned.latency import LatencyModel, fitted
from blend.pruned.layer_timing import checked_by_a_network, timed_passes
from blend.pruned.rounding import rounded_keep_mask
from blend.pruned.timing import median_interval, seconds_in_turns
from blend.pruning import PrunedNetwork
from blend.pruning.inference import InferenceNetwork
from blend.tasks.networks import build_network
from criteria import ChannelGraph
from criteria.graph import ChannelGroup
from tests.benchmarks.timing import Row

NETWORKS = ("resnet20", "resnet56", "vgg16_bn", "mobilenetv2")
IMAGES, ROUNDS, LIMIT = 64, 9, 1.6
REDUCTIONS = (0.3, 0.5)


def rows() -> list[Row]:
    """For each network: how many times faster it is, in several ways; and how well latency is predicted."""
    return [row for name in NETWORKS for row in (*_speed(name), *_predictions(name))]


def _speed(name: str) -> Iterator[Row]:
    """Half of the MACs gone: as it is, in multiples of 8 and 16, with BatchNorm folded; in both memory layouts."""
    model, graph, scores = _network(name)
    cost, pruned = CostModel(graph), PrunedNetwork(model, graph)
    masks = {"any widths": keep_mask(graph, scores, 0.5, cost)}
    for multiple in (8, 16):
        masks[f"multiples of {multiple}"] = rounded_keep_mask(graph, scores, 0.5, cost, floors(graph), multiple)
    everything = np.ones(len(graph), dtype=bool)
    pairs = {title: (model, pruned.extract(mask)) for title, mask in masks.items()}
    pairs["BatchNorm folded"] = (_folded(model, graph, everything), _folded(model, graph, masks["any widths"]))
    for layout in (torch.contiguous_format, torch.channels_last):
        for title, pair in pairs.items():
            before, after = (network.to(memory_format=layout) for network in pair)
            seconds = seconds_in_turns([before, after], _images().to(memory_format=layout), ROUNDS)
            ratio, low, high = median_interval(seconds[:, 0] / seconds[:, 1])
            where = "" if layout == torch.contiguous_format else ", channels last"
            yield Row(
                f"{name}: half of its MACs gone, {title}{where}, times faster (limit {LIMIT})",
                float(np.median(seconds[:, 1])), float(np.median(seconds[:, 0])), ratio, "s",
                f"the unpruned network (95 % interval {low:.2f} … {high:.2f})",
            )  # fmt: skip


def _predictions(name: str) -> Iterator[Row]:
    """Pruned to a latency: what is left of it, measured against predicted."""
    model, graph, scores = _network(name)
    bare = fitted(graph, timed_passes(model, graph, _images()), IMAGES)
    pruned = PrunedNetwork(model, graph)
    for reduction in REDUCTIONS:
        cost = checked_by_a_network(bare, model, _images(), reduction)
        keep = keep_mask(graph, scores, reduction, cost)
        seconds = seconds_in_turns([model, pruned.extract(keep)], _images(), ROUNDS)
        yield _prediction(f"{name}: {reduction:.0%} of its latency gone", cost, keep, seconds, CostModel(graph))


def _prediction(what: str, cost: LatencyModel, keep: np.ndarray, seconds: np.ndarray, macs: CostModel) -> Row:
    measured, low, high = median_interval(seconds[:, 1] / seconds[:, 0])
    predicted = 1.0 - cost.reduction(keep)
    return Row(
        f"{what}, measured over predicted", measured, predicted, measured / predicted, "of unpruned",
        f"the prediction (95 % interval {low:.3f} … {high:.3f}; {macs.reduction(keep):.3f} of the MACs gone)",
    )  # fmt: skip


def _network(name: str) -> tuple[nn.Module, ChannelGraph, Scores]:
    torch.manual_seed(0)
    model = build_network(name, in_channels=3, classes=10).eval()
    graph = ChannelGraph.build(model, _images()[:2])
    return model, graph, uniform({group.name: _norms(model, group) for group in graph.groups})


def _norms(model: nn.Module, group: ChannelGroup) -> np.ndarray:
    weight = model.get_submodule(group.name).weight.detach().double()
    return weight.abs().flatten(1).sum(1).numpy()


def _folded(model: nn.Module, graph: ChannelGraph, keep: np.ndarray) -> nn.Module:
    with torch.no_grad():
        network = InferenceNetwork(model, graph, _images()[:8])
        network.prune(keep)
        return copy.deepcopy(network.network.shell)


def _images() -> torch.Tensor:
    return torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
