"""The database of a run: documents and the history of all evaluations, written transaction by transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from search.archive import Evaluation

SCHEMA = 1

_TABLES = """
CREATE TABLE documents (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE evaluations (
    number INTEGER PRIMARY KEY,
    phase TEXT NOT NULL,
    generation INTEGER NOT NULL,
    genome TEXT,
    phenotype BLOB NOT NULL,
    fitness REAL NOT NULL,
    details TEXT NOT NULL,
    seconds REAL NOT NULL,
    cached INTEGER NOT NULL,
    error TEXT
);
"""


class Database:
    """An open database; only `sqlite3.Error` comes out of it.

    A folder that cannot be written to, such as an archive's, is read as it is.

    Args:
        path: The file, which must be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = _connect(path, "mode=rw")
        try:
            self.version = self._open()
        except sqlite3.OperationalError:
            if any(path.with_name(f"{path.name}-{kind}").exists() for kind in ("wal", "journal")):
                raise  # an immutable database would not show what one has committed, nor undo what the other has not
            self._connection.close()
            self._connection = _connect(path, "immutable=1")
            self.version = self._open()

    def _open(self) -> int:
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("SELECT count(*) FROM sqlite_master")
        return int(self.query("PRAGMA user_version")[0][0])

    @classmethod
    def create(cls, path: Path) -> str:
        """Makes an empty one and returns its journal mode.

        ``wal`` lets many read while one writes; ``delete`` is for file systems without shared memory (networks), where
        readers wait for the writer for a moment.
        """
        try:
            return _create(path, "wal")
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise
            path.unlink(missing_ok=True)
            return _create(path, "delete")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read meanwhile is of one moment, whatever is written."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            if self._connection.in_transaction:  # a damaged file may have ended it
                self._connection.execute("ROLLBACK")

    def query(self, question: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of an answer."""
        return self._connection.execute(question, values).fetchall()

    def document(self, key: str, default: Any = None) -> Any:
        """A document, or the default."""
        rows = self.query("SELECT value FROM documents WHERE key = ?", (key,))
        return _parsed(rows[0][0]) if rows else default

    def evaluations(self, condition: str = "ORDER BY number", values: Sequence[Any] = ()) -> list[Evaluation]:
        """The history, or a part of it."""
        return [_evaluation(row) for row in self.query(f"SELECT * FROM evaluations {condition}", values)]

    def write(self, documents: dict[str, Any], evaluations: Iterable[Evaluation]) -> None:
        """Writes documents and evaluations in one transaction."""
        rows = [_row(evaluation) for evaluation in evaluations]
        texts = [(key, json.dumps(value)) for key, value in documents.items()]
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("REPLACE INTO documents VALUES (?, ?)", texts)
            self._connection.executemany("INSERT INTO evaluations VALUES (?,?,?,?,?,?,?,?,?,?)", rows)
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:  # also when a second Ctrl-C came in between
                self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Closes it."""
        self._connection.close()


def _create(path: Path, mode: str) -> str:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        (got,) = connection.execute(f"PRAGMA journal_mode={mode}").fetchone()
        connection.executescript(f"{_TABLES} PRAGMA user_version={SCHEMA};")
    finally:
        connection.close()
    return str(got)


def _connect(path: Path, how: str) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?{how}"
    return sqlite3.connect(uri, uri=True, timeout=30.0, isolation_level=None)


def _row(e: Evaluation) -> tuple[Any, ...]:
    genome = None if e.genome is None else json.dumps(list(e.genome))
    details = json.dumps(e.details, default=list)  # an archive keeps lists as arrays
    return (e.number, e.phase, e.generation, genome, e.phenotype, e.fitness, details, e.seconds, e.cached, e.error)


def _evaluation(row: tuple[Any, ...]) -> Evaluation:
    number, phase, generation, genome, phenotype, fitness, details, seconds, cached, error = row
    return Evaluation(
        number=number,
        phase=phase,
        generation=generation,
        genome=None if genome is None else tuple(_parsed(genome)),
        phenotype=phenotype,
        fitness=fitness,
        details=_parsed(details),
        seconds=seconds,
        cached=bool(cached),
        error=error,
    )


def _parsed(text: str) -> Any:
    """What a text says; a page that was damaged inside one is whole to SQLite."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise sqlite3.DatabaseError(f"a text in it is damaged: {error}") from error
