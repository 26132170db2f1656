"""In the real Torch-Pruning: one shot and in steps, local and global, coupled groups, and its importances as ours."""

import copy
import gc
import json
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from blend.adapters.torch_pruning import BlendedImportance, UnreachedRatioWarning
from blend.blended import BlendedCriterion
from blend.errors import InputError
from blend.identity import OtherWeightsWarning
from blend.pruning import PrunedNetwork
from blend.tasks.networks import build_network
from criteria import ChannelGraph, CriterionError, score
from tests.networks import inputs

from .blends import blend_for
from .pruners import expected, network, pruner, survivors

HOSTS = 100
NETWORKS = ["resnet20", "resnet50", "densenet", "mobilenetv2", "vgg_bn", "unet"]


@pytest.mark.parametrize("name", NETWORKS)
def test_one_shot_and_global_is_the_blends_own_ranking(name):
    model, graph, example = network(name)
    blend = blend_for(model, graph)
    importance = BlendedImportance(blend, model, example)
    host = pruner(model, example, importance)
    host.step()
    assert importance.check(host, 0.5) == pytest.approx(0.5, abs=1 / len(graph))
    for group, alive in expected(blend, graph, 0.5).items():
        assert np.array_equal(survivors(importance)[group], alive), group
    model(example)


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "unet"])
def test_frozen_scores_follow_the_channels_through_steps(name):
    model, graph, example = network(name)
    blend = blend_for(model, graph)
    compared = []
    originals = {g.name: model.get_submodule(g.name).weight.detach().clone() for g in graph.groups}
    importance = BlendedImportance(blend, model, example)
    host = pruner(model, example, importance, iterative_steps=5)
    for _ in range(5):
        host.step()
    assert importance.check(host, 0.5) == pytest.approx(0.5, abs=1 / len(graph))
    for group, alive in expected(blend, graph, 0.5).items():
        assert np.array_equal(survivors(importance)[group], alive), group
        layer = model.get_submodule(group)
        assert layer.out_channels == alive.sum()
        if layer.weight.shape[1:] == originals[group].shape[1:]:  # the filters themselves say which are left
            assert torch.equal(layer.weight, originals[group][torch.from_numpy(alive)])
            compared.append(group)
    assert compared


def test_in_steps_the_pruner_misses_one_channel_for_each_group_with_a_single_one_left():
    model, graph, example = network("resnet20")
    blend = blend_for(model, graph, floor=0.0)
    lowest = {graph.groups[0].name, graph.groups[-1].name}
    scores = {g.name: tuple(np.array(g.scores) - 3 * (g.name in lowest)) for g in blend.groups}
    groups = tuple(g.model_copy(update={"scores": scores[g.name]}) for g in blend.groups)
    blend = blend.model_copy(update={"groups": groups})
    missed = []
    for steps in (1, 5):
        copied = copy.deepcopy(model)
        importance = BlendedImportance(blend, copied, example)
        host = pruner(copied, example, importance, iterative_steps=steps)
        for _ in range(steps):
            importance._follow(host.DG)
            alone = sum(alive.sum() == 1 for alive in survivors(importance).values())  # before the last step
            host.step()
        importance._follow(host.DG)
        missed.append((int(alone), round((0.5 - importance.removed) * len(graph))))
    assert missed == [(0, 0), (2, 2)]


def test_local_pruning_takes_the_lowest_of_each_group():
    model, graph, example = network("vgg_bn")
    blend = blend_for(model, graph)
    importance = BlendedImportance(blend, model, example)
    host = pruner(model, example, importance, global_pruning=False)
    host.step()
    importance._follow(host.DG)
    left = survivors(importance)
    importance._follow(tp.DependencyGraph().build_dependency(model, example))  # another graph: nothing new
    for group in blend.groups:
        width = model.get_submodule(group.name).weight.shape[0]
        assert width == int(group.size * 0.5)  # it rounds what stays down
        highest = np.argsort(group.scores, kind="stable")[group.size - width :]
        assert np.array_equal(np.flatnonzero(left[group.name]), np.sort(highest))


def test_a_ratio_that_is_not_reached_is_told():
    model, graph, example = network("resnet20")
    importance = BlendedImportance(blend_for(model, graph), model, example)
    host = pruner(model, example, importance, round_to=4)
    host.step()
    with pytest.warns(UnreachedRatioWarning, match=r"0\.9000 of \d+ channels were to be removed, and 0\.\d+ are"):
        importance.check(host, 0.9)


def test_equal_scores_do_not_take_too_much():
    model, graph, example = network("resnet20")
    blend = blend_for(model, graph)
    level = tuple(g.model_copy(update={"scores": (0.5,) * g.size}) for g in blend.groups)
    importance = BlendedImportance(blend.model_copy(update={"groups": level}), model, example)
    host = pruner(model, example, importance, ratio=0.25)
    host.step()
    assert importance.check(host, 0.25) == pytest.approx(0.25, abs=1 / len(graph))


def test_channels_that_were_removed_unseen_are_not_guessed():
    model, graph, example = network("resnet20")
    importance = BlendedImportance(blend_for(model, graph), model, example)
    pruner(model, example, tp.importance.MagnitudeImportance()).step()
    with pytest.raises(InputError, match=r"layer '.*' has lost channels by a pruner whose steps were not seen here"):
        pruner(model, example, importance, ratio=0.2).step()


def test_another_pruner_goes_on_where_the_first_has_stopped():
    model, graph, example = network("resnet20")
    blend = blend_for(model, graph)
    importance = BlendedImportance(blend, model, example)
    first = pruner(model, example, importance, ratio=0.25)
    first.step()
    importance.check(first, 0.25)
    left = sum(int(alive.sum()) for alive in survivors(importance).values())
    second = pruner(model, example, importance, ratio=0.2)
    second.step()
    importance.check(second, 1 - 0.8 * left / len(graph))
    kept = expected(blend, graph, importance.removed)
    assert sum(map(np.sum, kept.values())) == sum(map(np.sum, survivors(importance).values()))
    assert all(np.array_equal(kept[name], alive) for name, alive in survivors(importance).items())


def test_a_hundred_pruners_leave_no_network_behind():
    model, graph, example = network("plain")
    blend, seen = blend_for(model, graph), []
    for _ in range(HOSTS):
        copied = copy.deepcopy(model)
        importance = BlendedImportance(blend, copied, example)
        # fresh dictionaries: the pruner's own defaults are shared between all of them and keep every network alive
        host = tp.pruner.BasePruner(
            copied, example, importance, pruning_ratio=0.3, global_pruning=True, pruning_ratio_dict={}, num_heads={},
            out_channel_groups={}, in_channel_groups={}, customized_pruners={},
        )  # fmt: skip
        host.step()
        seen.append(weakref.ref(copied))
        del copied, host, importance
    gc.collect()
    assert sum(ref() is not None for ref in seen) <= 1


def test_another_network_is_refused_and_other_weights_are_warned_of(tmp_path):
    model, graph, example = network("resnet20")
    blend = blend_for(model, graph)
    blend.save(tmp_path / "a.blend.json")
    other, _, _ = network("vgg_bn")
    with pytest.raises(InputError, match=r"belongs to another network: .* has shape"):
        BlendedImportance(str(tmp_path / "a.blend.json"), other, inputs("vgg_bn"))
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.warns(OtherWeightsWarning):
        BlendedImportance(str(tmp_path / "a.blend.json"), model, example)


def resnet56():
    torch.manual_seed(0)
    return build_network("resnet56", in_channels=3, classes=10)


SCRIPT = """
import sys, torch, torch_pruning as tp
from blend.adapters.torch_pruning import BlendedImportance
sys.path.insert(0, sys.argv[2])
from tests.blend_tests.adapters.test_torch_pruning import resnet56
model, example = resnet56(), torch.randn(1, 3, 16, 16)
importance = BlendedImportance(sys.argv[1], model, example)
pruner = tp.pruner.BasePruner(model, example, importance, pruning_ratio=0.5, global_pruning=True, ignored_layers=[model.classifier])
pruner.step()
print(importance.check(pruner, 0.5))
"""  # noqa: E501


def test_a_script_of_ten_lines_prunes_a_resnet_56(tmp_path, pytestconfig):
    model = resnet56()
    graph = ChannelGraph.build(model, torch.randn(1, 3, 16, 16))
    blend_for(model, graph).save(tmp_path / "a.blend.json")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "a.blend.json"), str(pytestconfig.rootpath)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(0.5, abs=1 / len(graph))
    assert "Warning" not in done.stderr


class TestTheirImportances:
    def test_are_criteria(self, theirs):
        model, graph, _ = network("resnet20")
        theirs("tp_l2", tp.importance.MagnitudeImportance(p=2, normalizer=None, group_reduction="first"))
        batches = [(inputs("resnet20", 8), torch.arange(8) % 4)]
        table = score(model, graph, batches, F.cross_entropy, ["tp_l2", "l1"])
        for group in graph.groups:
            ours = torch.stack([
                model.get_submodule(m.layer).weight.flatten(1).square().sum(1) for m in group.producers
            ]).mean(0)
            assert np.allclose(table.get("tp_l2", group.name), ours.detach().numpy(), rtol=1e-5)
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_that_need_gradients_get_them(self, theirs):
        model, graph, _ = network("vgg_bn")
        theirs("tp_taylor", tp.importance.TaylorImportance(normalizer=None), gradients=True)
        batches = [(inputs("vgg_bn", 8, seed), torch.arange(8) % 4) for seed in (0, 1)]
        table = score(model, graph, batches, F.cross_entropy, ["tp_taylor"])
        scores = np.concatenate([table.get("tp_taylor", g.name) for g in graph.groups])
        assert np.isfinite(scores).all()
        assert (scores > 0).any()
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_see_the_same_gradients_in_whatever_batches_the_data_come(self, theirs):
        model, graph, _ = network("vgg_bn")
        theirs("tp_taylor", tp.importance.TaylorImportance(normalizer=None), gradients=True)
        images, labels = inputs("vgg_bn", 8), torch.arange(8) % 4
        in_batches = ([*zip(images.split(sizes), labels.split(sizes), strict=True)] for sizes in ([8], [7, 1]))
        one, two = (score(model, graph, batches, F.cross_entropy, ["tp_taylor"]) for batches in in_batches)
        for group in graph.groups:  # another order of summation, in float32
            assert np.allclose(one.get("tp_taylor", group.name), two.get("tp_taylor", group.name), rtol=1e-3, atol=1e-6)

    def test_of_the_wrong_length_are_refused(self, theirs):
        model, graph, _ = network("resnet20")
        theirs("tp_short", lambda group: torch.ones(3))
        batches = [(inputs("resnet20", 8), torch.arange(8) % 4)]
        with pytest.raises(CriterionError, match=r"importance 'tp_short' must give \d+ values for layer"):
            score(model, graph, batches, F.cross_entropy, ["tp_short"])


    def test_of_a_layer_that_begins_two_groups_count_in_both(self, theirs):
        torch.manual_seed(0)
        model, example = Joining().eval(), torch.randn(8, 3, 8, 8)
        graph = ChannelGraph.build(model, example)

        def norms(group):
            return group[0].dep.target.module.weight.detach().abs().flatten(1).sum(1)[group[0].idxs]

        theirs("tp_own", norms)
        table = score(model, graph, [(example, torch.arange(8) % 3)], F.cross_entropy, ["tp_own"])
        a, b, c = (getattr(model, name).weight.detach().abs().flatten(1).sum(1).numpy() for name in "abc")
        assert np.allclose(table.get("tp_own", "a"), (a + c[:4]) / 2)
        assert np.allclose(table.get("tp_own", "b"), (b + c[4:]) / 2)


class Joining(nn.Module):
    """Two layers side by side, to which a third is added."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.c, self.head = nn.Conv2d(3, 10, 3, padding=1), nn.Linear(10, 3)

    def forward(self, x):
        return self.head((torch.cat([self.a(x), self.b(x)], 1) + self.c(x)).relu().mean((2, 3)))


class Reordering(nn.Module):
    """Does something to the order of channels between two layers."""

    def __init__(self, reorder, width=8, groups=1):
        super().__init__()
        self.reorder = reorder
        self.a, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(width, 8, 3, padding=1, groups=groups)
        self.d, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.d(self.c(self.reorder(self.a(x).relu())).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Reordering(nn.ChannelShuffle(2)),
        lambda: Reordering(lambda x: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)),
        lambda: Reordering(lambda x: x.flip(1)),
        lambda: Reordering(lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)), 12),
        lambda: Reordering(nn.ChannelShuffle(2), groups=2),
        lambda: Reordering(nn.PixelShuffle(2), 2),
    ],
)
def test_an_order_of_channels_that_the_pruner_does_not_follow_is_refused(make):
    torch.manual_seed(0)
    model, example = make().eval(), torch.randn(2, 3, 8, 8)
    importance = BlendedImportance(blend_for(model, ChannelGraph.build(model, example)), model, example)
    with pytest.raises(InputError, match="would remove others of the inputs or outputs of layer 'c' than those of the"):
        pruner(model, example, importance).step()


@pytest.mark.parametrize("make", [lambda: Reordering(lambda x: torch.cat([x, -x], 1), 16), Joining])
def test_what_the_pruner_follows_is_pruned_as_the_file_says(make):
    torch.manual_seed(0)
    model, example = make().eval(), torch.randn(2, 3, 8, 8)
    graph, whole = ChannelGraph.build(model, example), copy.deepcopy(model)
    importance = BlendedImportance(blend_for(model, graph), model, example)
    host = pruner(model, example, importance)
    host.step()
    importance.check(host, importance.removed)
    alive = survivors(importance)
    assert not all(part.all() for part in alive.values())
    meant = PrunedNetwork(whole, graph).extract(np.concatenate([alive[group.name] for group in graph.groups]))
    assert torch.allclose(model(example), meant(example), atol=1e-6)


def test_a_loaded_file_serves_as_well(tmp_path):
    model, graph, example = network("resnet20")
    blend_for(model, graph).save(tmp_path / "a.blend.json")
    importances = [
        BlendedImportance(source, model, example)
        for source in (str(tmp_path / "a.blend.json"), BlendedCriterion.load(tmp_path / "a.blend.json"))
    ]
    groups = list(tp.DependencyGraph().build_dependency(model, example).get_all_groups(ignored_layers=[]))
    pairs = [[importance(group) for importance in importances] for group in groups]
    assert any(first is not None for first, _ in pairs)
    assert all(first is None or torch.equal(first, second) for first, second in pairs)


def test_their_importance_is_blended_by_a_task_whose_file_registers_it(tmp_path, pytestconfig):
    task = f"{pytestconfig.rootpath / 'tests' / 'blend_tests' / 'adapters' / 'foreign_task.py'}:small"
    options = "--criteria l1,tp_lamp --evaluations 12 --population 4 --workers 1 --no-random-search --json --name it"
    command = [sys.executable, "-m", "blend", "search", task, *options.split(), "--runs-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    singles = {b["name"] for b in json.loads(done.stdout)["baselines"] if b["kind"] == "single"}
    assert singles == {"l1", "tp_lamp"}
    unknown = subprocess.run([*command[:5], "--criteria", "tp_lamb"], capture_output=True, text=True)
    assert (unknown.returncode, "did you mean 'tp_lamp'" in unknown.stderr) == (2, True)
