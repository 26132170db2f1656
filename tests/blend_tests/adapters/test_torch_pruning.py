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

from blend.adapters.torch_pruning import BlendedImportance, UnreachedRatioWarning, register_importance
from blend.blended import BlendedCriterion
from blend.blended.formula import Blender, GroupFormula
from blend.errors import InputError
from blend.identity import OtherWeightsWarning
from blend.tasks.networks import build_network
from criteria import CRITERIA, ChannelGraph, CriterionError, score
from criteria.losses import label_free
from tests.networks import build, inputs

from .blends import blend_for

HOSTS = 100
NETWORKS = ["resnet20", "resnet50", "densenet", "mobilenetv2", "vgg_bn", "unet"]


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


@pytest.fixture
def theirs():
    names = []

    def registered(*arguments, **options):
        names.append(arguments[0])
        return register_importance(*arguments, **options)

    yield registered
    for name in names:
        CRITERIA._criteria.pop(name, None)


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


def test_local_pruning_takes_the_lowest_of_each_group():
    model, graph, example = network("vgg_bn")
    blend = blend_for(model, graph)
    importance = BlendedImportance(blend, model, example)
    pruner(model, example, importance, global_pruning=False).step()
    importance._follow(tp.DependencyGraph().build_dependency(model, example))  # another graph: nothing new
    for group in blend.groups:
        width = model.get_submodule(group.name).weight.shape[0]
        assert width == int(group.size * 0.5)  # it rounds what stays down


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
