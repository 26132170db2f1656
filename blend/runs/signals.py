"""Stopping a run from outside: Ctrl-C, SIGTERM and ``blend stop``."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self

from blend.errors import BlendError, Interrupted
from blend.progress import say
from blend.runs.folder import Run


class Interruption:
    """Notices a wish to stop, lets what is in progress be finished and saved, and stops at once the second time.

    Args:
        run: The run; a ``stop`` file in its folder counts as well.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._signalled = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Takes over SIGINT and SIGTERM, where this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether to stop at the next boundary: of a generation, of a handful of baselines, of a test result."""
        return self._signalled or self.run.stop_requested()

    def check(self) -> None:
        """Raises :class:`Interrupted` if a stop was asked for."""
        if self.requested():
            raise self.interrupted()

    def interrupted(self) -> Interrupted:
        """The error for a stop at a boundary."""
        return self._interrupted("everything up to here is saved")

    def at_once(self) -> Interrupted:
        """The error for a stop in the middle of a generation."""
        with suppress(BlendError):  # where nothing can be written any more, a dead process says it, too
            self.run.commit({"status": "interrupted"})
        return self._interrupted("saved up to the last whole generation")

    def status_after(self, error: BlendError) -> str:
        """What to record when an error ends the run."""
        return "interrupted" if isinstance(error, Interrupted) else "failed"

    def _interrupted(self, saved: str) -> Interrupted:
        return Interrupted(f"run '{self.run.name}' interrupted, {saved}; go on with: {resume_command(self.run)}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True
        say("stopping when what is in progress is saved; once more to stop at once")


@contextmanager
def stopping_at_once(folder: Path) -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM end what an `Interruption` does not watch, such as the preparation of a search.

    Args:
        folder: Where the run is, or was to be.

    Raises:
        Interrupted: Saying how to go on, or that there is nothing to go on with.
    """
    try:
        with ending_by_signals():
            yield
    except KeyboardInterrupt:
        begun = folder.exists()
        how = f"go on with: blend resume {folder}" if begun else "nothing was begun and nothing is left"
        raise Interrupted(f"run '{folder.name}' interrupted; {how}") from None


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Makes a KeyboardInterrupt of SIGINT and SIGTERM, where this is the main thread.

    Of SIGINT, too: a shell starts what it puts into the background with that ignored, and who sends it anyway means it.
    """
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def resume_command(run: Run) -> str:
    """What to type to go on with a run."""
    return f"blend resume {run.folder}"
