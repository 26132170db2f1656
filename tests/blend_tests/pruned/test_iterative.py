"""``blend prune`` with fine-tuning and in steps: the saved network, the record, and going on after any kind of end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from blend import load_pruned
from blend.blended import BlendedCriterion, BlendedGroup, Spokesman
from blend.blended.formula import Blender, GroupFormula
from blend.cli import run
from blend.config import search_config
from blend.identity import NetworkIdentity
from blend.problem import prepare
from blend.pruned.iterative import RemainingCost, composed
from blend.pruned.saved import WEIGHTS, PruningRecord
from blend.pruned.unfinished import Unfinished

from ..task_file import SmallNetwork, tunable

FILE = Path(__file__).parents[1] / "task_file.py"
TASK, WITHOUT = f"{FILE}:tunable", f"{FILE}:small"
TUNED = ["l1", TASK, "--compensate", "channel", "--finetune", "4"]
STEPS = ["l1", TASK, "--compensate", "channel", "--finetune", "5", "--iterative", "2", "--schedule", "linear"]


@pytest.fixture
def criterion(tmp_path):
    """A file by which the second layer gives a fifth of itself less than the first."""
    problem = prepare(search_config(task=WITHOUT, criteria=("bn_scale",)))
    graph, blender = problem.graph, Blender(problem.table)
    groups = [
        BlendedGroup(
            name=group.name, size=group.size, layers=(group.name,), clusters=(("bn_scale",),), offset=offset,
            candidates=(Spokesman(criterion="bn_scale", factor=1.0),),
            scores=blender.scores({group.name: GroupFormula((("bn_scale", 1.0),), offset)})[group.name],
        )
        for group, offset in zip(graph.groups, (0.0, 0.2), strict=True)
    ]  # fmt: skip
    shapes = {name: tuple(tensor.shape) for name, tensor in problem.task.model.state_dict().items()}
    BlendedCriterion(
        groups=groups, normalisation="rank", allocation="global", reduction=0.5, cost="macs", criteria=(),
        network=NetworkIdentity(layout=graph.fingerprint, weights="", shapes=shapes),
        task={}, seed=0, metrics={}, versions={},
    ).save(tmp_path / "criterion.json")  # fmt: skip
    return tmp_path / "criterion.json"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The bytes that the two commands end with when nothing stops them."""
    made = {}
    for name, arguments in (("tuned", TUNED), ("steps", STEPS)):
        out = tmp_path_factory.mktemp("undisturbed") / "out"
        assert run(["prune", *arguments, "--out", str(out)]) == 0
        made[name] = out
    return made


def prune(capsys, out, *arguments, code=0):
    capsys.readouterr()
    assert run(["prune", *map(str, arguments), "--out", str(out)]) == code
    written, told = capsys.readouterr()
    return json.loads(written) if written else told.strip().splitlines()[-1].removeprefix("error: ")


def accuracy(network, data):
    with torch.no_grad():
        return float((network(data[0]).argmax(1) == data[1]).float().mean())


def weights(out):
    return (out / WEIGHTS).read_bytes()


def test_a_finetuned_network_is_saved_with_its_course(undisturbed):
    record, task = PruningRecord.load(undisturbed["tuned"]), tunable()
    assert [stage["stage"] for stage in record.stages] == ["unpruned", "pruned", "compensated", "fine-tuned"]
    _, _, before, after = record.stages
    assert after["macs"] == before["macs"]
    assert after["heldout_metric"] >= before["heldout_metric"]
    network = load_pruned(undisturbed["tuned"], SmallNetwork)
    assert accuracy(network, task.heldout) == pytest.approx(after["heldout_metric"])
    [step] = record.finetuning["steps"]
    assert [row["epoch"] for row in step["course"]] == [0, 1, 2, 3, 4]
    assert step["course"][0]["heldout_loss"] == before["heldout_loss"]
    assert step["course"][step["kept"]]["heldout_loss"] == after["heldout_loss"]
    assert record.finetuning["recipe"]["learning_rate"] == task.finetune.learning_rate
    assert [path.name for path in undisturbed["tuned"].parent.iterdir()] == ["out"]


def test_steps_end_at_the_reduction_of_the_unpruned_network(undisturbed):
    record = PruningRecord.load(undisturbed["steps"])
    titles = ["unpruned", "step 1 of 2", "pruned", "compensated", "fine-tuned"]
    assert [stage["stage"] for stage in record.stages] == titles
    unpruned, first, *_, last = (stage["macs"] for stage in record.stages)
    assert first <= 0.75 * unpruned
    assert last <= 0.5 * unpruned < first
    assert record.pruning["achieved"] == pytest.approx(1 - last / unpruned)
    assert [step["epochs"] for step in record.finetuning["steps"]] == [2, 3]
    network = load_pruned(undisturbed["steps"], SmallNetwork)
    assert [network.features[0].out_channels, network.features[3].out_channels] == [
        group.size - len(group.removed) for group in record.groups
    ]
    assert accuracy(network, tunable().heldout) == pytest.approx(record.stages[-1]["heldout_metric"])


def test_steps_that_change_no_ranking_end_where_one_does(capsys, tmp_path, criterion):
    """Nothing is trained, so that the scales of BatchNorm stay what they are."""
    for name, asked in (("name", ["bn_scale"]), ("file", [criterion])):
        groups = []
        for count, schedule in (("1", "linear"), ("3", "linear"), ("4", "cubic")):
            steps = ["--iterative", count, "--schedule", schedule, "--reduction", "0.6"]
            told = prune(capsys, tmp_path / f"{name}{count}", *asked, WITHOUT, *steps, "--json")
            assert len(told["stages"]) == 1 + int(count)
            groups.append(told["groups"])
        assert groups[0] == groups[1] == groups[2]
        shares = [len(group["removed"]) / group["size"] for group in groups[0]]
        assert shares[0] - shares[1] == pytest.approx(0.2 if name == "file" else 0.0, abs=0.09)
        assert 0.6 <= told["pruning"]["achieved"] < 0.7


@pytest.mark.slow
def test_it_recovers_what_a_heavy_cut_has_cost(capsys, tmp_path):
    asked = ["cap", "digits", "--reduction", "0.7", "--compensate", "sequential", "--finetune", "10", "--json"]
    for steps in ("1", "3"):
        *_, before, after = prune(capsys, tmp_path / steps, *asked, "--iterative", steps)["stages"]
        assert after["heldout_loss"] < before["heldout_loss"]
        assert after["heldout_metric"] > 0.92  # .50 before compensation


def test_steps_may_keep_round_numbers(capsys, tmp_path):
    steps = ["--iterative", "2", "--round-to", "4"]
    told = prune(capsys, tmp_path / "out", "l1", WITHOUT, *steps, "--json")
    assert [(group["size"] - len(group["removed"])) % 4 for group in told["groups"]] == [0, 0]


def test_masks_and_costs_are_about_the_unpruned_network():
    class Cost:
        kind, full = "macs", 10

        def __call__(self, keep):
            return int(keep.sum())

        def reduction(self, keep):
            return 1 - self(keep) / self.full

    first, second = np.arange(10) % 2 == 0, np.array([True, False, True, True, False])
    assert np.flatnonzero(composed(first, second)).tolist() == [0, 4, 6]
    assert RemainingCost(Cost(), first).reduction(second) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("name", "arguments", "number", "saves"),
    [("tuned", TUNED, signal.SIGINT, (3,)), ("steps", STEPS, signal.SIGTERM, (1, 2, 1, 3))],
)
def test_a_signal_stops_it_and_the_same_command_goes_on(
    capsys, tmp_path, monkeypatch, undisturbed, name, arguments, number, saves
):
    """After the first pruning, in the middle of a step's epochs, between two steps: wherever something is saved."""
    out, save = tmp_path / "out", Unfinished.save
    for stop in saves:
        count = iter(range(1, 100))

        def interrupted(self, *state, count=count, stop=stop):
            save(self, *state)
            if next(count) == stop:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Unfinished, "save", interrupted)
        told = prune(capsys, out, *arguments, code=130)
        assert told == f"'{out}' interrupted; the same command goes on from what is saved, the last whole epoch or step"
        assert not out.exists()
        monkeypatch.setattr(Unfinished, "save", save)
    prune(capsys, out, *arguments)
    assert weights(out) == weights(undisturbed[name])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_killed_process_goes_on_with_the_same_bytes(capsys, tmp_path):
    arguments = ["l1", TASK, "--finetune", "12"]
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-m", "blend", "prune", *arguments, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    saved = tmp_path / ".out.unfinished" / "epochs-1.safetensors"
    while not saved.exists():
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    _, state = Unfinished(out).load("epochs-1")
    assert 1 <= state["course"][-1]["epoch"] < 12
    prune(capsys, out, *arguments)
    prune(capsys, whole, *arguments)
    assert weights(out) == weights(whole)
    assert PruningRecord.load(out).finetuning == PruningRecord.load(whole).finetuning


def test_nothing_is_left_of_what_had_not_begun(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("blend.pruned.iterative.recalibrated", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    told = prune(capsys, tmp_path / "out", *TUNED, code=130)
    assert told == f"'{tmp_path / 'out'}' interrupted; nothing was begun and nothing is left"
    assert list(tmp_path.iterdir()) == []


def left_behind(capsys, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("blend.pruned.iterative.Steps._trained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        prune(capsys, tmp_path / "out", *TUNED, code=130)


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        ([*TUNED, "--learning-rate", "0.02"], "finetune.learning_rate 0.05 in place of 0.02"),
        ([*TUNED, "--seed", "1"], "seed 0 in place of 1"),
        (["l2", *TUNED[1:]], "criteria ['l1'] in place of ['l2']"),
        (TUNED[:4], "finetune 4 in place of None"),
    ],
)
def test_what_another_request_left_is_not_touched(capsys, tmp_path, monkeypatch, arguments, difference):
    left_behind(capsys, tmp_path, monkeypatch)
    told = prune(capsys, tmp_path / "out", *arguments, code=2)
    assert told.startswith(f"'{tmp_path / '.out.unfinished'}' holds what another request has left unfinished, with ")
    assert difference in told
    assert told.endswith("give that one again to go on with it, or remove the folder to begin anew")
    assert Unfinished(tmp_path / "out").begun


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"seed": 1}'])
def test_a_request_of_which_nothing_was_saved_is_in_nobodys_way(content, tmp_path):
    unfinished = Unfinished(tmp_path / "out")
    unfinished.folder.mkdir()
    (unfinished.folder / "request.json").write_bytes(content)
    with unfinished.held({"seed": 0}, wanted=True):
        assert json.loads((unfinished.folder / "request.json").read_text()) == {"seed": 0}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"])
def test_a_damaged_request_says_what_to_do(capsys, tmp_path, monkeypatch, content):
    left_behind(capsys, tmp_path, monkeypatch)
    (tmp_path / ".out.unfinished" / "request.json").write_bytes(content)
    told = prune(capsys, tmp_path / "out", *TUNED, code=2)
    assert "request.json' cannot be read (" in told
    assert told.endswith(f"remove '{tmp_path / '.out.unfinished'}' to begin anew")


def test_two_processes_do_not_make_the_same_folder(capsys, tmp_path):
    with Unfinished(tmp_path / "out").held({}, wanted=True):
        assert "is being made by another process" in prune(capsys, tmp_path / "out", *TUNED, code=2)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_says_what_to_do(capsys, tmp_path, monkeypatch):
    left_behind(capsys, tmp_path, monkeypatch)
    (tmp_path / ".out.unfinished" / "position.safetensors").write_bytes(b"nothing")
    told = prune(capsys, tmp_path / "out", *TUNED, code=2)
    assert "cannot be read" in told
    assert told.endswith(f"remove '{tmp_path / '.out.unfinished'}' to begin anew")


def test_a_full_disk_keeps_what_was_saved(capsys, tmp_path, monkeypatch, undisturbed):
    left_behind(capsys, tmp_path, monkeypatch)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("blend.pruned.unfinished.save_file", full)
        told = prune(capsys, tmp_path / "out", *TUNED, code=3)
    assert "No space left on device; what it held is still there, and the same command goes on from it" in told
    prune(capsys, tmp_path / "out", *TUNED)
    assert weights(tmp_path / "out") == weights(undisturbed["tuned"])


def test_the_way_is_kept_until_the_network_is_on_disk(capsys, tmp_path, monkeypatch):
    left_behind(capsys, tmp_path, monkeypatch)
    sync = os.fsync

    def synced(descriptor):
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()) and (tmp_path / "out").exists():
            raise OSError(5, "Input/output error")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        assert "Input/output error; nothing of it is left" in prune(capsys, tmp_path / "out", *TUNED, code=3)
    assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"]
    prune(capsys, tmp_path / "out", *TUNED)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "complaint", "code"),
    [
        (["l1", WITHOUT, "--finetune", "2"], "task 'task_file:small' must say what to fine-tune on", 2),
        (["l1", TASK, "--finetune", "1", "--iterative", "2"], "finetune must be at least one epoch for each", 2),
        (["l1", TASK, "--finetune", "2", "--learning-rate", "1e20"], "learning_rate 1e+20 is too high for it", 3),
        (["l1", TASK, "--distill", "0.5"], "distill must be left out without --finetune, got 0.5", 2),
        (["l1", WITHOUT, "--iterative", "2", "--reduction", "0.99"], "reduction 0.99 of macs cannot be reached", 2),
    ],
)
def test_refused_with_nothing_left(capsys, tmp_path, arguments, complaint, code):
    assert complaint in prune(capsys, tmp_path / "out", *arguments, code=code)
    assert list(tmp_path.iterdir()) == []


def test_training_data_must_be_apart_from_what_judges(capsys, tmp_path):
    file = tmp_path / "task.py"
    file.write_text(FILE.read_text().replace("FineTuning(task.calibration,", "FineTuning(task.test,"))
    told = prune(capsys, tmp_path / "out", "l1", f"{file}:tunable", "--finetune", "1", code=2)
    assert "the training and test splits must be disjoint" in told


@pytest.mark.parametrize(
    ("reduction", "rate", "said"), [("0.5", "1e-12", True), ("0.8", "0.05", False)], ids=["nothing", "something"]
)
def test_fine_tuning_that_brings_nothing_is_told(capsys, tmp_path, reduction, rate, said):
    asked = ["l1", TASK, "--reduction", reduction, "--finetune", "3", "--learning-rate", rate]
    assert run(["prune", *asked, "--out", str(tmp_path / "out")]) == 0
    assert ("fine-tuning brought nothing on held-out data" in capsys.readouterr().err) == said
    steps = PruningRecord.load(tmp_path / "out").finetuning["steps"]
    assert (steps[0]["kept"] == 0) == said


NARROW = """

def narrow():
    task = small()
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    task.model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), *pool, nn.Linear(2, 4)).eval()
    return task
"""


def test_a_step_that_went_as_far_as_the_floors_leaves_the_others_nothing_to_do(tmp_path):
    (tmp_path / "narrow.py").write_text(FILE.read_text() + NARROW)
    one, two = tmp_path / "one", tmp_path / "two"
    for out, steps in ((one, "1"), (two, "2")):
        command = ["prune", "l1", f"{tmp_path / 'narrow.py'}:narrow", "--out", str(out), "--reduction", "0.45"]
        assert run([*command, "--iterative", steps]) == 0
    assert PruningRecord.load(one).groups == PruningRecord.load(two).groups
