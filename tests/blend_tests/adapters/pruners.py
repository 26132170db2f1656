"""Torch-Pruning's pruner on the test networks, and what it should leave, for the adapter's tests."""

import numpy as np
import torch
import torch_pruning as tp

from criteria import ChannelGraph
from tests.networks import build, inputs


def network(name):
    model = build(name)
    return model, ChannelGraph.build(model, inputs(name)), inputs(name)


def pruner(model, example, importance, ratio=0.5, **options):
    last = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))][-1]
    options = {"global_pruning": True, "ignored_layers": [last]} | options
    return tp.pruner.BasePruner(model, example, importance, pruning_ratio=ratio, **options)


def survivors(importance):
    return {name: alive.copy() for name, alive in importance._survivors.alive.items()}


def expected(blend, graph, share):
    """The global ranking's best, by another way: sort all channels, with the floors' best above everything."""
    pairs = []
    for group in blend.groups:
        floor = max(1, int(np.ceil(blend.floor * group.size)))
        scores = np.array(group.scores)
        safe = set(np.argsort(-scores, kind="stable")[:floor].tolist())
        pairs += [(c in safe, s, group.name, c) for c, s in enumerate(scores)]
    pairs.sort(key=lambda pair: pair[:2])
    removed = len(pairs) - int(len(pairs) * (1 - share))
    alive = {group.name: np.ones(group.size, dtype=bool) for group in blend.groups}
    for _, _, name, channel in pairs[:removed]:
        alive[name][channel] = False
    return alive
