"""From a network to clusters: a residual network with a depthwise layer, a concatenation and a linear head."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from criteria import CRITERIA, NEEDS, ChannelGraph, PassCriterion, cluster, collect, redundancy, score_table

from .tiny_networks import assert_same, snapshot


def norm(channels):
    layer = nn.BatchNorm2d(channels)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias)
    return layer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 6, 3, padding=1), norm(6)
        self.depthwise, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, groups=6), norm(6)
        self.conv3, self.norm3 = nn.Conv2d(6, 8, 1, bias=False), norm(8)
        self.side = nn.Conv2d(8, 5, 1)
        self.last = nn.Conv2d(13, 4, 3)
        self.head = nn.Linear(4 * 36, 10)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        trunk = self.relu(self.norm0(self.stem(x)))
        x = self.relu(self.norm1(self.conv1(trunk)))
        x = self.norm3(self.conv3(self.relu(self.norm2(self.depthwise(x)))))
        trunk = self.relu(x + trunk)
        both = torch.cat([self.side(trunk).tanh(), trunk], 1)
        return self.head(self.relu(self.last(both)).flatten(1))


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    model = Net()
    graph = ChannelGraph.build(model, torch.zeros(1, 3, 8, 8))
    batches = [(torch.randn(6, 3, 8, 8), torch.randint(0, 10, (6,))) for _ in range(3)]
    before = snapshot(model)
    stats = collect(model, graph, batches, F.cross_entropy, NEEDS)
    assert_same(before, snapshot(model))
    return model, graph, batches, stats


def test_the_views_are_the_groups_members(setting):
    _, graph, _, stats = setting
    assert {group.name: group.size for group in graph.groups} == {"stem": 8, "conv1": 6, "side": 5, "last": 4}
    for group in graph.groups:
        layers = [member.layer for member in (*group.producers, *group.consumers)]
        assert [view.layer for view in stats[group.name]] == layers
        assert all(view.channels is None for view in stats[group.name])
    depthwise = [view for view in stats["conv1"] if view.layer == "depthwise"]
    assert [view.side for view in depthwise] == ["producer", "consumer"]


def test_a_concatenation_is_read_at_its_offset(setting):
    model, _, batches, stats = setting
    read = []
    handle = model.last.register_forward_pre_hook(lambda module, args: read.append(args[0].detach()))
    for inputs, _ in batches:
        model.eval()(inputs)
    handle.remove()
    mean = torch.cat(read).mean((0, 2, 3))
    for group, part in (("side", mean[:5]), ("stem", mean[5:])):
        view = next(view for view in stats[group] if view.layer == "last")
        torch.testing.assert_close(view.activation_mean, part, rtol=1e-4, atol=1e-6)


def test_closing_a_gate_is_what_the_gate_gradient_foretells(setting):
    """To first order: closed by a millionth, what the second order adds is far less."""
    network, graph, batches, _ = setting
    inputs, targets = batches[0]
    model = copy.deepcopy(network).double()
    norms = {"stem": "norm0", "conv1": "norm1", "depthwise": "norm2", "conv3": "norm3"}
    stats = collect(model, graph, [(inputs.double(), targets)], F.cross_entropy, {"gate_gradient"})
    with torch.no_grad():
        before = F.cross_entropy(model.eval()(inputs.double()), targets)
        for view in (view for views in stats.values() for view in views if view.side == "producer"):
            place = model.get_submodule(norms.get(view.layer, view.layer))
            almost = torch.ones(view.size, 1, 1, dtype=torch.float64)
            almost[1] -= 1e-6
            handle = place.register_forward_hook(lambda module, args, output, gate=almost: output * gate)
            change = F.cross_entropy(model(inputs.double()), targets) - before
            handle.remove()
            assert view.gate_gradient_squared[1].sqrt().item() == pytest.approx(abs(change.item()) / 1e-6, rel=1e-3)


def test_every_criterion_scores_every_group_it_fits(setting):
    _, graph, _, stats = setting
    reading = [criterion for criterion in CRITERIA if not isinstance(criterion, PassCriterion)]
    table = score_table(stats, reading)
    assert table.criteria == tuple(criterion.name for criterion in reading)
    missing = {(note.criterion, note.group) for note in table.notes}
    without_norm = {(name, group) for name in ("bn_scale", "bn_taylor") for group in ("side", "last")}
    tanh_has_no_zeros_and_full_rank = {("apoz", "side"), ("hrank", "side")}
    read_by_a_linear_layer = {("hrank", "last"), ("chip", "last")}
    assert missing == without_norm | tanh_has_no_zeros_and_full_rank | read_by_a_linear_layer
    for group in graph.groups:
        assert table.matrix(group.name).shape == (len(reading) - sum(g == group.name for _, g in missing), group.size)
        assert np.isfinite(table.matrix(group.name)).all()
    clusters = {group: cluster(table, group) for group in table.groups}
    assert all(len(found) == 3 for found in clusters.values())
    assert set(redundancy(table, clusters, 0.25)["groups"]) == set(table.groups)
