"""Folders that take their names once all of them is on disk, so that not even a power cut leaves a part."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blend.disk import synced
from blend.errors import BlendError, InputError, described
from blend.runs import try_making


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside one that is to be; takes its name at the end, when it has reached the disk, or is gone.

    It is locked meanwhile. What a process that was killed has left of the same folder is nobody's, and is removed.

    Raises:
        InputError: The folder exists, or nothing can be written there.
        BlendError: Writing fails later, as on a full disk.
    """
    check_free_folder(folder)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
    _remove_abandoned(folder)
    new = [parent for parent in folder.absolute().parents if not parent.exists()]
    try:
        draft.mkdir(parents=True)
        lock = os.open(draft, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"out must be a folder that can be made, got '{folder}': {error.strerror}") from error
    _locked(lock)
    try:
        yield draft
        for path in (*draft.rglob("*"), draft):
            synced(path)
        draft.rename(folder)
        try:
            for parent in (folder.parent, *(path.parent for path in new)):
                synced(parent)
        except OSError:
            folder.rename(draft)  # a name that may be gone tomorrow is none
            raise
    except OSError as error:
        raise BlendError(f"'{folder}' could not be written: {described(error)}; nothing of it is left") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(lock)


def check_free_folder(folder: Path) -> None:
    """Refuses a folder that exists, or that cannot be made, before any work is done for it.

    Raises:
        InputError: Saying which.
    """
    if os.path.lexists(folder) or folder.name == "..":  # Path's own raises where a name is too long
        raise InputError(f"out must be a folder that does not exist yet, got '{folder}'")
    try:
        try_making(folder)
    except OSError as error:
        raise InputError(f"out must be a folder that can be made, got '{folder}': {error.strerror}") from error


def _remove_abandoned(folder: Path) -> None:
    """Removes the drafts of a folder that no process holds; one that cannot be looked at is left as it is."""
    for draft in folder.parent.glob(f".{glob.escape(folder.name)}.*.draft"):
        if not draft.name.removeprefix(f".{folder.name}.").removesuffix(".draft").isdecimal():
            continue
        try:
            lock = os.open(draft, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            if _locked(lock):
                shutil.rmtree(draft, ignore_errors=True)
        finally:
            os.close(lock)


def _locked(descriptor: int) -> bool:
    """Whether a folder's lock could be had; not where another process has it, nor where folders cannot be locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
