"""Where evaluations run: in worker processes that may die, without the search noticing."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from joblib.externals.loky import ProcessPoolExecutor

from search.errors import SearchValueError

T = TypeVar("T")
R = TypeVar("R")

# One thread a worker, however many workers there are: N workers of N threads fight for the cores, and floating-point
# sums that depend on the number of threads would make results depend on the number of workers.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@dataclass(frozen=True)
class Failure:
    """In the place of a result that could not be had.

    Attributes:
        reason: One line for a person.
    """

    reason: str


class Executor(Protocol):
    """Runs a function on many items, somewhere."""

    def run(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R | Failure]]:
        """Yield (index, result) for every item, in the order of completion."""
        ...

    def close(self) -> None:
        """End the workers; what still runs is abandoned."""
        ...

    def __enter__(self) -> Self:
        """Return itself."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        ...


class LocalExecutor:
    """Worker processes on this machine.

    The pool is loky's, as shipped by joblib, but not reached through `joblib.Parallel`: that would run a single worker
    in the driver (where a crash ends the search), give each worker a number of threads that depends on how many there
    are, share one pool with everybody else in the process, and not tell which items were running when a worker died.
    A single worker is a process too, so that crashes, signals and results are the same for 1 and N.

    The pool starts with the first item and stays warm between runs, so functions may cache what they load.

    Args:
        workers: Number of processes.
        retries: How often an item is run again that was running when a worker died. Each time it runs alone, so that
            an item that kills its worker can't take others down with it.
    """

    def __init__(self, workers: int, retries: int = 2) -> None:
        """Start nothing yet."""
        if workers < 1:
            raise SearchValueError(f"workers must be at least 1, got {workers}")
        if retries < 0:
            raise SearchValueError(f"retries must be at least 0, got {retries}")
        self.workers = workers
        self.retries = retries
        self._pool: ProcessPoolExecutor | None = None

    def run(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R | Failure]]:
        """Yield (index, result) for every item, in the order of completion.

        Args:
            function: Picklable by cloudpickle.
            items: Picklable.

        Yields:
            The index of the item and what the function returned, or a `Failure` if it raised or its worker kept dying.

        Raises:
            KeyboardInterrupt: Ctrl-C in the driver; the workers are ended.
        """
        waiting = iter(range(len(items)))
        running: dict[Future[Any], int] = {}
        try:
            while True:
                # No more than one item a worker, so that few are suspected when one dies.
                while len(running) < self.workers and (index := next(waiting, None)) is not None:
                    running[self._submit(function, items[index])] = index
                if not running:
                    return
                done = wait(running, return_when=FIRST_COMPLETED).done
                if any(map(_died, done)):
                    done = wait(running).done  # a dead worker breaks the pool: every future ends now
                ended = [(running.pop(future), future) for future in list(running) if future in done]
                for index, future in ended:
                    if _died(future):
                        future = self._alone(function, items[index], future)
                    yield index, _outcome(future)
        except BaseException:  # interrupted, or the caller wants no more: the pool must not go on behind its back
            self.close()
            raise

    def close(self) -> None:
        """End the workers; what still runs is abandoned. A later `run` starts new ones."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, kill_workers=True)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _alone(self, function: Callable[[T], R], item: T, future: Future[R | Failure]) -> Future[R | Failure]:
        for _ in range(self.retries):
            if not _died(future):
                break
            future = self._submit(function, item)
            wait([future])
        return future

    def _submit(self, function: Callable[[T], R], item: T) -> Future[R | Failure]:
        if self._pool is None:
            self._pool = self._new_pool()
        try:
            return self._pool.submit(_guarded, function, item)  # type: ignore[no-any-return]
        except BrokenProcessPool:  # a worker died, just now or while idle
            self.close()
            self._pool = self._new_pool()
            return self._pool.submit(_guarded, function, item)  # type: ignore[no-any-return]

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.workers, initializer=_follow_driver, initargs=(os.getpid(),), env=_ONE_THREAD, timeout=None
        )


def _died(future: Future[Any]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def _outcome(future: Future[R | Failure]) -> R | Failure:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, KeyboardInterrupt):
        raise error
    return _failure(error)


def _failure(error: BaseException) -> Failure:
    # The first line: loky's messages go on for several.
    return Failure(f"{type(error).__name__}: {error}".partition("\n")[0])


def _guarded(function: Callable[[T], R], item: T) -> R | Failure:
    try:
        return function(item)
    except Exception as error:  # noqa: BLE001 - one item's error is its result; and an exception that can't be
        return _failure(error)  # unpickled would break the pool


def _follow_driver(driver: int) -> None:
    """Set up a worker: Ctrl-C goes to the whole process group but is the driver's to handle; die when it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != driver:  # it died before we asked
            os._exit(1)
