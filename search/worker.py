"""One worker process: it can be killed, replaced and watched without touching its neighbours."""

import ctypes
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from joblib.externals.loky import ProcessPoolExecutor, process_executor

from search.errors import UnfitWorker

# One thread a worker, however many workers there are: N workers of N threads fight for the cores, and floating-point
# sums that depend on the number of threads would make results depend on the number of workers.
_ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
# glibc gives large buffers back at every free, so that each forward pass pays for its pages anew; these keep them (see
# `_Heap`), and have them in pages of 2 MB where the system has such.
_ENVIRONMENT |= {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
_ENVIRONMENT["GLIBC_TUNABLES"] = f"{os.environ.get('GLIBC_TUNABLES', '')}:glibc.malloc.hugetlb=1".removeprefix(":")

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_NOTHING_LEAKED = "ignore:resource_tracker"
_LINE = 300  # characters
_SETTLING = 10  # answers after which a worker has loaded what it caches


@dataclass(frozen=True)
class Failure:
    """In the place of a result that could not be had.

    Attributes:
        reason: One line for a person.
    """

    reason: str


class Unfit(Failure):
    """In the place of a result from a worker that can run no item at all."""


@dataclass(frozen=True)
class Answer:
    """What a worker sends back.

    Attributes:
        result: What `attempted` has returned.
        memory: The worker's resident memory in bytes; 0 where the system does not tell.
    """

    result: Any
    memory: int


class Worker:
    """A process that is started when it is needed, and anew after it was replaced.

    It is loky's pool, as shipped by joblib, with one process in it. `joblib.Parallel` would run a single worker in the
    driver (where a crash ends the search), give each worker a number of threads that depends on how many there are, and
    share one pool with everybody else in the process. A pool of several would break as a whole when one process dies,
    and not tell which item killed it.

    Args:
        growth: Bytes of resident memory that a worker may gain over twice its settled level before it is replaced.
    """

    def __init__(self, growth: int) -> None:
        """Start nothing yet."""
        self.growth = growth
        self._pool: ProcessPoolExecutor | None = None
        self._answers = 0
        self._level = 0

    def submit(self, function: Callable[[Any], Any], item: Any) -> Future[Answer]:
        """Run a function on an item; the future breaks (see `died`) if the process ends meanwhile."""
        if self._pool is not None:
            with suppress(BrokenProcessPool):  # it died while idle
                return self._pool.submit(guarded, function, item)  # type: ignore[no-any-return]
        self.end()
        with _quiet_trackers(), _signals_waiting():
            try:
                self._pool = self._new_pool()
            except BrokenPipeError:  # loky's tracker of semaphores was killed as it started
                self._pool = self._new_pool()
            return self._pool.submit(guarded, function, item)  # type: ignore[no-any-return]

    def end(self) -> None:
        """Kill the process; the next item gets a new one."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, kill_workers=True)

    def release_if_grown(self, memory: int) -> None:
        """End a process whose memory grew with the items it has seen, before the machine runs out of it."""
        self._answers += 1
        if self._answers <= _SETTLING:
            self._level = max(self._level, memory)
        elif memory > 2 * self._level + self.growth:
            self.end()

    def _new_pool(self) -> ProcessPoolExecutor:
        self._answers = self._level = 0
        return ProcessPoolExecutor(
            1, initializer=_follow_driver, initargs=(os.getpid(),), env=_ENVIRONMENT, timeout=None
        )


def imported(module: str) -> None:
    """Import a module in a worker, ahead of the functions that need it."""
    import_module(module)


def died(future: Future[Any]) -> bool:
    """Whether the process ended before the item did."""
    return isinstance(future.exception(), BrokenProcessPool)


def failure(error: BaseException) -> Failure:
    """One line about an exception, not too long: some messages go on for pages."""
    return Failure(textwrap.shorten(f"{type(error).__name__}: {error}", _LINE, placeholder=" …"))


def attempted(function: Callable[[Any], Any], item: Any) -> Any:
    """Return what a function makes of an item; a `Failure` if it raised, `Unfit` if that is the worker's fault."""
    try:
        return function(item)
    except UnfitWorker as error:
        return Unfit(str(error))
    except Exception as error:  # noqa: BLE001 - one item's error is its result; and an exception that can't be
        return failure(error)  # unpickled would break the pool


def guarded(function: Callable[[Any], Any], item: Any) -> Answer:
    """Run an item in a worker of this machine."""
    return Answer(attempted(function, item), _heap.tidied())


class _Heap:
    """A worker's heap, in which buffers of ever other sizes leave gaps that no later one fits into.

    When resident memory is more than `SLACK` times and `ROOM` above what it was after one item, the pages of all gaps
    are given back to the system. The next item pays for those that it needs.
    """

    SLACK = 1.1
    ROOM = 2**28  # bytes

    def __init__(self) -> None:
        self._after_one = 0

    def tidied(self) -> int:
        """The process' resident memory in bytes, after it gave back what it could, if it was time to."""
        memory = _resident_memory()
        if self._after_one == 0:
            self._after_one = memory
        elif memory > self.SLACK * self._after_one + self.ROOM:
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
            if trim is not None:
                trim(0)
            self._after_one = 0
            memory = _resident_memory()
        return memory


_heap = _Heap()


@contextmanager
def _quiet_trackers() -> Iterator[None]:
    """Have trackers of semaphores, which are started with the first process, say nothing of those that they clear up.

    They outlive a driver that was killed, and what they would warn of is all that is left of it.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = f"{before},{_NOTHING_LEAKED}" if before else _NOTHING_LEAKED
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


@contextmanager
def _signals_waiting() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait while a process starts: in the middle of it, nobody would know of it to end it.

    The process inherits that Ctrl-C is blocked, so that it is safe before it can ignore it.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread() or None in before.values():
        yield  # signals are handled elsewhere
        return
    came: list[int] = []
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    resource_tracker.ensure_running()  # it would unblock Ctrl-C behind our back when the process needs it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def _resident_memory() -> int:
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _follow_driver(driver: int) -> None:
    """Set up a worker: Ctrl-C goes to the whole process group but is the driver's to handle; die when it dies."""
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize  # loky would replace it at 300 MB more, see release_if_grown
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != driver:  # it died before we asked
            os._exit(1)
