import copy
import gc
import math
import pickle
import subprocess
import sys
import threading
import weakref
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from blend.errors import InputError
from blend.evaluation import HeldoutEvaluation, Judge, Settings, TestEvaluation, Workspace, pack, unpack
from blend.evaluation.workspace import _memory, check_portable
from blend.pruning import PrunedNetwork
from blend.task import Split, Splits, Task, accuracy, load_task, materialise
from criteria import ChannelGraph
from search.cargo import HELD
from search.errors import UnfitWorker

from ..pruning.test_slicing import pruned_by_torch_pruning
from ..small_networks import graph_of, images, random_keep, tiny, tiny_images

TASK = f"{Path(__file__).parents[1] / 'task_file.py'}:small"


def split(count=50, side=16, seed=1):
    targets = torch.randint(0, 5, (count,), generator=torch.Generator().manual_seed(seed))
    return Split(images(count, side, seed), targets, "held-out")


def judge_of(model, graph, loss=F.cross_entropy, calibration=None, **settings):
    calibration = images(40, seed=2) if calibration is None else calibration
    return Judge(model, graph, loss, accuracy, calibration, Settings(**{"batch_size": 16} | settings))


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_masks_survive_packing(bits):
    keep = np.array(bits)
    packed = pack(keep)
    assert len(packed) == -(-len(bits) // 8)
    assert np.array_equal(unpack(packed, len(bits)), keep)
    assert unpack(packed, len(bits)).dtype == np.bool_


def test_keeping_everything_is_the_network_as_it_is():
    model, graph = graph_of("resnet20")
    heldout = split()
    answer = judge_of(model, graph).judge(np.ones(len(graph), dtype=bool), heldout)
    with torch.no_grad():
        outputs = model(heldout.inputs)
    # Other memory layout and batches than here: float32 rounding.
    assert answer["loss"] == pytest.approx(float(F.cross_entropy(outputs, heldout.targets)), rel=1e-5)
    assert answer["fitness"] == -answer["loss"]
    assert answer["metric"] == float((outputs.argmax(1) == heldout.targets).double().mean())
    assert answer["reduction"] == 0.0


def recalibrated_by_training(model, batches):
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return model.eval()


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2"])
def test_a_candidate_is_pruned_recalibrated_and_measured(name):
    model, graph = graph_of(name)
    keep, heldout, calibration = random_keep(graph, 1), split(), images(48, seed=2)
    by_hand = pruned_by_torch_pruning(model, graph, keep, images(2))
    by_hand = recalibrated_by_training(by_hand, [calibration[:40]])
    with torch.no_grad():
        outputs = by_hand(heldout.inputs)
        unprepared = PrunedNetwork(model, graph).prune(keep)(heldout.inputs)
    judge = judge_of(model, graph, calibration=calibration, recalibration_images=40)
    loss, correct = judge.measure(keep, heldout)
    # The same arithmetic in another memory layout: float32 rounding, through up to 53 layers.
    assert loss == pytest.approx(float(F.cross_entropy(outputs, heldout.targets)), rel=1e-4)
    assert loss != pytest.approx(float(F.cross_entropy(unprepared, heldout.targets)), rel=1e-3)
    assert correct.tolist() == (outputs.argmax(1) == heldout.targets).double().tolist()
    assert judge.judge(keep, heldout)["cost"] == judge.cost(keep)


def test_the_answer_does_not_depend_on_what_was_judged_before():
    model, graph = graph_of("resnet20")
    judge, heldout = judge_of(model, graph), split()
    answers = [judge.judge(random_keep(graph, seed), heldout) for seed in (1, 2, 1)]
    assert answers[0] == answers[2]
    assert answers[0] != answers[1]


def test_the_network_is_not_touched():
    model, graph = graph_of("resnet20")
    before = {name: (tensor.stride(), tensor.clone()) for name, tensor in model.state_dict().items()}
    judge_of(model, graph).judge(random_keep(graph, 1), split())
    after = model.state_dict()
    assert all(after[name].stride() == stride and torch.equal(after[name], t) for name, (stride, t) in before.items())


def test_without_recalibration_images_statistics_stay():
    model, graph = graph_of("resnet20")
    keep, heldout = random_keep(graph, 1), split()
    with torch.no_grad():
        expected = F.cross_entropy(PrunedNetwork(model, graph).prune(keep)(heldout.inputs), heldout.targets)
    loss, _ = judge_of(model, graph, recalibration_images=0).measure(keep, heldout)
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_recalibration_takes_the_images_together_whatever_the_batches():
    """Also where the last batch would be a single image, which alone has no variance."""
    flat = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)).eval()
    graph = ChannelGraph.build(flat, torch.randn(2, 3))
    calibration, inputs = torch.randn(33, 3), Split(torch.randn(9, 3), torch.zeros(9, dtype=torch.long), "held-out")
    losses = []
    for size in (1, 16, 33):
        judge = judge_of(flat, graph, calibration=calibration, recalibration_images=33, batch_size=size)
        losses.append(judge.judge(random_keep(graph, 1), inputs)["loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2"])
def test_half_precision_is_nearly_the_same(name):
    model, graph = graph_of(name)
    keep, heldout = random_keep(graph, 1), split()
    exact, rough = judge_of(model, graph), judge_of(model, graph, precision=torch.bfloat16)
    losses = [judge.judge(keep, heldout)["loss"] for judge in (exact, rough)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]
    assert rough.judge(keep, heldout) == rough.judge(keep, heldout)


def test_fitness_is_the_loss_or_the_metric():
    model, graph = graph_of("resnet20")
    keep, heldout = random_keep(graph, 1), split()
    by_loss = judge_of(model, graph, fitness="loss").judge(keep, heldout)
    by_metric = judge_of(model, graph, fitness="metric", cost="params").judge(keep, heldout)
    assert by_loss["fitness"] == -by_loss["loss"] != by_metric["fitness"]
    assert by_metric["fitness"] == by_metric["metric"] == by_loss["metric"]
    assert by_metric["cost"] == sum(p.numel() for p in PrunedNetwork(model, graph).extract(keep).parameters())


@pytest.mark.parametrize("fitness", ["loss", "metric"])
def test_judging_ends_early_if_a_candidate_falls_short_of_its_rival(fitness):
    model, graph = graph_of("resnet20")
    heldout = split(400)
    with torch.no_grad():
        heldout = Split(heldout.inputs, model(heldout.inputs).argmax(1), "held-out")
    judge = judge_of(model, graph, fitness=fitness)
    rival = judge.judge(random_keep(graph, 1, share=0.95), heldout)
    hopeless = judge.judge(random_keep(graph, 2, share=0.3), heldout, rival["chunks"])
    assert hopeless["share"] < 0.6
    assert len(hopeless["chunks"]) == round(25 * hopeless["share"])
    assert hopeless["fitness"] < rival["fitness"]
    to_the_end = judge.judge(random_keep(graph, 2, share=0.3), heldout)
    assert to_the_end["fitness"] < rival["fitness"]
    assert hopeless["chunks"] == to_the_end["chunks"][: len(hopeless["chunks"])]
    assert to_the_end["fitness"] == pytest.approx(float(np.mean(to_the_end["chunks"])))
    assert "share" not in to_the_end


@pytest.mark.parametrize(("batch_size", "looks"), [(8, 3), (64, 3), (96, 2), (512, 1)])
def test_looks_are_64_examples_apart_however_small_batches_are(monkeypatch, batch_size, looks):
    model, graph = graph_of("resnet20")
    seen = []
    monkeypatch.setattr("blend.evaluation.judge.is_hopeless", lambda chunks, *_: seen.append(len(chunks)))
    judge, heldout, keep = judge_of(model, graph, batch_size=batch_size), split(192), random_keep(graph, 1)
    judge.judge(keep, heldout, judge.judge(keep, heldout)["chunks"])
    assert len(seen) == looks


def test_a_candidate_that_does_not_fall_short_is_judged_as_if_there_were_no_rival():
    model, graph = graph_of("resnet20")
    judge, heldout, keep = judge_of(model, graph), split(100), random_keep(graph, 1)
    alone = judge.judge(keep, heldout)
    assert judge.judge(keep, heldout, [chunk - 1 for chunk in alone["chunks"]]) == alone


def test_a_loss_that_is_not_a_number_comes_through():
    model, graph = graph_of("resnet20")
    judge = judge_of(model, graph, loss=lambda outputs, targets: outputs.sum() * float("nan"))
    answer = judge.judge(random_keep(graph, 1), split())
    assert math.isnan(answer["fitness"])
    assert 0 <= answer["metric"] <= 1


def test_an_image_that_the_network_makes_no_number_of_shows():
    model, graph = graph_of("resnet20")
    heldout, everything = split(), np.ones(len(graph), dtype=bool)
    judge = judge_of(model, graph)
    heldout.inputs[20] = math.nan
    assert math.isnan(judge.judge(everything, heldout)["loss"])
    assert math.isnan(judge.measure(random_keep(graph, 1), heldout)[0])


def test_the_loss_is_the_mean_over_examples_whatever_the_batches():
    model = tiny()
    graph = ChannelGraph.build(model, tiny_images(2))
    heldout = Split(tiny_images(7), torch.tensor([0, 1, 1, 0, 1, 1, 0]), "held-out")
    keep = np.array([True, True, False, True, True, False, True])
    losses = []
    for size in (2, 3, 7):
        judge = judge_of(model, graph, calibration=tiny_images(8), recalibration_images=0, batch_size=size)
        losses.append(judge.measure(keep, heldout)[0])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)  # sums of float32


SCRIPT = """
import pickle, sys
import torch
torch.set_num_threads(1)
evaluate, test, phenotypes = pickle.load(open(sys.argv[1], "rb"))
answers = [(evaluate(phenotype), test(phenotype).tobytes()) for phenotype in phenotypes]
pickle.dump(answers, open(sys.argv[2], "wb"))
"""


def test_a_worker_process_gives_the_same_bits(tmp_path):
    task = load_task(TASK, {"steps": "3"}, 0)
    splits = Splits(*(materialise(data, "split") for data in (task.calibration, task.heldout, task.test)))
    graph = ChannelGraph.build(task.model, task.example_input)
    settings = Settings(recalibration_images=100, batch_size=32)
    workspace = Workspace(str(tmp_path / "work"), TASK, token="1")
    workspace.write(task, graph, splits, settings)
    phenotypes = [pack(random_keep(graph, seed)) for seed in range(3)]
    evaluate, test = HeldoutEvaluation(workspace), TestEvaluation(workspace)
    (tmp_path / "question").write_bytes(pickle.dumps((evaluate, test, phenotypes)))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "question"), str(tmp_path / "answer")]
    subprocess.run(command, check=True, timeout=120)
    answers = pickle.loads((tmp_path / "answer").read_bytes())
    assert answers == [(evaluate(phenotype), test(phenotype).tobytes()) for phenotype in phenotypes]
    keep = unpack(phenotypes[0], len(graph))
    direct = Judge(task.model, graph, task.loss, task.metric, splits.calibration.inputs, settings)
    # Not from files but from memory, of another layout: float32 rounding.
    assert answers[0][0]["loss"] == pytest.approx(direct.measure(keep, splits.heldout)[0], rel=1e-5)


JUDGES = """
import torch.nn.functional as F

def loss(outputs, targets):
    return F.cross_entropy(outputs, targets)

def metric(outputs, targets):
    return (outputs.argmax(1) == targets).float()
"""


@pytest.mark.parametrize(
    ("what", "otherwise"),
    [("loss", lambda o, t: 3 * F.cross_entropy(o, t)), ("metric", lambda o, t: 1 - accuracy(o, t))],
)
def test_a_worker_that_has_imported_another_loss_or_metric_judges_nothing(tmp_path, monkeypatch, what, otherwise):
    task = load_task(TASK, {"steps": "3"}, 0)
    splits = Splits(*(materialise(data, "split") for data in (task.calibration, task.heldout, task.test)))
    graph = ChannelGraph.build(task.model, task.example_input)
    (tmp_path / "judges_of_it.py").write_text(JUDGES)
    monkeypatch.syspath_prepend(tmp_path)
    judges = import_module("judges_of_it")
    task.loss, task.metric = judges.loss, judges.metric
    workspace = Workspace(str(tmp_path / "work"), TASK, token=what)
    workspace.write(task, graph, splits, Settings())
    evaluate, phenotype = HeldoutEvaluation(workspace), pack(random_keep(graph, 1))
    assert math.isfinite(evaluate(phenotype)["loss"])
    _memory.cache_clear()
    monkeypatch.setattr(judges, what, otherwise)
    rule = rf"cannot be loaded: the task's {what} must say what it says where .*, which workers do not call$"
    with pytest.raises(UnfitWorker, match=rule):
        evaluate(phenotype)


def test_what_cannot_be_loaded_is_no_candidates_fault(tmp_path):
    evaluate = HeldoutEvaluation(Workspace(str(tmp_path / "nowhere"), TASK, token="none"))
    with pytest.raises(UnfitWorker, match=r"cannot be loaded: FileNotFoundError: .*nowhere"):
        evaluate(b"any")


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_and_data_of_every_precision(tmp_path, precision):
    task = load_task(TASK, {"steps": "1"}, 0)
    task.model.to(precision)
    pairs = (task.calibration, task.heldout, task.test)
    splits = Splits(*(Split(inputs.to(precision), targets, "split") for inputs, targets in pairs))
    graph = ChannelGraph.build(task.model, splits.test.inputs[:2])
    workspace = Workspace(str(tmp_path / "work"), TASK, token=str(precision))
    workspace.write(task, graph, splits, Settings())
    assert torch.equal(workspace.split("test", torch.device("cpu")).inputs, splits.test.inputs)
    assert math.isfinite(HeldoutEvaluation(workspace)(pack(random_keep(graph, 1)))["loss"])


class Flattening(nn.Module):
    """Takes its maps apart by ``view``, which wants channels first."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6 * 256, 5)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        return self.head(x.view(x.size(0), -1))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_forward_that_wants_channels_first_has_them(layout, precision):
    model = Flattening().eval()
    graph, heldout = ChannelGraph.build(model, images(2)), split()
    keep = np.arange(len(graph)) % 2 == 0
    calibration = images(40, seed=2).to(memory_format=layout)
    judge = judge_of(model, graph, calibration=calibration, precision=precision)
    pruned = PrunedNetwork(model, graph).extract(keep)
    expected = recalibrated_by_training(pruned, [images(40, seed=2)])(heldout.inputs).detach()
    loss = float(F.cross_entropy(expected, heldout.targets))
    assert judge.judge(keep, heldout)["loss"] == pytest.approx(loss, rel=1e-4 if precision is None else 0.05)


def test_such_a_forward_is_loaded_by_workers_whose_images_have_the_channels_last(tmp_path):
    model = Flattening().eval()
    graph, heldout = ChannelGraph.build(model, images(2)), split()
    pair = (heldout.inputs, heldout.targets)
    task = Task(model, images(2), (images(40, seed=2), heldout.targets[:40]), pair, pair)
    workspace = Workspace(str(tmp_path / "work"), TASK, token="flattening")
    workspace.write(task, graph, Splits(Split(*task.calibration, "calibration"), heldout, heldout), Settings())
    keep = np.arange(len(graph)) % 2 == 0
    there = HeldoutEvaluation(workspace)(pack(keep))
    here = judge_of(model, graph, batch_size=64).judge(keep, heldout)
    assert there["loss"] == pytest.approx(here["loss"], rel=1e-6)


def by_view(outputs, targets):
    return -(outputs - targets).square().view(len(outputs), -1).mean(1)


def test_a_loss_of_maps_may_take_them_apart_by_view(tmp_path):
    """Outputs and targets are images, too, and inside of the network those have the channels last."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()
    graph = ChannelGraph.build(model, images(2))
    calibration, heldout, test = (Split(images(40, seed=s), images(40, seed=s), "split") for s in range(3))
    task = Task(model, images(2), *((s.inputs, s.targets) for s in (calibration, heldout, test)), mean_by_view, by_view)
    workspace = Workspace(str(tmp_path / "work"), TASK, token="by view")
    workspace.write(task, graph, Splits(calibration, heldout, test), Settings())
    unpruned = HeldoutEvaluation(workspace)(pack(np.ones(len(graph), dtype=bool)))
    expected = by_view(model(heldout.inputs), heldout.targets).mean().item()
    assert unpruned["metric"] == pytest.approx(expected, rel=1e-5)


def mean_by_view(outputs, targets):
    return -by_view(outputs, targets).mean()


@pytest.mark.parametrize("of", ["model", "loss"])
def test_a_task_that_cannot_get_to_workers_is_refused_first(of):
    task, lock = load_task(TASK, {"steps": "1"}, 0), threading.Lock()
    check_portable(task, None)
    if of == "model":
        task.model.lock = lock
    else:
        task.loss = lambda outputs, targets: F.cross_entropy(outputs, targets) if lock else None
    with pytest.raises(InputError, match=r"such as can be pickled, .* got TypeError: cannot pickle '_thread.lock'"):
        check_portable(task, None)


def test_a_worker_keeps_what_it_has_loaded_of_few_workspaces(tmp_path):
    task = load_task(TASK, {"steps": "1"}, 0)
    splits = Splits(*(materialise(data, "split") for data in (task.calibration, task.heldout, task.test)))
    graph = ChannelGraph.build(task.model, task.example_input)
    judges = []
    for number in range(HELD + 1):
        workspace = Workspace(str(tmp_path / f"work-{number}"), TASK, token=f"{number} of many")
        workspace.write(task, graph, splits, Settings())
        assert workspace.judge() is workspace.judge()
        assert workspace.judge(half=True) is workspace.judge(half=True) is not workspace.judge()
        judges += [weakref.ref(workspace.judge()), weakref.ref(workspace.judge(half=True))]
    gc.collect()
    assert [judge() is None for judge in judges] == [True] * 2 + [False] * 2 * HELD


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_a_network_with_computed_weights_travels_to_workers(tmp_path, name):
    task = load_task(TASK, {"steps": "1"}, 0)
    last = getattr(nn.utils.parametrizations, name)(nn.Conv2d(8, 8, 3))
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), last]
    task.model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    splits = Splits(*(Split(*pair, "split") for pair in (task.calibration, task.heldout, task.test)))
    graph = ChannelGraph.build(task.model, splits.test.inputs[:2])
    workspace = Workspace(str(tmp_path / "work"), TASK, token=name)
    workspace.write(task, graph, splits, Settings())
    keep = random_keep(graph, 1)
    here = Judge(task.model, graph, task.loss, task.metric, splits.calibration.inputs[:256], Settings())
    there = HeldoutEvaluation(workspace)(pack(keep))
    assert nn.utils.parametrize.is_parametrized(last)
    assert there["loss"] == pytest.approx(here.judge(keep, splits.heldout)["loss"], rel=1e-6)


@pytest.mark.parametrize("images", [0, 1, 2])
def test_a_batchnorm_of_one_value_an_image_needs_no_recalibration_images_to_be_loaded(tmp_path, images):
    task = load_task(TASK, {"steps": "1"}, 0)
    splits = Splits(*(materialise(data, "split") for data in (task.calibration, task.heldout, task.test)))
    features = splits.heldout.inputs[0].numel()
    layers = (nn.Flatten(), nn.Linear(features, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))
    task.model = nn.Sequential(*layers).eval()
    graph = ChannelGraph.build(task.model, task.example_input)
    workspace = Workspace(str(tmp_path / "work"), TASK, token=f"of {images}")
    workspace.write(task, graph, splits, Settings(recalibration_images=images))
    assert math.isfinite(HeldoutEvaluation(workspace)(pack(random_keep(graph, 1)))["loss"])


def test_a_new_writing_is_read_again(tmp_path):
    task = load_task(TASK, {"steps": "1"}, 0)
    splits = Splits(*(materialise(data, "split") for data in (task.calibration, task.heldout, task.test)))
    graph = ChannelGraph.build(task.model, task.example_input)
    answers = []
    for token, batch in (("1", 32), ("2", 32)):
        workspace = Workspace(str(tmp_path / "work"), TASK, token)
        workspace.write(task, graph, splits, Settings(batch_size=batch))
        answers.append(HeldoutEvaluation(workspace)(pack(random_keep(graph, 1))))
        nn.init.zeros_(task.model.head.weight)
        nn.init.zeros_(task.model.head.bias)
    assert answers[0] != answers[1]
    assert answers[1]["loss"] == pytest.approx(math.log(4), rel=1e-6)  # four classes, all alike
