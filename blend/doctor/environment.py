"""Whether this machine can run a search: packages, folders, database, worker processes. Nothing here needs torch."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from blend.errors import described
from blend.runs.folder import LITTLE
from search.executor import Failure, LocalExecutor

DISTRIBUTION = "blend-pruning"
GRACE = 5.0  # seconds that an ended worker may take to be gone

Outcome = Literal["pass", "fail", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: what it belongs to.
        name: what.
        outcome: whether it is as it should be.
        reason: one line.
    """

    area: str
    name: str
    outcome: Outcome
    reason: str


class Inapplicable(Exception):
    """There is nothing to check here; the message says why."""


def environment(runs_dir: Path) -> Iterator[Finding]:
    """Look at the machine.

    Args:
        runs_dir: where run folders go.
    """
    yield attempt("environment", "Python", _python)
    yield attempt("environment", "packages", _packages)
    yield attempt("environment", "extras", _extras)
    yield attempt("environment", "torch", _torch)
    yield attempt("folders", "cache", lambda: _writable(_cache_dir()))
    yield attempt("folders", "runs", lambda: _writable(runs_dir))
    yield attempt("folders", "SQLite", lambda: _sqlite(_existing(runs_dir)))
    yield attempt("workers", "answer", _worker_answers)
    yield attempt("workers", "die", _worker_dies)


def attempt(area: str, name: str, look: Callable[[], str]) -> Finding:
    """What a look returns is fine; what it raises is not."""
    try:
        return Finding(area, name, "pass", look())
    except Inapplicable as reason:
        return Finding(area, name, "not applicable", str(reason))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return Finding(area, name, "fail", described(error))


def _python() -> str:
    wanted = _metadata("Requires-Python")
    if not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        raise RuntimeError(f"Python must be {wanted}, got {platform.python_version()}")
    return f"{platform.python_version()} ({wanted}), {sys.executable}"


def _packages() -> str:
    needed = _needed("")
    for need in needed:
        if (lack := _lack(need)) is not None:
            raise RuntimeError(f"{need.name}{need.specifier} must be installed{lack}")
    return f"all {len(needed)} that are asked for, in the versions asked for"


def _extras() -> str:
    """Executors and adapters that are there, and what the others lack."""
    _metadata("Name")
    there, lacking = [], []
    for extra in sorted(set(metadata(DISTRIBUTION).get_all("Provides-Extra") or ()) - {"dev"}):
        lacks = [f"{need.name}{need.specifier}{lack}" for need in _needed(extra) if (lack := _lack(need)) is not None]
        lacking.append(f"{extra} ({lacks[0]})") if lacks else there.append(extra)
    return "; not there: ".join(", ".join(some) or "none" for some in (there, lacking))


def _needed(extra: str) -> list[Requirement]:
    """What the distribution asks for always, or only with one of its extras."""
    _metadata("Name")
    needs = [Requirement(text) for text in requires(DISTRIBUTION) or ()]
    always = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    if not extra:
        return always
    return [need for need in needs if need not in always and need.marker and need.marker.evaluate({"extra": extra})]


def _lack(need: Requirement) -> str | None:
    """What to add to a complaint about a package; None if it is there in a version asked for."""
    try:
        found = version(need.name)
    except PackageNotFoundError:
        return ""
    return None if need.specifier.contains(found, prereleases=True) else f", got {found}"


def _metadata(key: str) -> str:
    try:
        return str(metadata(DISTRIBUTION)[key])
    except PackageNotFoundError:
        raise Inapplicable(f"{DISTRIBUTION} is not installed, so that nothing says which versions it needs") from None


def _torch() -> str:
    import torch

    x = torch.full((3,), 2.0, requires_grad=True)
    (slope,) = torch.autograd.grad(x.square().sum(), x)
    if slope.tolist() != [4.0] * 3:
        raise RuntimeError(f"the derivative of x² at 2 must be 4, got {slope.tolist()}")
    devices = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "CPU only"
    return f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, {devices}"


def _cache_dir() -> Path:
    from blend.tasks.cache import cache_dir

    return cache_dir()


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.resolve()
    return folder if folder.exists() else _existing(folder.parent)


def room(folder: Path) -> str:
    """How much is free on a folder's disk.

    Raises:
        RuntimeError: If it is next to nothing.
    """
    free = shutil.disk_usage(folder).free
    if free < LITTLE:
        least = f"{LITTLE / 1e6:.0f} MB"
        raise RuntimeError(f"the disk of {folder} must have {least} left or more, got {free / 1e6:.1f} MB")
    return f"{free / 1e9:.1f} GB are free"


def _writable(folder: Path) -> str:
    with tempfile.TemporaryFile(dir=_existing(folder)):
        return f"{folder} can be written to, {room(_existing(folder))}"


def _sqlite(folder: Path) -> str:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        connection = sqlite3.connect(Path(scratch) / "probe.db", isolation_level=None)
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            connection.executescript("CREATE TABLE t (x); BEGIN IMMEDIATE; INSERT INTO t VALUES (1); COMMIT")
        finally:
            connection.close()
    if mode != "wal":
        raise Inapplicable(f"{folder} has no shared memory (a network?): journal mode {mode} is used, which is slower")
    return f"{sqlite3.sqlite_version}, write-ahead log"


def _worker_answers() -> str:
    with LocalExecutor(1) as executor:
        (answer,) = (answer for _, answer in executor.run(_who, [0]))
        if isinstance(answer, Failure):
            raise RuntimeError(answer.reason)
        pid, threads = answer
        if pid == os.getpid() or threads != "1":
            raise RuntimeError(f"a worker must be a process of its own with one thread, got {threads} threads")
    if not _gone(pid):
        raise RuntimeError(f"worker process {pid} must end with the executor; it still runs")
    return f"process {pid} answered, with one thread, and is gone"


def _worker_dies() -> str:
    with LocalExecutor(1, retries=0) as executor:
        answers = dict(executor.run(_die_or_answer, [True, False]))
    if not isinstance(answers[0], Failure) or answers[1] != "alive":
        raise RuntimeError(f"a killed worker must be told of and replaced, got {answers[0]} and {answers[1]}")
    return "one that was killed was noticed and replaced"


def _who(_: int) -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("OMP_NUM_THREADS")


def _die_or_answer(die: bool) -> str:
    if die:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def _gone(pid: int) -> bool:
    until = time.monotonic() + GRACE
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False
