import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import nn

from criteria import CRITERIA, ChannelGraph, GroupStats, batchnorm, collect, magnitude

from .tiny_networks import conv_net, two_linear


def test_norms_by_hand():
    stats = GroupStats("g", "conv", 3, weight=torch.tensor([[3.0, -4.0], [0.0, 1.0], [0.0, 0.0]]))
    assert magnitude.l1(stats).tolist() == [7, 1, 0]
    assert magnitude.l2(stats).tolist() == [5, 1, 0]


def test_norms_of_a_network():
    model, graph = two_linear()
    (producer, _) = collect(model, graph, [], None, {"weight"})["first"]
    assert magnitude.l1(producer).tolist() == [3, 4]
    assert magnitude.l2(producer).tolist() == pytest.approx([5**0.5, 10**0.5])


def test_lamp_by_hand():
    # Energies 1, 4, 4, 0: the largest are alike, 4 / 8; then 1 / 9 and 0 / 9.
    stats = GroupStats("g", "conv", 4, weight=torch.tensor([[1.0], [-2.0], [2.0], [0.0]]))
    assert magnitude.lamp(stats).tolist() == pytest.approx([1 / 9, 1 / 2, 1 / 2, 0])


def test_lamp_orders_as_l2_and_ends_in_one():
    stats = GroupStats("g", "conv", 30, weight=torch.randn(30, 5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(magnitude.lamp(stats).argsort(), magnitude.l2(stats).argsort())
    assert magnitude.lamp(stats).max() == 1


def transposed_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 5, 2), nn.ReLU(), nn.Conv2d(5, 2, 1)
    )


@pytest.mark.parametrize("model", [conv_net(16)[0], transposed_net()], ids=["conv", "transposed"])
def test_torch_pruning_agrees_layer_by_layer(model):
    """Its L2 leaves out the root; ``first`` takes the producer's scores alone, which is what a view has."""
    example = torch.zeros(2, 2, 6, 6)
    theirs = {
        "l1": tp.importance.GroupMagnitudeImportance(p=1, group_reduction="first", normalizer=None),
        "l2": tp.importance.GroupMagnitudeImportance(p=2, group_reduction="first", normalizer=None),
        "lamp": tp.importance.LAMPImportance(group_reduction="first"),
        "bn_scale": tp.importance.BNScaleImportance(group_reduction="first", normalizer=None),
    }
    views = collect(model, ChannelGraph.build(model, example), [], None, {"weight"})
    graph = tp.DependencyGraph().build_dependency(model, example)
    checked = 0
    for view in (view for group in views.values() for view in group if view.side == "producer"):
        layer = model.get_submodule(view.layer)
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        group = graph.get_pruning_group(layer, prune, idxs=list(range(view.size)))
        for name, importance in theirs.items():
            if CRITERIA.get(name).missing(view) is None:
                expected = importance(group).detach()
                expected = expected.sqrt() if name == "l2" else expected
                np.testing.assert_allclose(CRITERIA.get(name)(view), expected, rtol=1e-5)
                checked += 1
    assert checked == 7  # four with and three without a BatchNorm
    assert batchnorm.bn_scale(next(iter(views.values()))[0]).shape[0] in (16, 6)
