"""What is on disk before a name is given, and before what came before is removed."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blend.errors import BlendError
from blend.pruned import durable
from blend.pruned.durable import _remove_abandoned, new_folder


@pytest.fixture
def events(monkeypatch):
    """What reaches the disk and which names are given, in order."""
    told = []
    sync, rename = durable.synced, Path.rename

    def synced(path):
        sync(path)
        told.append(f"{path.name} on disk")

    def renamed(path, target):
        told.append(f"{target.name} named")
        return rename(path, target)

    monkeypatch.setattr(durable, "synced", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    return told


def test_a_folder_is_on_disk_before_it_has_its_name_and_its_name_before_it_is_given_back(tmp_path, events):
    out = tmp_path / "deep" / "out"
    with new_folder(out) as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "file").write_text("x")
        assert events == []
    assert sorted(events[:3]) == sorted(["inner on disk", "file on disk", f".out.{os.getpid()}.draft on disk"])
    assert events[3:] == ["out named", "deep on disk", f"{tmp_path.name} on disk"]
    assert (out / "inner" / "file").read_text() == "x"


def test_what_does_not_reach_the_disk_gets_no_name(tmp_path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(BlendError, match="Input/output error; nothing of it is left"), new_folder(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from blend.pruned.durable import _remove_abandoned, new_folder
with new_folder(Path(sys.argv[1])) as draft:
    (draft / "file").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_has_left_is_removed_and_nothing_else(tmp_path):
    out, others = tmp_path / "o[u]t", [tmp_path / ".o[u]t.mine.draft", tmp_path / ".other.1.draft"]
    for other in others:
        other.mkdir()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    [left] = set(tmp_path.iterdir()) - {*others}
    with new_folder(out):
        assert not left.exists()
    assert {*tmp_path.iterdir()} == {out, *others}


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    alive = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "print(draft, flush=True); sys.stdin.read()")
    with subprocess.Popen(
        [sys.executable, "-c", alive, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        draft = Path(process.stdout.readline().strip())
        _remove_abandoned(tmp_path / "out")
        assert (draft / "file").exists()
        process.communicate("")
    assert process.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
