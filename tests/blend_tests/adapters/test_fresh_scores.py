"""Scores computed anew in the real Torch-Pruning: the blend's allocation, loss and seed through all steps."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from blend.adapters.torch_pruning import BlendedImportance
from blend.blended import Spokesman
from blend.blended.formula import Blender, GroupFormula
from blend.errors import InputError
from criteria import ChannelGraph, score
from criteria.losses import label_free
from tests.networks import build, inputs

from .blends import blend_for
from .pruners import expected, network, pruner, survivors


def test_recomputed_scores_are_those_of_the_network_as_it_is():
    model, graph, example = network("resnet20")
    batches = [(inputs("resnet20", 8), torch.arange(8) % 4)]
    criteria = ("l1", "taylor_fo")
    table = score(model, graph, batches, F.cross_entropy, criteria)
    blend = blend_for(model, graph, criteria=criteria, table=table)
    importance = BlendedImportance(blend, model, example, batches)
    host = pruner(model, example, importance, iterative_steps=2)
    host.step()
    importance._follow(host.DG)
    before, halfway = survivors(importance), copy.deepcopy(model)
    host.step()
    assert importance.check(host, 0.5) == pytest.approx(0.5, abs=1 / len(graph))
    again = ChannelGraph.build(halfway, example)
    fresh = Blender(score(halfway, again, batches, F.cross_entropy, criteria))
    scores = fresh.scores({g.name: GroupFormula((("l1", 0.75), ("taylor_fo", 0.25))) for g in blend.groups})
    now = []
    for g in blend.groups:
        whole = np.full(g.size, -np.inf)  # a rank of the whole group, above all that has gone
        whole[before[g.name]] = g.offset + 1 - (1 - scores[g.name]) * len(scores[g.name]) / g.size
        now.append(g.model_copy(update={"scores": tuple(whole)}))
    left = sum(int(alive.sum()) for alive in survivors(importance).values())
    kept = expected(blend.model_copy(update={"groups": tuple(now)}), graph, 1 - (left + 0.5) / len(graph))
    for name, alive in kept.items():
        assert np.array_equal(survivors(importance)[name], alive), name
    frozen = expected(blend, graph, 0.5)  # which would have been something else
    assert any(not np.array_equal(frozen[name], alive) for name, alive in survivors(importance).items())


def lowered(blend, name, offset, **changes):
    """The blend with one group's offset changed."""
    groups = (g.model_copy(update={"offset": offset} if g.name == name else {}) for g in blend.groups)
    return blend.model_copy(update={"groups": tuple(groups)} | changes)


@pytest.mark.parametrize("floor", [0.1, 0.5])
def test_recomputing_what_does_not_change_ends_where_a_single_step_does(floor):
    model, graph, example = network("vgg_bn")
    batches = [(inputs("vgg_bn", 8), torch.arange(8) % 4)]
    table = score(model, graph, batches, F.cross_entropy, ["bn_scale"])
    spoken = blend_for(model, graph, criteria=("bn_scale", "bn_scale"), table=table, floor=floor)
    blend = lowered(spoken, graph.groups[0].name, -0.4)
    scores = blend.recomputed_scores(table)
    groups = tuple(g.model_copy(update={"scores": tuple(scores[g.name])}) for g in blend.groups)
    blend = blend.model_copy(update={"groups": groups})
    for steps in (1, 4):
        copied = copy.deepcopy(model)
        importance = BlendedImportance(blend, copied, example, batches)
        host = pruner(copied, example, importance, ratio=0.4, iterative_steps=steps)
        for _ in range(steps):
            host.step()
        importance.check(host, 0.4)
        for name, alive in expected(blend, graph, 0.4).items():
            assert np.array_equal(survivors(importance)[name], alive), (steps, name)


def test_recomputing_goes_on_when_a_group_has_a_single_channel_left():
    model, graph, example = network("resnet20")
    first, last = graph.groups[0].name, graph.groups[-1].name
    blend = lowered(blend_for(model, graph, criteria=("l1", "l2")), first, -3.0, floor=0.0)
    batches = [(inputs("resnet20", 8), torch.arange(8) % 4)]
    importance = BlendedImportance(lowered(blend, last, -3.0), model, example, batches)
    host = pruner(model, example, importance, iterative_steps=5)
    for _ in range(5):
        host.step()
    importance._follow(host.DG)
    left = {name: int(alive.sum()) for name, alive in survivors(importance).items()}
    assert (left[first], left[last]) == (1, 1)
    alone = sum(channels == 1 for channels in left.values())  # which the pruner no longer counts
    assert importance.removed == pytest.approx(0.5 - alone / len(graph), abs=1 / len(graph))
    model(example)


def test_a_group_that_a_criterion_can_no_longer_rank_gives_nothing(theirs, capsys):
    model, graph, example = network("resnet20")
    name, size = graph.groups[0].name, graph.groups[0].size
    members = {member.layer for member in graph.groups[0].producers}

    def fickle(group):
        channels = len(group[0].idxs)
        silent = channels < size and group._DG._module2name[group[0].dep.target.module] in members
        return torch.ones(channels) if silent else torch.arange(float(channels))

    batches = [(inputs("resnet20", 8), torch.arange(8) % 4)]
    theirs("fickle", fickle)
    blend = lowered(blend_for(model, graph, criteria=("fickle", "l1")), name, 0.0)
    importance = BlendedImportance(blend, model, example, batches)
    host = pruner(model, example, importance, iterative_steps=3)
    left = []
    for _ in range(3):
        host.step()
        importance._follow(host.DG)
        left.append(int(survivors(importance)[name].sum()))
    assert size > left[0] == left[1] == left[2] > 1
    assert f"note: '{name}' gives nothing at this step: fickle cannot rank what is left" in capsys.readouterr().err
    assert importance.check(host, 0.5) == pytest.approx(0.5, abs=1 / len(graph))


def fresh_ranks(blend, model, example, batches):
    """Of all groups, before anything is removed."""
    importance = BlendedImportance(blend, model, example, batches)
    pruner(copy.deepcopy(model), example, importance).step()
    return torch.cat([importance._ranks[group.name] for group in blend.groups])


@pytest.mark.parametrize(("loss", "criterion"), [("squared_norm", "taylor_fo"), ("divergence", "taylor_so")])
def test_a_blend_that_was_searched_without_labels_is_recomputed_without_them(loss, criterion):
    model, graph, example = network("vgg_bn")
    images = inputs("vgg_bn", 8)
    blend = blend_for(model, graph, criteria=(criterion, "l1"))
    with_labels, without = blend, blend.model_copy(update={"calibration_loss": loss})
    ranks = [
        [fresh_ranks(b, model, example, [(images, labels)]) for labels in (torch.arange(8) % 4, torch.arange(8) // 2)]
        for b in (with_labels, without)
    ]
    assert not torch.equal(*ranks[0])
    assert torch.equal(*ranks[1])
    table = score(model, graph, *reversed(label_free(loss, model, [(images, torch.zeros(8))])), [criterion, "l1"])
    mine = blend.recomputed_scores(table)
    order = np.argsort(np.concatenate([mine[g.name] for g in blend.groups]))
    assert np.all(np.diff(ranks[1][0].numpy()[order][: len(order) // 2]) == 1)  # the upper ones may be floors


def test_what_is_drawn_at_random_is_drawn_with_the_blends_seed():
    model, graph, example = network("vgg_bn")
    batches = [(inputs("vgg_bn", 8), torch.arange(8) % 4)]
    blend = blend_for(model, graph, criteria=("random", "l1"))
    seeds = [blend.model_copy(update={"seed": seed}) for seed in (0, 7, 7)]
    first, second, third = (fresh_ranks(b, model, example, batches) for b in seeds)
    assert not torch.equal(first, second)
    assert torch.equal(second, third)


def test_what_cannot_be_recomputed_is_refused_at_once():
    model, graph, example = network("vgg_bn")
    batches = [(inputs("vgg_bn", 8), torch.arange(8) % 4)]
    blend = blend_for(model, graph, criteria=("l1", "l2"))

    def spoken(*names):
        candidates = tuple(Spokesman(criterion=name, factor=1.0) for name in names)
        groups = (g.model_copy(update={"candidates": candidates}) for g in blend.groups)
        return blend.model_copy(update={"groups": tuple(groups)})

    for unusable, reason in (
        (spoken(), "those of group 'features.0' were searched channel by channel"),
        (spoken("lampp"), "got 'lampp'; did you mean 'lamp'"),
        (spoken("accuracy_ablation"), "criterion 'accuracy_ablation' needs a metric"),
    ):
        with pytest.raises(InputError, match=reason):
            BlendedImportance(unusable, model, example, batches)


def test_another_network_is_refused_at_once():
    model, graph, example = network("vgg_bn")
    batches = [(example, torch.arange(len(example)) % 4)]
    blend = blend_for(model, graph, criteria=("l1", "l2"))
    with pytest.raises(InputError, match=r"the network has no group 'features\.0', which the blend has a formula for"):
        BlendedImportance(blend, build("resnet20"), inputs("resnet20"), batches)
    longer = copy.deepcopy(model)
    longer.last = torch.nn.Linear(4, 4)
    longer.register_forward_hook(lambda module, _, outputs: module.last(outputs))
    with pytest.raises(InputError, match=r"another network: only this has a tensor 'last\.weight'"):
        BlendedImportance(blend, longer, example, batches)


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_group_without_scores_stays_whole(recomputed):
    model, graph, example = network("vgg_bn")
    batches = [(inputs("vgg_bn", 8), torch.arange(8) % 4)] if recomputed else ()
    blend = blend_for(model, graph, criteria=("l1", "l2"))
    without, *others = blend.groups
    importance = BlendedImportance(blend.model_copy(update={"groups": tuple(others)}), model, example, batches)
    host = pruner(model, example, importance, iterative_steps=2)
    for _ in range(2):
        host.step()
    share = importance.check(host, 0.5)
    assert share == pytest.approx(0.5, abs=1 / (len(graph) - without.size))
    assert survivors(importance)[without.name].all()
