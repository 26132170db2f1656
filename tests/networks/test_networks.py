"""Everything that has to hold on every network."""

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from blend.budget import CostModel, keep_mask
from blend.errors import InputError
from blend.evaluation import HeldoutEvaluation, Settings, Workspace, pack
from blend.pruning import PrunedNetwork, check_slicing, recalibrate
from blend.task import Split, Splits, Task
from criteria import CRITERIA, NEEDS, collect, score_table

from . import NETWORKS, build, graph_of, inputs

EVERY = pytest.mark.parametrize("name", NETWORKS)

# What is left alone: group → the layer that is the reason.
LEFT_ALONE = {
    "convnext": {"0": "1.norm", "3": "4.norm"},
    "vit_mlp": {"patches": "norm2"},
    "vit": {"patches": "norm1"},
    "groupnorm": {"3": "4"},
    "option_a": {"3.conv2.0": "3", "4.conv2.0": "4"},
    "grouped_transposed": {},
    "input_coupled": {"same": ""},
}
# Group → number of units that can be removed, where that is not the number of channels of its first layer.
UNITS = {
    "resnext": {"2.reduce.0": 4, "2.conv.0": 4, "3.reduce.0": 4, "3.conv.0": 4},
    "shufflenet": {"0.0": 8, "2.reduce.0": 4, "3.reduce.0": 6},
    "shufflenet_v2": {"0.0": 4},
    "conv1d": {"0": 3, "4": 4},
    "groupnorm": {"0": 4},
    "grouped_transposed": {"0": 4, "2": 3},
}


def random_keep(graph, seed):
    rng = np.random.default_rng(seed)
    keep = rng.random(len(graph)) < rng.uniform(0.3, 0.8)
    for group, part in graph.split(keep):
        part[rng.permutation(group.size)[:2]] = [True, False]
    return keep


def loss(outputs, targets):
    return outputs.flatten(1).square().mean(1).sub(targets).square().mean()


def batches(name, seed=0):
    for number in (seed, seed + 1):
        images = inputs(name, seed=number)
        yield images, torch.linspace(0.5, 2, len(images))


@lru_cache
def statistics(name):
    return collect(build(name), graph_of(name), batches(name), loss, list(NEEDS), map_images=4)


@EVERY
def test_what_is_prunable_and_what_is_left_alone(name):
    graph = graph_of(name)
    assert {note.group: note.layer for note in graph.notes} == LEFT_ALONE.get(name, {})
    first = {group.name: len(group.producers[0].channels) for group in graph.groups}
    assert {group.name: group.size for group in graph.groups} == first | UNITS.get(name, {})
    assert all(note.group not in first for note in graph.notes)


@EVERY
def test_masked_and_sliced_networks_agree(name):
    model, graph, images = build(name), graph_of(name), inputs(name)
    check_slicing(model, graph, images)
    network = PrunedNetwork(model.double(), graph)
    for seed in range(3):
        keep = random_keep(graph, seed)
        with torch.no_grad():
            masked = network.mask(keep)(images.double())
            sliced = network.prune(keep)(images.double())
        torch.testing.assert_close(sliced, masked, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(sliced, model(images.double()))


@EVERY
@pytest.mark.parametrize("kind", ["macs", "params"])
def test_cost_is_that_of_the_extracted_network(name, kind):
    model, graph, images = build(name), graph_of(name), inputs(name, 2)
    cost, network = CostModel(graph, kind), PrunedNetwork(model, graph)
    for keep in [np.ones(len(graph), dtype=bool), *(random_keep(graph, seed) for seed in range(3))]:
        smaller = network.extract(keep)
        if kind == "params":
            assert cost(keep) == sum(parameter.numel() for parameter in smaller.parameters())
            continue
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            smaller(images)
        assert 2 * len(images) * cost(keep) == counter.get_total_flops()  # neither counts attention


def error_of_each(outputs, targets):
    return (outputs - targets).square().view(len(outputs), -1).mean(1)


def error(outputs, targets):
    return error_of_each(outputs, targets).mean()


@EVERY
@pytest.mark.parametrize("half", [False, True])
def test_workers_judge_the_extracted_and_recalibrated_network(name, half, tmp_path):
    """Loss and metric take maps apart by view; inside of the network their channels may be last."""
    model, graph, keep = build(name), graph_of(name), random_keep(graph_of(name), 0)
    made = [Split(images, model(images).detach(), "split") for images in (inputs(name, 12, seed) for seed in range(3))]
    task = Task(model, made[0].inputs, *((split.inputs, split.targets) for split in made), error, error_of_each)
    workspace = Workspace(str(tmp_path / "work"), "digits", token=f"{name} {half}")
    workspace.write(task, graph, Splits(*made), Settings())
    answer = HeldoutEvaluation(workspace, half=half)(pack(keep, half=half))
    smaller = PrunedNetwork(model, graph).extract(keep)
    recalibrate(smaller, [made[0].inputs])
    with torch.no_grad():
        expected = float(error(smaller(made[1].inputs), made[1].targets))
    assert answer["loss"] == pytest.approx(answer["metric"], rel=1e-5)
    assert answer["loss"] == pytest.approx(expected, rel=0.1 if half else 1e-3)


@EVERY
def test_extracted_networks_learn(name):
    model, graph, images = build(name), graph_of(name), inputs(name, 4)
    scores = {group.name: np.random.default_rng(0).random(group.size) for group in graph.groups}
    smaller = PrunedNetwork(model, graph).extract(keep_mask(graph, scores, 0.2, CostModel(graph))).train()
    before = {name: parameter.clone() for name, parameter in smaller.named_parameters()}
    smaller(images).square().mean().backward()
    torch.optim.SGD(smaller.parameters(), lr=0.1).step()
    used = {name for name, parameter in smaller.named_parameters() if parameter.grad is not None}
    changed = {name for name, parameter in smaller.named_parameters() if not torch.equal(parameter, before[name])}
    assert used == set(before)
    assert changed >= {name for name in used if name.endswith("weight")}  # a bias before BatchNorm has no gradient
    assert smaller.eval()(images).isfinite().all()
    assert smaller.state_dict().keys() == model.state_dict().keys()


@EVERY
def test_statistics_are_complete(name):
    graph, stats = graph_of(name), statistics(name)
    for group in graph.groups:
        views = stats[group.name]
        assert len(views) == len(group.producers) + len(group.consumers)
        for view in views:
            assert view.rows == group.size
            for field in view.present:
                value = getattr(view, field)
                assert value.isfinite().all(), (view, field)
                assert value.shape[1 if field == "maps" else 0] == group.size
        made = [view for view in views if view.side == "producer"]
        assert all(view.present >= {"weight", "weight_gradient", "gate_gradient_squared"} for view in made)
        assert any(view.gate_gradient_squared.any() for view in made)


@EVERY
def test_filters_are_all_that_a_channel_owns(name):
    """The weights of a view are those that a removed channel takes along, of all conv groups together."""
    model, graph, stats = build(name), graph_of(name), statistics(name)
    for group in graph.groups:
        for member, view in zip(group.producers, stats[group.name], strict=False):
            layer = model.get_submodule(member.layer)
            owned = np.count_nonzero(member.channels >= 0)
            outputs = len(member.channels)
            assert view.weight.numel() * outputs == layer.weight.numel() * owned


@EVERY
def test_every_criterion_scores_or_says_why_not(name):
    graph, stats = graph_of(name), statistics(name)
    for criterion in CRITERIA:
        if all(criterion.missing(view) for views in stats.values() for view in views if view.side == criterion.side):
            continue  # refused, with the reason, in tests of its own
        table = score_table(stats, [criterion])
        noted = {note.group for note in table.notes}
        for group in graph.groups:
            scores = table.get(criterion.name, group.name)
            assert (scores is None) == (group.name in noted)
            assert scores is None or (scores.shape == (group.size,) and np.isfinite(scores).all())
        assert math.prod([len(table.usable(group.name)) for group in graph.groups]) or noted


def permuted(name, seed=5):
    """The same network with the channels of every group in another order, and the orders."""
    model, graph = build(name), graph_of(name)
    rng = np.random.default_rng(seed)
    orders = {group.name: rng.permutation(group.size) for group in graph.groups}
    moved = np.concatenate([orders[name] + where.start for name, where in graph.slices.items()])
    tensors = model.state_dict()
    for axis in graph.axes:
        positions = np.arange(len(axis.owner))
        for new, old in enumerate(moved):
            positions[axis.owner == new] = np.flatnonzero(axis.owner == old)
        tensor = tensors[axis.tensor]
        tensor.copy_(tensor.index_select(axis.dim, torch.from_numpy(positions)))
    return model, orders


def assert_close(actual, expected):
    """Float32 sums in another order, through a dozen layers and back, squared."""
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-5 * float(expected.abs().max()) + 1e-9)


FILTERS = {"weight", "weight_gradient", "weight_gradient_magnitude", "hessian_gradient", "flow_gradient"}
BY_POSITION = FILTERS | {"hessian_diagonal", "gate_change_squared", "maps"}
"""Filters whose columns move along with the channels they read, and statistics whose probes belong to positions."""


@EVERY
def test_permuting_channels_permutes_statistics(name):
    graph, stats = graph_of(name), statistics(name)
    model, orders = permuted(name)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs(name)), build(name)(inputs(name)), rtol=1e-4, atol=1e-5)
    again = collect(model, graph, batches(name), loss, list(NEEDS), map_images=4)
    for group in graph.groups:
        order = torch.from_numpy(orders[group.name])
        for before, after in zip(stats[group.name], again[group.name], strict=True):
            for field in before.present - BY_POSITION:
                assert_close(getattr(after, field), getattr(before, field)[order])
            for field in {"weight", "weight_gradient"} & before.present:  # inside a filter the order differs, too
                assert_close(getattr(after, field).abs().sum(1), getattr(before, field)[order].abs().sum(1))


@EVERY
def test_wrong_plans_are_refused(name):
    """Every axis of every network, its channels moved by one: the check finds out."""
    model, graph = build(name), graph_of(name)
    rng = np.random.default_rng(0)
    for number in rng.permutation(len(graph.axes))[:4]:
        axis = graph.axes[number]
        held = np.flatnonzero(axis.owner >= 0)
        owner = axis.owner.copy()
        owner[held] = np.roll(owner[held], 1)
        if np.array_equal(owner, axis.owner):
            continue
        axes = (*graph.axes[:number], replace(axis, owner=owner), *graph.axes[number + 1 :])
        with pytest.raises(InputError, match=r"gives another network than masking them .*--ignore"):
            check_slicing(model, replace(graph, axes=axes), inputs(name))
