"""Small networks, and random numbers for them to be pruned by."""

from collections import OrderedDict
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from blend.tasks.networks import build_network
from criteria import ChannelGraph, Cluster, ScoreTable

SIDE = {"resnet20": 16, "mobilenetv2": 16, "vgg16_bn": 32}


def images(count=4, side=16, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def network(name, seed=0):
    """An untrained network in evaluation mode, every BatchNorm of which does something."""
    torch.manual_seed(seed)
    model = build_network(name, in_channels=3, classes=5, width=4 if name == "resnet20" else 0.125).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model


def tiny():
    """Two groups: 4 channels that cost 9 weights and 9 · 3 readers' weights, 3 that cost 36 and 2."""
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(1, 4, 3, padding=1, bias=False), norm=nn.BatchNorm2d(4), relu=nn.ReLU(),
            conv=nn.Conv2d(4, 3, 3, padding=1, bias=False), drop=nn.Dropout(0.5), pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(), head=nn.Linear(3, 2),
        )
    ).eval()  # fmt: skip


def tiny_images(count=8, seed=0):
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def graph_of(name):
    """A network that is the test's own, and its graph, which nobody changes."""
    return network(name), _graph(name)


@cache
def _graph(name):
    return ChannelGraph.build(network(name), images(2, SIDE[name]))


def random_keep(graph, seed, share=0.6):
    """A random mask with at least one channel in each group."""
    keep = np.random.default_rng(seed).random(len(graph)) < share
    for where in graph.slices.values():
        keep[where.start] = True
    return keep


def random_scores(graph, seed=0):
    rng = np.random.default_rng(seed)
    return {group.name: rng.normal(size=group.size) for group in graph.groups}


def random_table(graph, criteria, seed=0, missing=()):
    """Scores from a heavy-tailed distribution, as squared gradients are, some of them equal."""
    rng = np.random.default_rng(seed)
    scores = {
        (name, group.name): np.round(np.exp(rng.normal(0, 9, group.size)), 6)
        for name in criteria
        for group in graph.groups
        if (name, group.name) not in missing
    }
    return ScoreTable(criteria, [group.name for group in graph.groups], scores)


def clusters_of(table, size=2):
    """Criteria in the table's order, so many to a cluster."""
    return {
        group: tuple(
            Cluster(table.usable(group)[i : i + size], table.usable(group)[i])
            for i in range(0, len(table.usable(group)), size)
        )
        for group in table.groups
        if table.usable(group)
    }


def macs(model, inputs):
    """Multiply-accumulates for one example, counted by torch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    return counter.get_total_flops() // 2 // len(inputs)


def labelled(n, seed):
    """Images of noise, and classes."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=rng), torch.randint(4, (n,), generator=rng)
