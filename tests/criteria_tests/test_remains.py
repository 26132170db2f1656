"""The graph of what is left of a network is the graph that tracing it again would find."""

import numpy as np
import pytest
import torch
from torch import nn

from blend.pruning import PrunedNetwork
from blend.tasks.networks import build_network
from criteria.graph import ChannelGraph
from criteria.remains import remaining_graph


def pruned(network, inputs, seed=0):
    graph = ChannelGraph.build(network, inputs)
    keep, rng = np.ones(len(graph), dtype=bool), np.random.default_rng(seed)
    for group, part in graph.split(keep):
        part[rng.permutation(group.size)[: group.size // 3]] = False
    return graph, keep, PrunedNetwork(network, graph).extract(keep)


def same(one, other):
    assert one.fingerprint == other.fingerprint
    assert one.shapes == other.shapes
    assert one.positions == other.positions
    assert one.parameters == other.parameters
    for mine, theirs in zip(one.groups, other.groups, strict=True):
        assert (mine.name, mine.size) == (theirs.name, theirs.size)
        for side in ("producers", "consumers"):
            for a, b in zip(getattr(mine, side), getattr(theirs, side), strict=True):
                assert (a.layer, a.norm, a.channels.tolist()) == (b.layer, b.norm, b.channels.tolist())


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2"])
def test_it_is_what_tracing_finds(name):
    network = build_network(name, in_channels=3, classes=10, width=8 if name == "resnet20" else None, stem_stride=1)
    inputs = torch.randn(2, 3, 16, 16)
    graph, keep, smaller = pruned(network.eval(), inputs)
    same(remaining_graph(graph, keep, smaller), ChannelGraph.build(smaller, inputs))


class Concatenated(nn.Module):
    """What a U-Net, a DenseNet and a gate do: layers that read several groups, the input itself, or a half of one."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.gated = nn.Conv2d(17, 12, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.grouped = nn.Conv2d(18, 18, 3, padding=1, groups=18)
        self.norm = nn.BatchNorm2d(18)
        self.last = nn.Conv2d(18, 4, 1)
        self.head = nn.Linear(4 * 64 + 6, 5)

    def forward(self, x):
        a, b = self.a(x).relu(), self.b(x).relu()
        gate, value = self.gated(torch.cat([a, x, b], 1)).chunk(2, 1)
        gated = gate.sigmoid() * value
        up = self.up(nn.functional.avg_pool2d(gated, 2))
        maps = self.last(self.norm(self.grouped(torch.cat([b, up[:, :, : b.shape[2]], x[:, :1], gated], 1))).relu())
        return self.head(torch.cat([maps.flatten(1), gated.mean((2, 3))], 1))


@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_tracing_finds_where_groups_are_concatenated(seed):
    network, inputs = Concatenated().eval(), torch.randn(2, 3, 8, 8)
    graph, keep, smaller = pruned(network, inputs, seed)
    once = remaining_graph(graph, keep, smaller)
    same(once, ChannelGraph.build(smaller, inputs))
    most = np.concatenate([np.arange(group.size) > 0 for group in once.groups])
    smallest = PrunedNetwork(smaller, once).extract(most)
    same(remaining_graph(once, most, smallest), ChannelGraph.build(smallest, inputs))


class Various(nn.Module):
    """Grouped and transposed convolutions, a GroupNorm, and a flattened map."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.two = nn.Conv2d(12, 12, 3, padding=1, groups=2, bias=False)
        self.norm = nn.GroupNorm(6, 12)
        self.three = nn.ConvTranspose2d(12, 9, 2, stride=2, bias=False)
        self.head = nn.Linear(9 * 64, 5, bias=False)

    def forward(self, x):
        return self.head(self.three(self.norm(self.two(self.one(x).relu())).relu()).flatten(1))


def test_added_biases_go_with_the_outputs_of_their_layers():
    network, inputs = Various().eval(), torch.randn(2, 3, 4, 4)
    graph, keep, smaller = pruned(network, inputs)
    for layer in (smaller.one, smaller.two, smaller.three):
        outputs = layer.out_channels
        layer.bias = nn.Parameter(torch.arange(float(outputs)))
    smaller.head.bias = nn.Parameter(torch.zeros(5))
    remaining = remaining_graph(graph, keep, smaller)
    same(remaining, ChannelGraph.build(smaller, inputs))
    half = np.arange(len(remaining)) % 2 == 0
    network = PrunedNetwork(smaller, remaining)
    torch.testing.assert_close(network.prune(half)(inputs), network.mask(half)(inputs))


def test_a_group_of_one_channel_stays_a_group():
    network = build_network("resnet20", in_channels=1, classes=4, width=4, stem_stride=1).eval()
    graph = ChannelGraph.build(network, torch.randn(2, 1, 8, 8))
    keep = np.zeros(len(graph), dtype=bool)
    keep[[where.start for where in graph.slices.values()]] = True
    remaining = remaining_graph(graph, keep, PrunedNetwork(network, graph).extract(keep))
    assert [group.size for group in remaining.groups] == [1] * len(graph.groups)
    keep[graph.slices[graph.groups[0].name]] = False
    with pytest.raises(ValueError, match=f"got none of '{graph.groups[0].name}'"):
        remaining_graph(graph, keep, network)


def test_conv_groups_with_a_single_input_left_keep_their_number():
    grouped = nn.Conv2d(16, 32, 3, padding=1, groups=8)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), grouped, nn.BatchNorm2d(32), nn.Conv2d(32, 5, 1)).eval()
    inputs = torch.randn(2, 3, 8, 8)
    graph = ChannelGraph.build(network, inputs)
    assert [(group.name, group.size) for group in graph.groups] == [("0", 2), ("1", 4)]
    first, second = np.array([True, False, True, True, True, True]), np.array([True, True, False, True, False])
    once = PrunedNetwork(network, graph).extract(first)
    twice = PrunedNetwork(once, remaining_graph(graph, first, once)).extract(second)
    assert (twice[1].groups, twice[1].in_channels, twice[1].out_channels) == (8, 8, 16)
    both = first.copy()
    both[first] = second
    assert torch.equal(twice(inputs), PrunedNetwork(network, graph).extract(both)(inputs))
