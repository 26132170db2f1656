"""Frozen, half-precision and channels-last networks: the right answer, or the right error."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from blend.budget import CostModel
from blend.errors import InputError
from blend.pruning import PrunedNetwork, check_slicing, recalibrate
from criteria import CRITERIA, NEEDS, ChannelGraph, GraphError, PassCriterion, collect, score_table

from . import build, graph_of, inputs
from .test_networks import batches, loss, random_keep, statistics


def frozen_stem():
    model = build("resnet50")
    model[0].requires_grad_(False)
    return model


def frozen_norms():
    model = build("densenet")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return model


def test_a_frozen_stem_is_refused_by_name_and_can_be_left_alone():
    model = frozen_stem()
    with pytest.raises(
        GraphError, match=r"parameter '0\.0\.weight' is frozen .*leave its layer alone with ignore=\['0\.0'\]"
    ):
        ChannelGraph.build(model, inputs("resnet50"))
    graph = ChannelGraph.build(model, inputs("resnet50"), ignore=["0"])
    assert {group.name for group in graph_of("resnet50").groups} - {group.name for group in graph.groups} == {"0.0"}
    assert not any(axis.tensor.startswith("0.") for axis in graph.axes)
    check_slicing(model, graph, inputs("resnet50"))
    smaller = PrunedNetwork(model, graph).extract(random_keep(graph, 0))
    frozen = {name for name, parameter in smaller.named_parameters() if not parameter.requires_grad}
    assert frozen == {"0.0.weight", "0.1.weight", "0.1.bias"}
    stats = collect(model, graph, batches("resnet50"), loss, list(NEEDS))
    absent = {"hrank", "chip", "discriminant"}  # full ranks, and targets that are no classes
    reading = [c for c in CRITERIA if c.name not in absent and not isinstance(c, PassCriterion)]
    assert not score_table(stats, reading).notes
    assert not model[0][0].weight.requires_grad


def test_frozen_norms_are_refused_by_name_and_can_be_left_alone():
    model = frozen_norms()
    with pytest.raises(GraphError, match=r"parameter '1\.norm1\.weight' is frozen"):
        ChannelGraph.build(model, inputs("densenet"))
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    with pytest.raises(GraphError, match="no prunable channel group"):  # they read every channel there is
        ChannelGraph.build(model, inputs("densenet"), ignore=norms)


@pytest.mark.parametrize("name", ["resnet20", "resnext"])
def test_bfloat16(name):
    model = build(name).bfloat16()
    images = inputs(name).bfloat16()
    graph = ChannelGraph.build(model, images)
    assert graph.fingerprint == graph_of(name).fingerprint
    check_slicing(model, graph, images)
    assert next(model.parameters()).dtype == torch.bfloat16  # the check works on a copy
    keep = random_keep(graph, 0)
    assert CostModel(graph)(keep) == CostModel(graph_of(name))(keep)
    network = PrunedNetwork(model, graph)
    with torch.no_grad():
        sliced, masked = network.prune(keep)(images), network.mask(keep)(images)
    assert sliced.dtype == torch.bfloat16
    assert float((sliced - masked).abs().max()) < 0.05 * float(masked.abs().max())
    recalibrate(network.prune(keep), [images])
    halves = ((images.bfloat16(), targets.bfloat16()) for images, targets in batches(name))
    stats = collect(
        model, graph, halves, lambda y, t: loss(y.float(), t.float()), ["weight", "gate_gradient", "activation"]
    )
    for group in graph.groups:
        for half, full in zip(stats[group.name], statistics(name)[group.name], strict=True):
            for field in half.present - {"gate_gradient_squared"}:
                value, expected = getattr(half, field), getattr(full, field)
                assert value.dtype == torch.float32
                torch.testing.assert_close(value, expected, rtol=0.2, atol=0.1 * float(expected.abs().max()))


def test_a_wrong_plan_of_a_half_precision_network_is_refused_too():
    model, images = build("plain").bfloat16(), inputs("plain").bfloat16()
    graph = ChannelGraph.build(model, images)
    model[2].bias.data[:2] += 1
    axes = [axis for axis in graph.axes if axis.tensor != "2.bias"]
    moved = next(axis for axis in graph.axes if axis.tensor == "2.bias")
    wrong = replace(graph, axes=(*axes, replace(moved, owner=np.roll(moved.owner, 1))))
    with pytest.raises(InputError, match="'2' gives another network"):
        check_slicing(model, wrong, images)


def test_a_network_that_insists_on_its_type_is_checked_in_it():
    class Insists(nn.Sequential):
        def forward(self, x):
            return super().forward(x.float())

    model = Insists(*build("plain"))
    check_slicing(model, ChannelGraph.build(model, inputs("plain")), inputs("plain"))


def test_channels_last():
    model = build("mobilenetv2").to(memory_format=torch.channels_last)
    images = inputs("mobilenetv2").to(memory_format=torch.channels_last)
    graph = ChannelGraph.build(model, images)
    plain = graph_of("mobilenetv2")
    assert graph.fingerprint == plain.fingerprint
    check_slicing(model, graph, images)
    keep = random_keep(graph, 0)
    with torch.no_grad():
        ours = PrunedNetwork(model, graph).prune(keep)(images)
        expected = PrunedNetwork(build("mobilenetv2"), plain).prune(keep)(inputs("mobilenetv2"))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    last = ((images.to(memory_format=torch.channels_last), targets) for images, targets in batches("mobilenetv2"))
    stats = collect(model, graph, last, loss, ["weight", "activation", "gate_gradient"])
    for group in graph.groups:
        for one, other in zip(stats[group.name], statistics("mobilenetv2")[group.name], strict=True):
            for field in one.present:
                value = getattr(other, field)
                torch.testing.assert_close(getattr(one, field), value, rtol=1e-2, atol=1e-4 * float(value.abs().max()))
