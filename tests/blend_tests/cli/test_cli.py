"""What users type, and what they are told when it is wrong: one line, exit code 2, nothing left behind."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blend.cli import run
from blend.config import search_config
from blend.runs import Run
from tests.blend_tests.cli.conftest import TASK_FILE

SOURCE = TASK_FILE.read_text()
RETURN = SOURCE[SOURCE.rindex("    return Task") :]


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def refused(capsys, *arguments):
    """Runs a command that must be refused; returns its one line."""
    code = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    complaint = err.strip().splitlines()[-1]
    assert code == 2, err
    assert out == ""
    assert complaint.startswith("error: ")
    assert "Traceback" not in err
    return complaint.removeprefix("error: ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["digit"], "did you mean 'digits'?"),
        (["nowhere.at_all:task"], "nowhere"),
        (["missing.py:task"], "missing.py"),
        (["digits", "--criteria", "l1,l22"], "'l22'; did you mean 'l2'?"),
        (["digits", "--criteria", "l1,learned_scale:epochs=0"], "must be one of initialisation, steps, learning_rate"),
        (["digits", "--criteria", "l1,learned_scale:steps=0"], "'steps' of 'learned_scale' must be at least 1, got 0"),
        (["digits", "--criteria", "se_gate:learning_rate=0"], "of 'se_gate' must be above 0, got 0.0"),
        (["digits", "--generations", "0"], "generations must be at least 1, got 0"),
        (["digits", "-o", "widht=3"], "no option 'widht'; did you mean 'width'?"),
        (["digits", "-o", "width=three"], "width"),
        (["digits", "-o", "width"], "option must look like key=value, got 'width'"),
        (["digits", "-o", "width=1", "-o", "width=2"], "option 'width' was given twice"),
        (["digits", "--reduction", "0"], "reduction must be in (0, 1), got 0"),
        (["digits", "--reduction", "1"], "reduction must be in (0, 1), got 1"),
        (["digits", "--reduction", "1.3"], "reduction must be in (0, 1), got 1.3"),
        (["digits", "--reduction", "nan"], "reduction must be in (0, 1), got nan"),
        (["digits", "--reduction", "abc"], "reduction must be a number, got 'abc'"),
        (["digits", "--cost", "latenzy"], "cost must be"),
        (["digits", "--encoding", "clusters"], "did you mean 'cluster'?"),
        (["digits", "--signed"], "signed must be used with encoding 'direct', got True with 'cluster'"),
        (["digits", "--base", "l1"], "base must be used with encoding 'allocation', got 'l1' with 'cluster'"),
        (["digits", "--strategy", "agin"], "did you mean 'aging'?"),
        (["digits", "--strategy", "swap"], "strategy 'swap' must be used with encoding 'mask', got 'cluster'"),
        (["digits", "--time", "2 hours"], "time must be a duration like 90s, 45m, 2h or 1h30m, got '2 hours'"),
        (["digits", "--target", "good"], "target must be a number, metric=NUMBER or fitness=NUMBER, got 'good'"),
        (["digits", "--patience", "0"], "patience must be at least 1, got 0"),
        (["digits", "--clusters", "0"], "clusters must be a number of at least 1 or 'silhouette', got '0'"),
        (["digits", "--workers", "0"], "workers must be at least 1, got 0"),
        (["digits", "--timeout", "0"], "timeout must be greater than 0, got 0"),
        (["digits", "--cache-memory", "much"], "cache_memory must be a size like 512M, 2G or 0, got 'much'"),
        (["digits", "--cache-memory", "-1G"], "cache_memory must be a size like 512M, 2G or 0, got '-1G'"),
        (["digits", "--executor", "cloud"], "executor must be 'local', 'dask' or 'ray', got 'cloud'"),
        (["digits", "--executor", "dask"], "address must be given with executor dask, like tcp://host:8786"),
        (["digits", "--population", "3"], "population must be at least 4, got 3"),
        (["digits", "--polish", "-1"], "polish must be at least 0, got -1"),
        (["digits", "--polish", "600"], "polish must be less than evaluations (600), of which it is a part, got 600"),
        (["digits", "--evaluations", "many"], "evaluations must be a whole number, got 'many'"),
        (["digits", "--name", "../escape"], "name must be a plain folder name"),
        (["digits", "--name", "ä" * 150], "name must be of 200 bytes or fewer, got 300"),
        (["digits", "--no-such-option"], "No such option: --no-such-option"),
        ([], "Missing argument 'TASK'"),
    ],
)
def test_search_refuses(capsys, runs, arguments, complaint):
    assert complaint in refused(capsys, "search", *arguments, "--runs-dir", runs)
    assert not runs.exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("def small(", "def smaller("), "did you mean 'smaller'?"),
        ((RETURN, "    return model\n"), "must return a blend.task.Task, got SmallNetwork"),
        ((RETURN, "    raise OSError('no data')\n"), "OSError: no data"),
        (("for i in (0, 160, 320)]", "for i in (0, 160, 160)]"), "held-out and test splits must be disjoint"),
        (("inputs[i : i + 160], targets[i : i + 160]", "inputs[i:i + 161], targets[i:i + 161]"), "must be disjoint"),
        (("test=splits[2]", "test=(splits[1][0].clone(), splits[1][1].clone())"), "held-out"),
        (("heldout=splits[1]", "heldout=(inputs[:0], targets[:0])"), "held-out"),
        (("heldout=splits[1]", "heldout=[]"), "held-out"),
        (("Task(model.eval()", "Task(model.requires_grad_(False)"), "'features.0.weight' is frozen"),
        (("Task(model.eval()", "Task(nn.Sequential(nn.Flatten(), nn.Linear(64, 4))"), "no prunable channel group"),
        (("    splits =", "    model.head.weight.data[0, 0] = float('nan')\n    splits ="), "head.weight"),
        (("    splits =", "    type(model).get_extra_state = lambda self: {}\n    splits ="), "dict as _extra_state"),
        (("test=splits[2])", "test=splits[2], loss=lambda o, t: o.sum() * float('nan'))"), "loss returned nan"),
        (("test=splits[2])", "test=splits[2], loss=lambda o, t: o)"), "loss must return a scalar"),
        (("test=splits[2])", "test=splits[2], metric=lambda o, t: o.sum())"), "metric must return one score"),
        (("test=splits[2])", "test=splits[2], ignore=['tail'])"), "no layer matches 'tail'"),
        (("targets = torch.arange(480) % 4", "targets = torch.arange(480) % 5"), "failed"),
        (("import torch\n", "import torch\nimport nonexistent_module\n"), "nonexistent_module"),
    ],
)  # fmt: skip
def test_search_refuses_a_task_file(capsys, runs, tmp_path, change, complaint):
    assert change[0] in SOURCE
    (tmp_path / "task.py").write_text(SOURCE.replace(*change))
    assert complaint in refused(capsys, "search", f"{tmp_path / 'task.py'}:small", "--runs-dir", runs)
    assert not runs.exists()


def test_search_refuses_what_the_floors_make_impossible(capsys, runs):
    complaint = refused(capsys, "search", f"{TASK_FILE}:small", "--reduction", "0.999", "--runs-dir", runs)
    assert "the largest possible is 0.9" in complaint
    assert not runs.exists()


def test_search_refuses_a_base_that_cannot_rank_every_group(capsys, runs, tmp_path):
    (tmp_path / "task.py").write_text(SOURCE.replace("nn.BatchNorm2d(16)", "nn.Identity()"))
    task = f"{tmp_path / 'task.py'}:small"
    asked = ("--encoding", "allocation", "--base", "bn_scale", "--criteria", "l1,bn_scale", "--runs-dir", runs)
    complaint = refused(capsys, "search", task, *asked)
    assert "bn_scale" in complaint
    assert not runs.exists()


def test_search_refuses_a_criterion_that_does_not_apply(capsys, runs, tmp_path):
    (tmp_path / "task.py").write_text(re.sub(r"nn.BatchNorm2d\(\d+\)", "nn.Identity()", SOURCE))
    complaint = refused(capsys, "search", f"{tmp_path / 'task.py'}:small", "--criteria", "bn_scale", "--runs-dir", runs)
    assert "'bn_scale' needs BatchNorm after 'features.0'" in complaint
    assert not runs.exists()


def test_of_the_default_criteria_those_that_do_not_apply_are_noted(capsys, runs, tmp_path):
    (tmp_path / "task.py").write_text(re.sub(r"nn.BatchNorm2d\(\d+\)", "nn.Identity()", SOURCE))
    few = ("--evaluations", "8", "--no-random-search", "--workers", "1")
    assert run(["search", f"{tmp_path / 'task.py'}:small", *few, "--runs-dir", str(runs), "--name", "it"]) == 0
    said = capsys.readouterr().err
    assert "note: bn_scale in all 2 groups; in features.0: criterion 'bn_scale' needs BatchNorm" in said
    assert "The blend " in said
    assert "bn_scale" not in json.dumps(json.loads((runs / "it" / "criterion.blend.json").read_text())["groups"])


def test_search_refuses_a_taken_name_before_any_work(capsys, finished):
    began = time.monotonic()
    complaint = refused(capsys, "search", "textures", "--runs-dir", finished.folder.parent, "--name", "it")
    assert "name 'it' is taken" in complaint
    assert time.monotonic() - began < 5


def test_search_refuses_a_runs_directory_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", Path("/proc/runs")):
        assert "runs-dir must be a folder that can be written to" in refused(
            capsys, "search", f"{TASK_FILE}:small", "--runs-dir", folder
        )


def test_resume_show_stop_and_export_refuse_unknown_runs_with_the_nearest_names(capsys, finished):
    for command in (["resume", "itt"], ["show", "itt"], ["stop", "itt"], ["export", "itt", "file.json"]):
        complaint = refused(capsys, *command, "--runs-dir", finished.folder.parent)
        assert complaint.startswith("no run 'itt' in")
        assert "did you mean 'it'?" in complaint


@pytest.mark.parametrize(
    "arguments",
    [["export", "it", "--reduction", "a half"], ["prune", "it.blend.json", "--min-channels", "a half"]],
)
def test_what_is_no_number_is_told_with_its_option(capsys, arguments):
    complaint = refused(capsys, *arguments)
    assert arguments[2] in complaint
    assert "'a half'" in complaint


def test_stop_and_resume_refuse_a_finished_run(capsys, finished):
    for command in ("stop", "resume"):
        assert "'it' is" in refused(capsys, command, "it", "--runs-dir", finished.folder.parent)


def test_show_and_list_print_one_json_document(capsys, finished):
    assert run(["show", "it", "--json", "--runs-dir", str(finished.folder.parent)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["id"], shown["status"], shown["evaluations"]) == ("it", "finished", 8)
    assert run(["list", "--json", "--runs-dir", str(finished.folder.parent)]) == 0
    assert json.loads(capsys.readouterr().out) == [shown]


def test_show_without_json_prints_the_table_for_people_to_stderr(capsys, finished):
    assert run(["show", str(finished.folder)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    for word in ("blend", "uniform-blend", "random-mask", "unpruned", "95 % interval", "Achieved reduction"):
        assert word in err


def test_a_run_is_shown_whatever_its_error_and_its_folder_are_called(capsys, finished, tmp_path):
    folder = tmp_path / "runs[/x]" / "it"
    shutil.copytree(finished.folder, folder)
    assert run(["show", str(folder)]) == 0
    assert str(folder / "criterion.blend.json") in capsys.readouterr().err
    failed = tmp_path / "failed"
    one = Run.create(failed, search_config(task=f"{TASK_FILE}:small"))
    one.commit({"status": "failed", "error": "OSError: cannot read [/mnt/labels.txt]"})
    assert run(["show", str(failed), "--course"]) == 0
    told = capsys.readouterr().err
    assert "cannot read [/mnt/labels.txt]" in told
    assert "failed: no generation has ended yet" in told


def test_list_tells_a_folder_without_runs_from_none(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["list"]) == 0  # the default need not be there yet
    assert "no runs in 'runs'" in capsys.readouterr().err
    assert run(["list", "--runs-dir", str(tmp_path)]) == 0
    (tmp_path / "runs").write_text("")
    for wrong in ("runs", str(tmp_path / "nope"), str(tmp_path / "runs")):
        assert refused(capsys, "list", "--runs-dir", wrong) == f"runs-dir must be a folder, got '{wrong}'"


def test_export_writes_the_file_once(capsys, finished, tmp_path):
    file = tmp_path / "mine.blend.json"
    command = ["export", "it", str(file), "--runs-dir", str(finished.folder.parent)]
    assert run(command) == 0
    assert json.loads(file.read_text())["schema_version"] == 2
    assert "exists; --force overwrites it" in refused(capsys, *command)
    assert run([*command, "--force"]) == 0
    for wrong in (tmp_path / "no" / "file.json", file / "file.json", tmp_path / ("x" * 300)):
        assert "cannot write" in refused(capsys, *command[:2], wrong, *command[3:])
    assert "it must be a file" in refused(capsys, *command[:2], ".", *command[3:], "--force")
    long = tmp_path / ("x" * 250)
    assert run([*command[:2], str(long), *command[3:]]) == 0
    table = tmp_path / "SCORES.CSV"
    assert run([*command[:2], str(table), *command[3:]]) == 0
    assert table.read_text().startswith("group,")
    shutil.copytree(finished.folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "scores.npz").write_bytes(b"no more")
    assert "scores.npz" in refused(capsys, "export", "damaged", str(table), "--runs-dir", str(tmp_path), "--force")
    assert table.read_text().startswith("group,")
    assert "reduction must be left out where no front was searched, got 0.4" in refused(
        capsys, *command, "--force", "--reduction", "0.4"
    )


KEYS = ("name", "family", "summary", "formula", "needs", "cost", "labels", "parameters", "claims", "caution",
        "reference")  # fmt: skip


def test_criteria_lists_the_registry(capsys):
    assert run(["criteria", "--json"]) == 0
    listed = {record["name"]: record for record in json.loads(capsys.readouterr().out)}
    first = "l1 l2 fpgm bn_scale taylor_l1 taylor_l2 taylor_fo fisher obd mean_activation apoz hrank random"
    assert set(first.split()) <= set(listed)
    assert len(listed) >= 32
    for record in listed.values():
        assert tuple(record) == KEYS
        assert all(record[key] for key in ("family", "summary", "formula", "cost", "caution", "reference"))
        for parameter in record["parameters"]:
            assert tuple(parameter) == ("name", "type", "default", "rule", "meaning")
            assert type(parameter["default"]).__name__ == parameter["type"]
            assert parameter["meaning"], f"{record['name']}: {parameter['name']}"
    assert {name for name, record in listed.items() if record["labels"]} == {"discriminant", "accuracy_ablation"}


def test_criteria_tells_all_of_one(capsys):
    assert run(["criteria", "obd", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["name"], record["cost"], record["claims"]) == ("obd", "second order", ["distinct"])
    assert record["needs"] == ["hessian_diagonal", "weight"]
    assert record["parameters"] == [
        {"name": "probes", "type": "int", "default": 8, "rule": "at least 1",
         "meaning": "number of Rademacher probes a batch."}
    ]  # fmt: skip
    assert run(["criteria", "obd:probes=16"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    for words in ("obd:probes=16", "Hessian", "probes", "at least 1", "LeCun", "--criteria obd:probes=8"):
        assert words in err


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("odb", "criterion must be a registered name, got 'odb'; did you mean 'obd'?"),
        ("obd:probes=0", "parameter 'probes' of 'obd' must be at least 1, got 0"),
    ],
)
def test_criteria_refuses_what_there_is_not(capsys, name, complaint):
    assert refused(capsys, "criteria", name) == complaint


def test_compare_reports_correlations_and_clusters(capsys):
    assert run(["compare", f"{TASK_FILE}:small", "--criteria", "l1,l2,apoz", "--clusters", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["criteria"] == ["l1", "l2", "apoz"]
    assert report["mean_spearman"][0][0] == pytest.approx(1.0)
    assert len(report["groups"]) == 2
    assert run(["compare", f"{TASK_FILE}:small", "--criteria", "l1,l2,apoz"]) == 0
    assert "mean Spearman" in capsys.readouterr().err


def test_help_teaches_and_is_quick():
    began = time.monotonic()
    shown = subprocess.run([sys.executable, "-m", "blend", "--help"], capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 3  # 0.3 s on an idle machine; importing torch alone takes longer than this
    for command in ("search", "resume", "list", "show", "stop", "criteria", "compare", "doctor", "export"):
        assert command in shown.stdout
        code = f"from blend.cli import run; run(['{command}', '--help']); import sys; sys.exit('torch' in sys.modules)"
        wide = os.environ | {"COLUMNS": "200"}
        one = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=wide)
        assert one.returncode == 0
        assert f"Example:  blend {command}" in one.stdout


@pytest.mark.parametrize("command", [["compare"], ["transfer", "it.blend.json"]])
def test_ctrl_c_is_told_where_there_is_nothing_to_go_on_with(monkeypatch, capsys, command):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("blend.comparison.compare.compare", interrupted)
    monkeypatch.setattr("blend.transfer.trial.transfer", interrupted)
    assert run([*command, f"{TASK_FILE}:small"]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "interrupted"
