"""What each layer takes inside the network, whose widths are drawn anew for every pass.

Layers are not timed alone: in the network they have their real inputs, and find caches and memory as they really are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from blend.budget import floors, keep_mask, uniform
from blend.progress import progress
from blend.pruned.latency import LatencyModel, Passes, weight_axes
from blend.pruned.timing import Clock, median_interval, seconds_in_turns
from blend.pruning import PrunedNetwork, reproducibly
from criteria.graph import ChannelGraph, Keep

WIDTHS, ROUNDS, PASSES, CHECKS = 14, 3, 2, 9
WHOLE = ""
"""The network, as a layer."""
LEAST_KEPT = 0.2
"""Of a group's channels, at the least, in the networks that are timed."""


def timed_passes(
    model: nn.Module, graph: ChannelGraph, inputs: Tensor, seed: int = 0, clock: Clock = time.thread_time
) -> Passes:
    """Times a network and its layers at many widths, again and again in turns; of all rounds the medians count.

    Args:
        model: The unpruned network; it is not touched.
        graph: Its channel graph.
        inputs: A batch.
        seed: Of the widths.
        clock: Tells the time.
    """
    masks = drawn_widths(graph, WIDTHS, np.random.default_rng(seed))
    network = PrunedNetwork(model, graph)
    rounds: list[list[dict[str, float]]] = []
    with (
        reproducibly(),
        torch.no_grad(),
        progress("timing layers", ROUNDS * len(masks)) as shown,
        _stopwatch(network.shell, tuple(weight_axes(graph)), clock) as times,
    ):
        for _ in range(ROUNDS):
            rounds.append([])
            for mask in masks:
                rounds[-1].append(_fastest(network.prune(mask), inputs, times))
                shown.advance()
    table = {name: np.median([[row[name] for row in each] for each in rounds], axis=0) for name in rounds[0][0]}
    return Passes(masks, {name: seconds for name, seconds in table.items() if name != WHOLE}, table[WHOLE])


def checked_by_a_network(
    cost: LatencyModel,
    model: nn.Module,
    inputs: Tensor,
    reduction: float,
    clock: Clock = time.thread_time,
) -> LatencyModel:
    """Corrects a model by a network that is pruned by it, the same share of every group, timed beside the unpruned one.

    Widths that jump about, with a stopwatch on every layer, are not quite what a network finds that runs by itself. As
    one measurement is not exact either, the model is only led as far as the end of its 95 % interval.

    Args:
        cost: The model.
        model: The unpruned network.
        inputs: A batch.
        reduction: What is to be reached, so that predictions are best there.
        clock: Tells the time.

    Raises:
        InputError: The reduction cannot be reached.
    """
    graph = cost.graph
    equal = uniform({group.name: np.arange(group.size, dtype=np.float64) for group in graph.groups})
    keep = keep_mask(graph, equal, reduction, cost, floors(graph, 0.0))
    seconds = seconds_in_turns([model, PrunedNetwork(model, graph).extract(keep)], inputs, CHECKS, clock)
    _, low, high = median_interval(seconds[:, 1] / seconds[:, 0])
    return cost.corrected(keep, 1.0 - min(max(1.0 - cost.reduction(keep), low), high))


def drawn_widths(graph: ChannelGraph, number: int, rng: np.random.Generator) -> tuple[Keep, ...]:
    """Keep masks: everything first, then for each group a share of its channels that is drawn for itself."""
    masks = [np.ones(len(graph), dtype=bool)]
    while len(masks) < number:
        shares = rng.uniform(LEAST_KEPT, 1.0, len(graph.groups))
        parts = (np.arange(g.size) < max(1, round(g.size * s)) for g, s in zip(graph.groups, shares, strict=True))
        masks.append(np.concatenate(list(parts)))
    return tuple(masks)


def _fastest(network: nn.Module, inputs: Tensor, times: Callable[[Tensor], dict[str, float]]) -> dict[str, float]:
    """Seconds of the layers and of the whole, each the least of a few passes: the first one finds cold tensors."""
    passes = [times(inputs) for _ in range(PASSES)]
    return {name: min(one[name] for one in passes) for name in passes[0]}


@contextmanager
def _stopwatch(
    network: nn.Module, layers: Sequence[str], clock: Clock
) -> Iterator[Callable[[Tensor], dict[str, float]]]:
    """Yields what runs the network and tells the seconds of its layers, as far as they are called, and of the whole."""
    seconds: dict[str, float] = {}
    began: dict[str, float] = {}

    def start(name: str) -> None:
        began[name] = clock()

    def stop(name: str) -> None:
        seconds[name] = seconds.get(name, 0.0) + clock() - began[name]

    def times(inputs: Tensor) -> dict[str, float]:
        seconds.clear()
        start(WHOLE)
        network(inputs)
        stop(WHOLE)
        return dict(seconds)

    hooks = []
    try:
        for name in layers:
            layer = network.get_submodule(name)
            hooks.append(layer.register_forward_pre_hook(lambda *_, name=name: start(name)))
            hooks.append(layer.register_forward_hook(lambda *_, name=name: stop(name)))
        yield times
    finally:
        for hook in hooks:
            hook.remove()
