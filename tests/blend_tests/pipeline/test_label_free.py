"""Calibration without labels: what gradients are of then, that targets are not read, and that runs say so."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blend.blended import BlendedCriterion
from blend.checking import check_task
from blend.cli import run
from blend.config import SearchConfig, search_config
from blend.errors import InputError
from blend.pipeline import resume, start
from blend.problem import prepare
from blend.runs import EXPORT, SCORES, open_run
from blend.task import load_task, materialise
from criteria import CRITERIA, ScoreTable
from criteria.losses import LABEL_FREE

from .test_pipeline import in_process  # noqa: F401

TASK_FILE = Path(__file__).parents[1] / "task_file.py"
TASK = f"{TASK_FILE}:small"
CRITERIA_CHOSEN = ("l1", "taylor_fo", "obd")
UNREADABLE = """
class Unreadable(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        raise RuntimeError("calibration targets were read")


def unreadable(seed: int = 0):
    task = small(seed)
    task.calibration = (task.calibration[0], task.calibration[1].as_subclass(Unreadable))
    return task


def not_a_number(seed: int = 0):
    task = small(seed)
    task.calibration = (task.calibration[0], torch.full((160, 3), float("nan")))
    return task


def inputs_alone(seed: int = 0):
    task = small(seed)
    task.calibration = task.calibration[0]
    return task


def copied(seed: int = 0):
    task = small(seed)
    task.calibration = task.heldout[0].clone()
    return task
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    file = tmp_path_factory.mktemp("tasks") / "unlabelled.py"
    file.write_text(TASK_FILE.read_text() + UNREADABLE)
    return file


def table(task, **changes):
    return prepare(search_config(task=str(task), **{"criteria": CRITERIA_CHOSEN, **changes})).table


def test_the_losses_of_the_command_line_are_those_of_the_library():
    allowed = SearchConfig.model_fields["calibration_loss"].annotation.__args__
    assert set(allowed) == {"task", *LABEL_FREE}
    assert set(BlendedCriterion.model_fields["calibration_loss"].annotation.__args__) == set(allowed)


@pytest.mark.parametrize("loss", LABEL_FREE)
@pytest.mark.parametrize("function", ["unreadable", "not_a_number", "inputs_alone"])
def test_targets_are_not_read(tasks, loss, function):
    found = table(f"{tasks}:{function}", calibration_loss=loss)
    assert found.to_dict() == table(TASK, calibration_loss=loss).to_dict()


@pytest.mark.parametrize(("function", "complaint"), [("unreadable", "were read"), ("not_a_number", "must be finite")])
def test_but_for_the_tasks_own_loss_they_are(tasks, function, complaint):
    with pytest.raises((InputError, RuntimeError), match=complaint):
        table(f"{tasks}:{function}")


def test_gradients_are_of_the_loss_that_was_asked_for():
    ours, squared, divergent = (table(TASK, calibration_loss=loss) for loss in ("task", *LABEL_FREE))
    for group in ours.groups:
        np.testing.assert_array_equal(ours.get("l1", group), squared.get("l1", group))
        assert not np.allclose(ours.get("taylor_fo", group), squared.get("taylor_fo", group))
        assert divergent.usable(group) == ("l1", "obd")
    task = load_task(TASK)
    with torch.no_grad():  # squaring is what is squared: with twice the outputs, gates move the loss by four times
        task.model.head.weight *= 2
        task.model.head.bias *= 2
    splits = check_task(task, "squared_norm")
    from criteria import ChannelGraph, score
    from criteria.losses import squared_norm

    graph = ChannelGraph.build(task.model, task.example_input)
    twice = score(task.model, graph, list(splits.calibration.batches(64)), squared_norm, ["taylor_fo"])
    for group in ours.groups:
        np.testing.assert_allclose(twice.get("taylor_fo", group), 16 * squared.get("taylor_fo", group), rtol=1e-4)


@pytest.mark.parametrize("names", [("discriminant",), ("accuracy_ablation",), ("discriminant", "accuracy_ablation")])
def test_criteria_that_read_labels_themselves_are_refused_first(capsys, names):
    code = run(["compare", "textures", "--criteria", ",".join(("l1", *names)), "--calibration-loss", "divergence"])
    assert code == 2
    err = capsys.readouterr().err
    assert f"must not read labels with calibration loss 'divergence', got {', '.join(names)}: leave" in err
    assert all(CRITERIA.get(name).labelled for name in names)


def test_an_unknown_loss_is_refused(capsys):
    for command in ("search", "compare"):
        assert run([command, TASK, "--calibration-loss", "squared"]) == 2
        complaint = "calibration_loss must be 'task', 'squared_norm' or 'divergence', got 'squared'"
        assert complaint in capsys.readouterr().err


def test_first_order_criteria_are_told_why_they_are_silent(capsys):
    table(TASK, calibration_loss="divergence")
    err = capsys.readouterr().err
    assert "taylor_fo rank nothing with calibration loss 'divergence', whose gradient is 0" in err
    assert "note: taylor_fo in all 2 groups; in features.0: degenerate: all 12 scores are 0" in err
    assert err.count("degenerate") == 1


@pytest.mark.usefixtures("in_process")
def test_a_search_without_labels_says_so_in_its_folder_and_export(tasks, tmp_path):
    config = search_config(
        task=f"{tasks}:unreadable", criteria=CRITERIA_CHOSEN, calibration_loss="squared_norm", evaluations=8,
        population=8, random_search=False,
    )  # fmt: skip
    finished = start(config, tmp_path / "it")
    assert finished.status == "finished"
    assert json.loads((finished.folder / "config.json").read_text())["calibration_loss"] == "squared_norm"
    exported = BlendedCriterion.load(finished.folder / EXPORT)
    assert exported.calibration_loss == "squared_norm"
    assert ScoreTable.load(finished.folder / SCORES).to_dict() == table(TASK, calibration_loss="squared_norm").to_dict()


@pytest.mark.usefixtures("in_process")
def test_folders_and_exports_from_before_the_choice_existed_go_on(tmp_path):
    config = search_config(task=TASK, criteria=CRITERIA_CHOSEN, evaluations=16, population=8, random_search=False)
    whole = start(config, tmp_path / "whole")
    old = start(config.model_copy(update={"evaluations": 8}), tmp_path / "old")
    settings = json.loads((old.folder / "config.json").read_text())
    del settings["calibration_loss"]
    (old.folder / "config.json").write_text(json.dumps(settings | {"evaluations": 16}))
    old.commit({"status": "interrupted", "result": None, "search-ended": None})
    old.close()
    resumed = resume(open_run(tmp_path, "old"))
    assert resumed.status == "finished"
    genomes = [[e.genome for e in run.evaluations() if e.phase == "search"] for run in (resumed, whole)]
    assert genomes[0] == genomes[1]
    exported = json.loads((whole.folder / EXPORT).read_text())
    assert exported.pop("calibration_loss") == "task"
    exported["schema_version"] = 1
    del exported["checksum"]
    (tmp_path / "old.blend.json").write_text(json.dumps(exported))
    assert BlendedCriterion.load(tmp_path / "old.blend.json").calibration_loss == "task"


def test_inputs_that_are_also_heldout_are_found_without_labels(tasks):
    with pytest.raises(InputError, match="calibration and held-out splits must be disjoint, but 160 of the 160"):
        check_task(load_task(f"{tasks}:copied"), "squared_norm")


def test_outputs_that_the_loss_cannot_take_are_refused():
    task = load_task(TASK)
    task.model = nn.Sequential(task.model, nn.Linear(4, 1), nn.Flatten(0))
    task.loss, task.metric = (lambda o, t: o.mean()), (lambda o, t: torch.ones(len(t)))
    with pytest.raises(InputError, match="calibration loss 'squared_norm' failed on the first calibration batch"):
        check_task(task, "squared_norm")


class TestUnlabelledSplits:
    inputs = torch.arange(12.0).view(6, 2)

    @pytest.mark.parametrize(
        "form",
        [
            lambda inputs: inputs,
            lambda inputs: (inputs, None),
            lambda inputs: [(inputs[:4], torch.full((4,), torch.nan)), (inputs[4:], "anything")],
            lambda inputs: [inputs[:1], inputs[1:4], inputs[4:]],
            lambda inputs: [inputs[:3], inputs[3:]],
            lambda inputs: DataLoader(TensorDataset(inputs), batch_size=4),
            lambda inputs: TensorDataset(inputs),
            lambda inputs: DataLoader(TensorDataset(inputs, torch.full((6,), torch.nan)), batch_size=4),
            lambda inputs: TensorDataset(inputs, torch.full((6,), torch.nan)),
            lambda inputs: materialise((inputs, torch.zeros(6)), "calibration"),
        ],
    )
    def test_have_no_targets_whatever_they_are_made_of(self, form):
        split = materialise(form(self.inputs), "calibration", labelled=False)
        assert not split.labelled
        assert torch.equal(split.inputs, self.inputs)
        assert split.targets.shape == (6, 0)
        assert [len(targets) for _, targets in split.batches(4)] == [4, 2]
        assert split.fingerprint() == materialise(self.inputs, "calibration", labelled=False).fingerprint()

    @pytest.mark.parametrize("data", [3, "x", torch.tensor(1.0), [], [{"x": 1}], torch.empty(0, 2)])
    def test_are_refused_where_there_are_no_inputs(self, data):
        with pytest.raises(InputError, match=r"the calibration split (must|failed)"):
            materialise(data, "calibration", labelled=False)


def test_pruning_needs_no_calibration_labels(tasks, tmp_path, capsys):
    command = ["prune", "taylor_fo", f"{tasks}:inputs_alone", "--compensate", "patch", "--out", str(tmp_path / "it")]
    assert run(command) == 2
    assert "the calibration split must give pairs (inputs, targets)" in capsys.readouterr().err
    assert run([*command, "--calibration-loss", "squared_norm"]) == 0
    assert (tmp_path / "it" / "pruning.json").is_file()
