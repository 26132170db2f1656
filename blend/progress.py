"""How the whole product shows that it is getting on: a bar on a terminal, now and then a line elsewhere.

Everything goes to stderr, so that stdout stays free for what a program reads.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console

LINE_INTERVAL = 5.0
"""Seconds between two lines where there is no terminal."""
WIDTH = 120
"""Columns of a table where there is no terminal and no COLUMNS that says otherwise."""

Field = str | float


class Progress(Protocol):
    """What :func:`progress` yields."""

    def advance(self, n: int = 1, **fields: Field) -> None:
        """Count ``n`` more steps as done and show ``fields`` (kept until given anew) beside them."""


def say(message: str) -> None:
    """Write a line to stderr; a live bar stays below it."""
    print(message, file=sys.stderr, flush=True)


def console() -> Console:
    """What prints tables and words to stderr, as they are: names and messages may look like markup."""
    from rich.console import Console  # not before there is something to print: it takes a tenth of a second

    width = None if sys.stderr.isatty() or "COLUMNS" in os.environ else WIDTH
    return Console(stderr=True, highlight=False, markup=False, width=width)


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Progress]:
    """Show the progress of ``total`` steps while the block runs.

    On a terminal: a bar with percentage, rate, remaining time and the latest fields. Elsewhere, and inside another
    bar: a plain line at most every five seconds and one at the end.

    Args:
        description: what is being done.
        total: number of steps.
        done: steps that an earlier process has done; they don't count towards the rate.
    """
    shown: _Bar | _Lines = _Bar(description, total, done) if _is_free_terminal() else _Lines(description, total, done)
    with shown:
        yield shown


def _is_free_terminal() -> bool:
    """Whether stderr is a terminal on which no bar is live (rich puts a proxy in its place while one is)."""
    if not sys.stderr.isatty():
        return False
    from rich.file_proxy import FileProxy

    return not isinstance(sys.stderr, FileProxy)


def _formatted(fields: Mapping[str, Field]) -> str:
    return "  ".join(
        f"{name} {value if isinstance(value, str) else format(value, '.4g')}" for name, value in fields.items()
    )


class _Counter:
    """Steps done since the start, and the latest fields."""

    def __init__(self, description: str, total: int, done: int) -> None:
        self.description, self.total, self.done = description, total, done
        self.skipped = done
        self.fields: dict[str, Field] = {}
        self.started = time.monotonic()

    def count(self, n: int, fields: Mapping[str, Field]) -> None:
        self.done += n
        self.fields |= fields

    @property
    def rate(self) -> float:
        """Steps a second."""
        return (self.done - self.skipped) / max(time.monotonic() - self.started, 1e-9)


class _Lines(_Counter):
    """Plain lines, one at most every ``LINE_INTERVAL`` seconds."""

    def __enter__(self) -> None:
        self.last = self.started

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            say(self._line(f"in {time.monotonic() - self.started:.1f} s"))

    def advance(self, n: int = 1, **fields: Field) -> None:
        self.count(n, fields)
        now = time.monotonic()
        if now - self.last >= LINE_INTERVAL and self.done < self.total:
            self.last = now
            say(self._line(f"{(self.total - self.done) / max(self.rate, 1e-9):.0f} s left"))

    def _line(self, timing: str) -> str:
        share = self.done / self.total if self.total else 1.0
        parts = [self.description, f"{share:.0%}", f"{self.done}/{self.total}", f"{self.rate:.3g}/s", timing]
        return "  ".join([*parts, *([_formatted(self.fields)] if self.fields else [])])


class _Bar(_Counter):
    """A live bar of rich, which repeats what is written to stderr above itself."""

    def __enter__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}", markup=False),
        )
        self.bar: Any = RichProgress(*columns, console=Console(stderr=True), redirect_stdout=False)
        self.task = self.bar.add_task(self.description, total=self.total, completed=self.done, rate="", shown="")
        self.bar.start()

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, n: int = 1, **fields: Field) -> None:
        self.count(n, fields)
        self.bar.update(self.task, advance=n, rate=f"{self.rate:.3g}/s", shown=_formatted(self.fields))
