"""One run folder: what lies in it, who may write to it, and how it is read."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blend.disk import synced
from blend.errors import BlendError, InputError, described, first_problem
from blend.progress import say
from blend.runs.database import SCHEMA, Database
from search.archive import Evaluation

if TYPE_CHECKING:
    from blend.config import SearchConfig

LITTLE = 2**26  # bytes left on a disk
LONGEST_NAME = 200  # bytes; file systems take 255, some of which a draft's name needs
PATIENCE = 10  # times that a lock is tried
ROUNDING = 1e-12  # SQLite reads numbers almost as Python writes them
CONFIG, DATABASE, LOCK, STOP, WORK = "config.json", "run.db", "run.lock", "stop", "work"
SCORES, EXPORT, FIGURE = "scores.npz", "criterion.blend.json", "result.png"
EXPORTS = "criterion-*.blend.json"  # those of a front
SEARCH, POLISH, CONTROL = "search", "polish", "random"  # the phases that search
FINAL = {SEARCH: "search-final", POLISH: "polish-final", CONTROL: "random-final"}
"""The phase in which the best of a search are judged in full precision."""


def export_at(reduction: float) -> str:
    """The file of that blend of a front which removes at least so much."""
    return EXPORTS.replace("*", f"{reduction:.4g}")


class Run:
    """One run folder.

    Args:
        folder: The folder.

    Raises:
        InputError: If it is not a run folder, or one of a newer version.
    """

    def __init__(self, folder: Path) -> None:
        if missing := [name for name in (CONFIG, DATABASE) if not (folder / name).is_file()]:
            raise InputError(f"'{folder}' is not a run folder: it has no {' and no '.join(missing)}")
        self.folder = folder
        with self._reading():
            self.database = Database(folder / DATABASE)
        if self.database.version == 0:
            raise InputError(f"the {DATABASE} of run '{self.name}' is empty; blend doctor {folder} says what to do")
        if self.database.version != SCHEMA:
            raise InputError(
                f"run '{self.name}' has schema version {self.database.version}, this software reads version {SCHEMA}: "
                f"use the version of this software that made it"
            )

    @classmethod
    def create(cls, folder: Path, config: SearchConfig) -> Run:
        """Makes a run folder; it appears under its name only when it is whole.

        Raises:
            NameTaken: If the folder exists.
            InputError: If it cannot be written.
        """
        check_free(folder)
        draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
        try:
            draft.mkdir(parents=True)
            (draft / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
            mode = Database.create(draft / DATABASE)
            synced(draft / CONFIG)
            synced(draft)
            draft.rename(folder)
            synced(folder.parent)
        except (OSError, sqlite3.Error) as error:
            check_free(folder)  # somebody else's may have appeared
            raise InputError(f"runs-dir must be a folder that can be written to: {error}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        if mode != "wal":
            say(f"note: '{folder}' has no shared memory (a network?): journal mode {mode} is used, which is slower")
        return cls(folder)

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.folder.name

    @property
    def config(self) -> SearchConfig:
        """What was asked for."""
        from blend.config import SearchConfig  # its library takes long to import, and not every command needs it

        try:
            return SearchConfig.model_validate_json((self.folder / CONFIG).read_text())
        except (OSError, ValueError) as error:
            reason = error if isinstance(error, OSError | UnicodeDecodeError) else first_problem(error)
            raise InputError(f"the {CONFIG} of run '{self.name}' cannot be read: {reason}") from error

    def get(self, key: str, default: Any = None) -> Any:
        """A stored document, or the default."""
        with self._reading():
            return self.database.document(key, default)

    def commit(self, documents: dict[str, Any], evaluations: Iterable[Evaluation] = ()) -> None:
        """Writes documents and evaluations in one transaction: all of it is on disk afterwards, or nothing.

        Raises:
            BlendError: If the disk is full, the folder is gone or cannot be written to; what is there stays as it is.
        """
        try:
            if not (self.folder / DATABASE).exists():
                raise FileNotFoundError(f"'{self.folder / DATABASE}' is gone")
            self.database.write(documents, evaluations)
        except (OSError, sqlite3.Error) as error:
            raise BlendError(f"run '{self.name}' cannot be written: {error}; {self._what_now()}") from error

    def evaluations(self) -> list[Evaluation]:
        """The whole history, in order."""
        with self._reading():
            return self.database.evaluations()

    def best(self, *phases: str, reduction: float = 0.0) -> Evaluation | None:
        """The fittest evaluation of some phases that removes at least so much; the first among equals."""
        among, values = ", ".join("?" * len(phases)), list[Any](phases)
        enough = ""
        if reduction:
            enough = "AND json_extract(details, '$.reduction') >= ? "
            values.append(reduction - ROUNDING)
        condition = f"WHERE phase IN ({among}) AND error IS NULL {enough}ORDER BY fitness DESC, number LIMIT 1"
        with self._reading():
            return next(iter(self.database.evaluations(condition, values)), None)

    def artefacts(self) -> list[Path]:
        """Files that the run has left for its user."""
        fixed = [path for name in (EXPORT, FIGURE, SCORES) if (path := self.folder / name).exists()]
        return [*fixed[:1], *sorted(self.folder.glob(EXPORTS)), *fixed[1:]]

    def counts(self) -> dict[str, int]:
        """Number of evaluations and of those really computed, polishing included, and of generations of the search."""
        question = (
            "SELECT count(*), count(*) - coalesce(sum(cached), 0), "
            "coalesce(max(CASE WHEN phase = 'search' THEN generation END) + 1, 0) "
            "FROM evaluations WHERE phase IN ('search', 'polish')"
        )
        with self._reading():
            [(everything, computed, generations)] = self.database.query(question)
        return {"evaluations": everything, "unique_evaluations": computed, "generations_done": generations}

    @property
    def status(self) -> str:
        """``running``, ``finished``, ``failed`` or ``interrupted`` (also when the process that wrote it is gone)."""
        recorded = str(self.get("status", "interrupted"))
        if recorded == "finished":
            return recorded
        if self.is_locked():
            return "running"
        return recorded if recorded == "failed" else "interrupted"

    def check_resumable(self) -> None:
        """Refuses a run that is running, or finished and not without the file that it has exported.

        Raises:
            InputError: Saying which.
        """
        status = self.status
        if status == "running" or (status == "finished" and (self.folder / EXPORT).exists()):
            more = "it can be resumed when it has stopped" if status == "running" else "there is nothing to resume"
            raise InputError(f"run '{self.name}' is {status}; {more}")

    def is_locked(self) -> bool:
        """Whether a process is writing to the folder."""
        try:
            with self._lock_file() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the folder as its only writer.

        Raises:
            InputError: If another process holds it.
        """
        try:
            file = (self.folder / LOCK).open("a+")
        except OSError as error:
            raise InputError(f"the folder of run '{self.name}' must be one that can be written to: {error}") from error
        with file:
            if not _locked(file):
                raise InputError(f"run '{self.name}' is running (process {self.writer() or '?'})")
            try:
                for left in (STOP, f".{self.writer()}.draft"):  # of and for a process that is gone
                    (self.folder / left).unlink(missing_ok=True)
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), str(os.getpid()).encode())  # unbuffered: a disk may be full
                yield
            except OSError as error:
                reason = f"{described(error)}{self._room()}"
                raise BlendError(f"run '{self.name}' cannot go on: {reason}; {self._what_now()}") from error
            finally:
                with suppress(OSError):
                    (self.folder / STOP).unlink(missing_ok=True)
                shutil.rmtree(self.folder / WORK, ignore_errors=True)

    def writer(self) -> int | None:
        """The process that writes the folder, or the last one that did."""
        text = (self.folder / LOCK).read_text().strip() if (self.folder / LOCK).exists() else ""
        return int(text) if text.isdigit() else None

    def _room(self) -> str:
        """Says so if there is hardly any: what numpy raises then does not name the disk."""
        with suppress(OSError):
            if (free := shutil.disk_usage(self.folder).free) < LITTLE:
                return f" (its disk has {free / 1e6:.1f} MB left)"
        return ""

    def _what_now(self) -> str:
        if not self.folder.exists():
            return f"if it was moved or unmounted, put it back, and go on with: blend resume {self.folder}"
        return f"nothing that was saved is lost; when that is mended, go on with: blend resume {self.folder}"

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(
                f"the {DATABASE} of run '{self.name}' cannot be read: {error}; blend doctor {self.folder} looks closer"
            ) from error

    def request_stop(self) -> None:
        """Asks the process that writes the run to stop after the generation it is in.

        Raises:
            InputError: If the folder cannot be written to.
        """
        try:
            (self.folder / STOP).touch()
        except OSError as error:
            raise InputError(f"run '{self.name}' cannot be asked to stop: {described(error)}") from error

    def stop_requested(self) -> bool:
        """Whether somebody asked for that."""
        return (self.folder / STOP).exists()

    def close(self) -> None:
        """Closes the database."""
        self.database.close()

    def _lock_file(self) -> Any:
        return (self.folder / LOCK).open()


class NameTaken(InputError):
    """A run folder of that name exists."""


def check_free(folder: Path) -> None:
    """Refuses a run folder that exists, or whose parent cannot be written to.

    Raises:
        NameTaken: If it exists.
        InputError: If it could not be written.
    """
    if os.path.lexists(folder):  # Path's own raises where a name is too long
        raise NameTaken(f"name '{folder.name}' is taken: '{folder}' exists")
    try:
        try_making(folder)
    except OSError as error:
        raise InputError(f"runs-dir must be a folder that can be written to, got '{folder.parent}': {error}") from error


def try_making(folder: Path) -> None:
    """Raises OSError if a folder cannot be made, without making it."""
    if len(os.fsencode(folder.name)) > LONGEST_NAME:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    with tempfile.TemporaryFile(dir=next(parent for parent in folder.absolute().parents if parent.exists())):
        pass


def _locked(file: Any) -> bool:
    """Locks a file for writing; tries for a moment, because readers who look whether it is locked hold it, too."""
    for _ in range(PATIENCE):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False
