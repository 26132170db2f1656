"""Which executor a run uses, and how its workers get the network and the data."""

from __future__ import annotations

import atexit
import pickle
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blend.config import SearchConfig
from blend.errors import InputError
from blend.evaluation import Workspace
from search.cargo import Cargo
from search.errors import SearchError
from search.executor import Executor, LocalExecutor

_unpacked: dict[str, str] = {}


def open_executor(config: SearchConfig) -> Executor:
    """Starts workers, which get ready meanwhile, or connects to them, before anything else is done.

    Raises:
        InputError: If they cannot be reached.
    """
    if config.executor == "local" or config.address is None:
        executor = LocalExecutor(config.workers, timeout=config.timeout)
        executor.start("blend.evaluation")
        return executor
    try:
        return _cluster(config.executor)(config.address, config.timeout)
    except SearchError as error:
        raise InputError(f"--{error}") from error  # it begins with the name of the parameter


def _cluster(executor: str) -> Callable[[str, float | None], Executor]:
    if executor == "dask":
        from search.dask_executor import DaskExecutor

        return DaskExecutor
    from search.ray_executor import RayExecutor

    return RayExecutor


@dataclass(frozen=True)
class ShippedWorkspace(Workspace, Cargo):
    """A workspace for workers on other machines: pickled, it is its files; unpickled, a local workspace with them.

    The task's file or module must be importable there under the same name.
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
        return _unpack, (self.task, self.token, files)


def _unpack(task: str, token: str, files: dict[str, bytes]) -> Workspace:
    if token not in _unpacked:
        folder = tempfile.mkdtemp(prefix="blend-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        _unpacked[token] = folder
    return Workspace(_unpacked[token], task, token)
