"""What workers on other machines unpack, and what is left of it."""

import errno
import os
import pickle
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch

from blend.errors import InputError
from blend.evaluation import executors
from blend.evaluation.executors import ShippedWorkspace
from search import cargo


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "it.npy").write_bytes(b"content")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(executors, "_unpacked", weakref.WeakValueDictionary())
    return ShippedWorkspace(str(tmp_path / "work"), "digits", "token")


def folders(tmp_path):
    return sorted((tmp_path / "tmp").glob("blend-worker-*"))


def test_a_workspace_arrives_with_its_files_once(workspace, tmp_path):
    arrived = pickle.loads(workspace.pack())
    assert (Path(arrived.folder) / "it.npy").read_bytes() == b"content"
    assert (arrived.task, arrived.token) == ("digits", "token")
    assert pickle.loads(workspace.pack()) == arrived
    assert folders(tmp_path) == [Path(arrived.folder)]


def test_what_a_full_disk_left_half_written_is_not_used(workspace, tmp_path, monkeypatch):
    def half(path, content):
        path.open("wb").write(content[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    packed = workspace.pack()
    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="No space left"):
            pickle.loads(packed)
    assert folders(tmp_path) == []
    assert (Path(pickle.loads(packed).folder) / "it.npy").read_bytes() == b"content"


def test_what_nobody_holds_any_more_is_removed(workspace, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    first, second = (pickle.loads(ShippedWorkspace(workspace.folder, "digits", token).pack()) for token in "12")
    assert folders(tmp_path) == sorted(Path(one.folder) for one in (first, second))
    del first
    assert folders(tmp_path) == [Path(second.folder)]
    del second
    assert folders(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_that_ends_removes_its_own(workspace, tmp_path):
    ended = "import pickle, sys; it = pickle.load(sys.stdin.buffer); print(it.folder)"
    done = subprocess.run([sys.executable, "-c", ended], input=workspace.pack(), capture_output=True, check=True)
    assert Path(done.stdout.decode().strip()).parent == tmp_path / "tmp"
    assert folders(tmp_path) == []


def test_of_three_runs_that_take_turns_two_are_held(monkeypatch):
    asked = []
    monkeypatch.setattr(cargo, "_held", {})

    def packed(key):
        asked.append(key)
        return pickle.dumps(key)

    for key in ("a", "b", "a", "b", "c", "b", "c", "a"):
        cargo.call(pickle.dumps(len), {key: partial(packed, key)}, "item")
    assert asked == ["a", "b", "c", "a"]


def test_other_versions_of_what_decides_over_the_last_digits_are_refused(workspace, tmp_path, monkeypatch):
    packed = workspace.pack()
    monkeypatch.setattr(torch, "__version__", torch.__version__.partition("+")[0] + "+cu999")
    assert pickle.loads(packed)
    monkeypatch.setattr(torch, "__version__", "1.0.0+cpu")
    with pytest.raises(InputError, match=r"torch must be \d+\.\d+\.\d+ there, as for the search, got 1\.0\.0$"):
        pickle.loads(packed)


def test_a_task_that_is_not_there_is_refused_before_the_first_candidate(workspace, tmp_path):
    packed = ShippedWorkspace(workspace.folder, f"{tmp_path / 'gone.py'}:task", "token").pack()
    with pytest.raises(InputError, match=r"gone\.py"):
        pickle.loads(packed)
    assert folders(tmp_path) == []


KILLED = "import os, pickle, sys; it = pickle.load(sys.stdin.buffer); os.kill(os.getpid(), 9)"


def test_what_a_killed_worker_left_is_removed_by_the_next_one_and_nothing_else(workspace, tmp_path):
    subprocess.run([sys.executable, "-c", KILLED], input=workspace.pack())
    (left,) = folders(tmp_path)
    mine, _ = executors._new_folder()
    assert left.exists()  # it might have been made by a process that has not locked it yet
    for folder in folders(tmp_path):
        os.utime(folder, (0, 0))
    new, _ = executors._new_folder()
    assert folders(tmp_path) == sorted(map(Path, (mine, new)))
