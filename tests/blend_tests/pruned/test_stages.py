"""Before and after: what is measured, in what order, and what a full disk leaves of it."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from blend.cli import run
from blend.cli.prune import _print_stages, rounded
from blend.pruned import stages
from blend.pruned.saved import PruningRecord
from blend.pruned.timing import LEAST_ROUNDS, seconds_in_turns

from ..task_file import small
from .test_smaller import TASK, accuracy


def test_record_and_table_hold_what_was_measured(capsys, tmp_path):
    out = tmp_path / "out"
    assert run(["prune", "l1", TASK, "--out", str(out), "--compensate", "channel", "--json"]) == 0
    told, err = capsys.readouterr()
    record = PruningRecord.load(out)
    assert json.loads(told)["stages"] == list(record.stages)
    assert [stage["stage"] for stage in record.stages] == ["unpruned", "pruned", "compensated"]
    task = small()
    assert record.stages[0]["test_metric"] == pytest.approx(accuracy(task.model, task.test))
    for stage in record.stages:
        assert stage["test_loss"] > 0
        assert [timed["batch_size"] for timed in stage["latency"]] == [1, 64]
        for timed in stage["latency"]:
            low, high = timed["ratio_ci95"]
            assert 0 < low <= timed["ratio"] <= high
            assert timed["seconds"] > 0
    assert [timed["ratio"] for timed in record.stages[0]["latency"]] == [1, 1]
    assert set(record.pruning["timing"]) == {"threads", "torch", "cpu"}
    table = [line for line in err.splitlines() if line.lstrip().startswith(("MACs", "unpruned", "pruned", "compens"))]
    assert len(table) == 4
    assert max(map(len, table)) <= 100
    assert f"{record.stages[2]['test_metric']:.4f}" in table[3]
    assert "batch 64: " in err


def test_table_of_a_large_network_fits_into_100_columns(capsys):
    timed = {"batch_size": 64, "seconds": 0.4473, "ratio": 0.53, "ratio_ci95": [0.5, 0.55], "rounds": 9}
    row = {
        "stage": "compensated", "macs": 313_478_154, "parameters": 14_728_266, "bytes": 58_961_234,
        "heldout_loss": 12.3456, "heldout_metric": 0.12345, "test_metric": 0.98765, "test_loss": 1.0,
        "latency": [timed | {"batch_size": 1, "seconds": 0.0112}, timed, timed | {"batch_size": 256}],
    }  # fmt: skip

    record = SimpleNamespace(
        pruning={"achieved": 0.5, "cost": "macs", "reduction": 0.5, "timing": {}},
        criterion={"name": "l1"}, task={"name": "large"}, stages=(row | {"stage": "unpruned"}, row), finetuning=None,
    )  # fmt: skip
    _print_stages(record)
    lines = capsys.readouterr().err.splitlines()
    shown = next(line for line in lines if "compensated" in line)
    assert len(shown) <= 100
    assert "…" not in shown
    for value in ("313.5 M", "14.73 M", "58.96 MB", "11.2 ms", "447 ms", "12.3456", "0.1235", "0.9877"):
        assert value in shown
    assert "batch 1: 1.89 times as fast as unpruned (95 % interval 1.82 … 2.00)" in "\n".join(lines)


def test_test_data_are_opened_once_after_all_else(capsys, tmp_path, monkeypatch):
    """Each network once; nothing but the clocks follows, and what is written to disk."""
    seen, judged = [], stages.judged

    def judging(network, task, split, batch_size):
        seen.append((split.name, id(network)))
        return judged(network, task, split, batch_size)

    monkeypatch.setattr(stages, "judged", judging)
    assert run(["prune", "l1", TASK, "--out", str(tmp_path / "out"), "--compensate", "channel"]) == 0
    assert [name for name, _ in seen] == ["held-out"] * 3 + ["test"] * 3
    assert [network for _, network in seen[:3]] == [network for _, network in seen[3:]]


@pytest.mark.parametrize(("asked", "timed"), [(1, [1]), (16, [1, 16]), (64, [1, 64]), (100, [1, 64, 100])])
def test_nothing_is_timed_above_the_batch_size(tmp_path, monkeypatch, asked, timed):
    """Who asks for 1 may have no memory for more."""
    passed = []

    def turns(networks, inputs, rounds, budget):
        passed.append(len(inputs))
        assert budget == stages.BUDGET
        return seconds_in_turns(networks, inputs, rounds, budget=0.0)

    monkeypatch.setattr(stages, "seconds_in_turns", turns)
    assert run(["prune", "l1", TASK, "--out", str(tmp_path / "out"), "--batch-size", str(asked)]) == 0
    assert passed == timed
    rows = PruningRecord.load(tmp_path / "out").stages[1]["latency"]
    assert [(row["batch_size"], row["rounds"]) for row in rows] == [(size, LEAST_ROUNDS) for size in timed]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0, 4, "0 µ"), (999, 4, "999 "), (1234567, 4, "1.235 M"), (999.96, 4, "1 k"), (0.99996, 3, "1 "),
     (2.5e9, 4, "2.5 G"), (0.0123456, 3, "12.3 m"), (4.2e-6, 3, "4.2 µ")],
)  # fmt: skip
def test_numbers_have_prefixes(value, digits, text):
    assert rounded(value, digits) == text


@pytest.fixture
def full_disk(tmp_path):
    """A real file system that holds 16 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
def test_full_disk_is_told_and_nothing_is_left(capsys, full_disk):
    (full_disk / "other").write_bytes(b"x" * 4096)
    code = run(["prune", "l1", TASK, "--out", str(full_disk / "out"), "--format", "torchscript"])
    told = capsys.readouterr().err
    assert code == 3
    assert told.strip().splitlines()[-1].startswith(f"error: '{full_disk / 'out'}' could not be written: ")
    assert "No space left on device" in told
    assert "Traceback" not in told
    assert [path.name for path in full_disk.iterdir()] == ["other"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_file_size_limit_is_told_and_nothing_is_left(capsys, tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))  # Python ignores the signal, so that writing fails
    try:
        code = run(["prune", "l1", TASK, "--out", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    told = capsys.readouterr().err
    assert code == 3
    assert "could not be written: OSError: [Errno 27] File too large" in told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []
