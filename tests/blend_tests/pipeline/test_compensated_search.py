"""Compensation inside the fitness: everybody gets it, it is recorded, and the bytes are the same as ever."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from blend.blended import BlendedCriterion
from blend.cli import run as command
from blend.compensation.correction import gathered
from blend.config import search_config
from blend.evaluation import HeldoutEvaluation, Judge, Settings, Workspace, pack
from blend.pipeline import resume, start
from blend.problem import prepare
from blend.report import print_result, summary
from blend.runs import EXPORT, open_run
from blend.task import Split, accuracy
from criteria import ChannelGraph
from tests.networks import build, inputs

from ..small_networks import random_keep
from .test_pipeline import TASK, assert_same, history, in_process, without_workers  # noqa: F401

CRITERIA = ("l1", "fpgm", "taylor_fo")


def config(grade, **changes):
    values = {"task": TASK, "evaluations": 16, "population": 8, "criteria": CRITERIA, "compensate": grade}
    return search_config(**{**values, **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with without_workers():
        return {grade: start(config(grade), folder / grade) for grade in ("none", "channel", "patch")}


def baselines(run):
    return [e.fitness for e in run.evaluations() if e.phase == "baseline"]


@pytest.mark.parametrize("grade", ["channel", "patch"])
def test_every_baseline_and_control_is_compensated(runs, grade):
    plain, compensated = runs["none"], runs[grade]
    (whole, *rest), (same, *others) = baselines(plain), baselines(compensated)
    assert same == whole
    assert all(one != other for one, other in zip(rest, others, strict=True))
    problem = prepare(config(grade))
    judge = Judge(
        problem.task.model, problem.graph, problem.task.loss, problem.task.metric, problem.splits.calibration.inputs,
        Settings(), problem.consumer_inputs,
    )  # fmt: skip
    phases = {e.phase: e for e in compensated.evaluations() if e.phase.endswith("final") or e.phase == "baseline"}
    assert set(phases) == {"baseline", "search-final", "random-final"}
    for evaluation in phases.values():
        keep = np.unpackbits(np.frombuffer(evaluation.phenotype, np.uint8), count=len(problem.graph)).astype(bool)
        # Held-out data in another order and memory layout: float32 rounding.
        expected = judge.measure(keep, problem.splits.heldout)[0]
        assert evaluation.details["loss"] == pytest.approx(expected, rel=1e-4)


def test_same_bytes_for_two_workers(runs, tmp_path):
    assert_same(start(config("channel", workers=2), tmp_path / "two"), runs["channel"])


def test_same_bytes_when_resumed(runs, tmp_path, in_process):  # noqa: F811
    early = start(config("patch", evaluations=8), tmp_path / "early")
    settings = json.loads((early.folder / "config.json").read_text())
    (early.folder / "config.json").write_text(json.dumps(settings | {"evaluations": 16}))
    early.commit({"status": "interrupted", "result": None, "search-ended": None, "random-ended": None})
    early.close()
    resumed = resume(open_run(tmp_path, "early"))
    mine, theirs = ([e for e in history(r) if e[1] == "search"] for r in (resumed, runs["patch"]))
    assert [e[3:7] for e in mine] == [e[3:7] for e in theirs]


def test_is_recorded_everywhere(runs, capsys):
    run = runs["channel"]
    assert json.loads((run.folder / "config.json").read_text())["compensate"] == "channel"
    assert summary(run)["compensate"] == "channel"
    assert BlendedCriterion.load(run.folder / EXPORT).compensate == "channel"
    print_result(run)
    assert "All of them are compensated by channel before they are recalibrated." in capsys.readouterr().err
    print_result(runs["none"])
    assert "compensated" not in capsys.readouterr().err


def test_exports_from_before_the_choice_existed_are_read(runs, tmp_path):
    exported = json.loads((runs["none"].folder / EXPORT).read_text())
    assert exported.pop("compensate") == "none"
    del exported["checksum"]
    (tmp_path / "old.blend.json").write_text(json.dumps(exported | {"schema_version": 1}))
    assert BlendedCriterion.load(tmp_path / "old.blend.json").compensate == "none"


@pytest.mark.parametrize("grade", ["none", "channel", "patch"])
def test_pruning_by_the_export_gives_what_the_search_measured(runs, grade, tmp_path, capsys):
    export = runs[grade].folder / EXPORT
    assert command(["prune", str(export), TASK, "--out", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pruning"]["compensate"] == grade
    best = BlendedCriterion.load(export).metrics["best"]
    assert told["stages"][-1]["heldout_metric"] == pytest.approx(best["heldout_metric"])
    assert told["stages"][-1]["heldout_loss"] == pytest.approx(-best["fitness"], rel=1e-4)


def test_other_processes_get_the_same_statistics(tmp_path):
    problem = prepare(config("patch"))
    workspace, settings = Workspace(str(tmp_path / "work"), TASK, "1"), Settings()
    workspace.write(problem.task, problem.graph, problem.splits, settings, problem.consumer_inputs)
    assert len(list((tmp_path / "work").glob("moments-*.npy"))) == len(problem.consumer_inputs) == 2
    keep = random_keep(problem.graph, 1)
    direct = Judge(
        problem.task.model, problem.graph, problem.task.loss, problem.task.metric, problem.splits.calibration.inputs,
        settings, problem.consumer_inputs,
    )  # fmt: skip
    loaded = workspace.judge().compensation(keep).tensors
    assert loaded.keys() == direct.compensation(keep).tensors.keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in direct.compensation(keep).tensors.items())
    assert HeldoutEvaluation(workspace)(pack(keep))["fitness"] != 0


def test_refusals_leave_no_folder(tmp_path, capsys):
    assert command(["search", TASK, "--compensate", "sequential", "--runs-dir", str(tmp_path / "runs")]) == 2
    assert "compensate must be 'none', 'channel' or 'patch', got 'sequential'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_too_large_statistics_leave_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("blend.compensation.consumer_inputs.LARGEST", 1000)
    assert command(["search", TASK, "--compensate", "patch", "--runs-dir", str(tmp_path / "runs")]) == 2
    assert "compensate must be 'channel' for this network, got 'patch'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_comparison_is_compensated_and_says_so(capsys):
    results = {}
    for grade in ("none", "channel"):
        assert command(["compare", TASK, "--criteria", "l1,fpgm", "--compensate", grade, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        results[grade] = [row["loss"] for row in report["results"]]
        assert report["compensate"] == grade
    assert results["none"] != results["channel"]
    assert command(["compare", TASK, "--criteria", "l1,fpgm", "--compensate", "channel"]) == 0
    assert "compensated by channel and recalibrated" in " ".join(capsys.readouterr().err.split())


def test_half_precision_judges_are_compensated():
    model, images = build("plain"), inputs("plain", 32)
    graph = ChannelGraph.build(model, images[:2])
    known, _ = gathered(model, graph, images, "channel", 32, 16)
    heldout, keep = Split(images, torch.arange(len(images)) % 4, "held-out"), random_keep(graph, 2)
    losses = []
    for precision in (None, torch.bfloat16):
        settings = Settings(precision=precision, recalibration_images=32, batch_size=16)
        judge = Judge(model, graph, F.cross_entropy, accuracy, images, settings, known)
        losses.append(judge.judge(keep, heldout)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
