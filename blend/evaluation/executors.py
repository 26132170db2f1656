"""Which executor a run uses, and how its workers get the network and the data."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blend import __version__
from blend.config import SearchConfig
from blend.errors import InputError
from blend.evaluation.workspace import Workspace
from blend.progress import say
from blend.task import task_function
from search.cargo import Cargo
from search.errors import SearchError
from search.executor import GROWTH, Executor, LocalExecutor

PREFIX = "blend-worker-"
YOUNG = 60.0  # seconds in which a folder may not have been locked yet by whoever made it
_unpacked: weakref.WeakValueDictionary[str, Workspace] = weakref.WeakValueDictionary()  # by token


def open_executor(config: SearchConfig) -> Executor:
    """Starts workers, which get ready meanwhile, or connects to them, before anything else is done.

    Raises:
        InputError: If they cannot be reached.
    """
    if config.executor == "local" or config.address is None:
        executor = LocalExecutor(config.workers, timeout=config.timeout, growth=GROWTH + config.cache_share)
        executor.start("blend.evaluation")
        return executor
    try:
        return _cluster(config.executor)(config.address, config.timeout, lambda line: say(f"note: {line}"))
    except SearchError as error:
        raise InputError(f"--{error}") from error  # it begins with the name of the parameter


def _cluster(executor: str) -> Callable[[str, float | None, Callable[[str], None]], Executor]:
    if executor == "dask":
        from search.dask_executor import DaskExecutor

        return DaskExecutor
    from search.ray_executor import RayExecutor

    return RayExecutor


@dataclass(frozen=True)
class ShippedWorkspace(Workspace, Cargo):
    """A workspace for workers on other machines: pickled, it is its files; unpickled, a local workspace with them.

    The task's file or module must be importable there under the same name, and what decides over the last digits of a
    result must be there in the same version.
    """

    @property
    def key(self) -> str:
        """The token: one for each writing."""
        return self.token

    def pack(self) -> bytes:
        """The pickled files."""
        return pickle.dumps(self)

    def __reduce__(self) -> tuple[Any, ...]:
        files = {path.name: path.read_bytes() for path in sorted(Path(self.folder).iterdir())}
        return _unpack, (self.task, self.token, files, deciding_versions())


def deciding_versions() -> dict[str, str]:
    """Releases of the packages that decide over the last digits of a result."""
    return {name: found.partition("+")[0] for name, found in (("blend", __version__), ("torch", torch.__version__))}


def _unpack(task: str, token: str, files: dict[str, bytes], versions: dict[str, str]) -> Workspace:
    for (name, wanted), found in zip(versions.items(), deciding_versions().values(), strict=True):
        if found != wanted:
            raise InputError(f"{name} must be {wanted} there, as for the search, got {found}")
    task_function(task)  # where it is not there, nothing is written
    if (known := _unpacked.get(token)) is not None:
        return known
    folder, lock = _new_folder()
    try:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
    except OSError:
        _remove(folder, lock)
        raise
    _unpacked[token] = workspace = Workspace(folder, task, token)
    weakref.finalize(workspace, _remove, folder, lock)
    return workspace


def _remove(folder: str, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _new_folder() -> tuple[str, int]:
    """A folder that is this process' while it holds the lock; those of processes that were killed are removed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # it is another user's, or is being removed
            _remove_if_left(folder)
    made = tempfile.mkdtemp(prefix=PREFIX)
    lock = os.open(made, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return made, lock


def _remove_if_left(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.time() - folder.stat().st_mtime > YOUNG:
            shutil.rmtree(folder)
    finally:
        os.close(handle)
