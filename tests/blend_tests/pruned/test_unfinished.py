"""Where folders cannot be locked, or keep what is open."""

import errno
import os
import shutil

import pytest

from blend.errors import InputError
from blend.pruned import unfinished
from blend.pruned.unfinished import LOCK, Unfinished


def test_a_folder_is_one_process_alone(tmp_path):
    one, other = Unfinished(tmp_path / "out"), Unfinished(tmp_path / "out")
    with one.held({}, wanted=True):
        with pytest.raises(InputError, match="is being made by another process"), other.held({}, wanted=True):
            pass
        assert one.folder.exists()
    assert not one.folder.exists()


def test_without_locks_it_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(unfinished.fcntl, "flock", none)
    with Unfinished(tmp_path / "out").held({}, wanted=True):
        pass
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("note: ")
    assert "cannot be locked (OSError: [Errno 38] Function not implemented): let nothing else make" in line


def test_what_cannot_be_removed_while_it_is_open_is_removed_then(tmp_path, monkeypatch):
    """As on NFS, where a file that a process has open takes another name and stays until it is closed."""
    remove = shutil.rmtree

    def as_on_nfs(folder, ignore_errors=False):
        if any(os.path.realpath(f"/proc/self/fd/{n}") == str(folder / LOCK) for n in os.listdir("/proc/self/fd")):
            if not ignore_errors:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        else:
            remove(folder, ignore_errors)

    monkeypatch.setattr(unfinished.shutil, "rmtree", as_on_nfs)
    here = Unfinished(tmp_path / "out")
    with here.held({}, wanted=True):
        here.remove()
    assert not here.folder.exists()
