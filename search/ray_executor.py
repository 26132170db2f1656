"""Evaluations on the workers of a ray cluster, whose nodes may join, leave and die meanwhile."""

import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

from search.cargo import Parcel, call
from search.cluster import ClusterExecutor
from search.errors import SearchError, SearchValueError
from search.executor import TICK
from search.patience import Refused, Trouble
from search.worker import failure

T = TypeVar("T")

CONNECT = 10.0  # seconds that a head has to answer; when it has been gone for 60, ray ends this process
RETRIES = 2  # times that ray runs an item anew whose worker died
_SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # the frame that either side of HTTP/2 begins with: three bytes of length, its type
KILLED = "WorkerCrashedError: every worker that it was given to died"


class RayExecutor(ClusterExecutor):
    """The CPUs of a running ray cluster, an item on each.

    Ray runs an item whose worker process or node died on another, twice. One that hangs is ended with its process. A
    process has a single connection to ray: one that is there already is used, and left open.

    Args:
        address: Of the head, like ``host:6379``; this machine must be a node of its cluster.
        timeout: As for `ClusterExecutor`.
        tell: As for `ClusterExecutor`.

    Raises:
        SearchError: If ray is not installed.
        SearchValueError: If no head answers there.
    """

    def __init__(self, address: str, timeout: float | None = None, tell: Callable[[str], None] | None = None) -> None:
        """Connect."""
        super().__init__(timeout, tell)
        self.address = address
        with _hooks_kept():
            try:
                self._ray: Any = import_module("ray")
            except ImportError as error:
                raise SearchError("executor ray needs the package ray: pip install ray") from error
            self._opened = not self._ray.is_initialized()
            if self._opened:
                self._open()
        limits = {"num_cpus": 1, "max_retries": RETRIES, "retry_exceptions": False}
        self._remote = self._ray.remote(**limits)(_run)
        here = import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=False
        )
        board = self._ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_Board)
        self._board: Any = board.remote()
        self._sent: dict[str, Any] = {}
        self._places: dict[str, set[str]] = {}
        self._looked = time.monotonic()

    def _open(self) -> None:
        rule = "address must be that of a running ray head, like host:6379, whose cluster has this machine as a node"
        try:
            _greet(self.address)
            self._ray.init(self.address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise SearchValueError(f"{rule}, got {self.address!r}: {reason}") from error

    @property
    def workers(self) -> int:
        """How many CPUs there are now."""
        self._check_connected()
        return int(self._answer(self._ray.cluster_resources).get("CPU", 0))

    def close(self) -> None:
        """End this job's processes and disconnect; the nodes live on."""
        if self._opened and self._ray.is_initialized():
            with _hooks_kept():
                self._ray.shutdown()

    def _check_connected(self) -> None:
        """Wait while the head does not answer, for as long as it has to; then it is gone."""
        deadline = time.monotonic() + CONNECT
        while True:
            try:
                return _connected(self.address).close()
            except OSError as error:
                if time.monotonic() > deadline:
                    raise SearchError(f"the ray head at {self.address} is gone") from error
                time.sleep(0.1)

    def _answer(self, question: Callable[[], T]) -> T:
        """What the head says; asked in a thread, as ray waits for as long as it lives for one that has just gone."""
        answers: queue.Queue[T] = queue.Queue()
        threading.Thread(target=lambda: answers.put(question()), daemon=True).start()
        try:
            return answers.get(timeout=CONNECT)
        except queue.Empty:
            raise SearchError(f"the ray head at {self.address} is gone") from None

    def _submit(self, sent: Parcel, item: Any) -> Any:
        self._sent = cargo = {
            key: self._sent.get(key) or self._ray.put(thing.pack()) for key, thing in sent.cargo.items()
        }
        return self._remote.remote(self._board, sent.pickled, cargo, item)

    def _wait(self, handles: list[Any], seconds: float) -> Iterable[Any]:
        self._check_connected()
        if not handles:  # no worker
            time.sleep(seconds)
            return ()
        done: list[Any] = self._ray.wait(handles, timeout=seconds)[0]
        if time.monotonic() - self._looked >= TICK:
            self._look(handles)
        return self._ray.wait(handles, num_returns=len(handles), timeout=0)[0] if done else ()

    def _look(self, handles: list[Any]) -> None:
        """Ask the board where they run; what is not heard in time is heard the next time."""
        errors, names = self._ray.exceptions, {_name(handle): handle for handle in handles}
        told: dict[str, list[str]] = {}
        with suppress(errors.RayActorError, errors.GetTimeoutError):
            told = self._ray.get(self._board.places.remote(list(names)), timeout=CONNECT)
        # A board that died remembers nothing from before.
        self._places = {name: self._places.get(name, set()).union(told.get(name, ())) for name in names}
        # Where memory runs out, ray would try for ever.
        self._cancel([names[name] for name, places in self._places.items() if len(places) > 1 + RETRIES])
        self._looked = time.monotonic()

    def _outcome(self, handle: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(handle)
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError, errors.TaskCancelledError):
            return Trouble(KILLED)
        except errors.RayTaskError as error:  # what an item raises is part of a reply
            return Refused(failure(error.cause).reason)
        except errors.RayError as error:
            return Trouble(failure(error).reason)

    def _place(self, handle: Any) -> Hashable:
        return len(self._places.get(_name(handle), ())) or None  # the how-manieth

    def _abandon(self, handle: Any) -> None:
        self._cancel([handle])

    def _cancel(self, handles: list[Any]) -> None:
        for handle in handles:
            self._ray.cancel(handle, force=True)


class _Board:
    """Where items run or ran: each says so when it begins, as ray does not tell one that runs from one that waits."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}

    def note(self, name: str, place: str) -> None:
        self._places.setdefault(name, []).append(place)

    def places(self, names: list[str]) -> dict[str, list[str]]:
        """Of those; of all others nothing is kept."""
        self._places = {name: places for name, places in self._places.items() if name in names}
        return self._places


def _run(board: Any, pickled: bytes, cargo: dict[str, Any], item: Any) -> Any:
    ray: Any = import_module("ray")
    context = ray.get_runtime_context()
    board.note.remote(context.get_task_id(), f"{context.get_node_id()} {os.getpid()}")
    return call(pickled, {key: partial(ray.get, reference) for key, reference in cargo.items()}, item)


def _name(handle: Any) -> str:
    return handle.task_id().hex()  # type: ignore[no-any-return]


def _connected(address: str) -> socket.socket:
    """Raise an OSError unless something listens there."""
    host, _, port = address.rpartition(":")
    try:
        return socket.create_connection((host, int(port)), timeout=CONNECT)
    except ValueError:
        raise OSError("it has no port") from None


def _greet(address: str) -> None:
    """Raise an OSError unless what listens there speaks HTTP/2, as a head does: ray waits for minutes for others."""
    with _connected(address) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS)
        if connection.recv(len(_SETTINGS))[3:4] != _SETTINGS[3:4]:
            raise OSError("what answers there is no ray head")


@contextmanager
def _hooks_kept() -> Iterator[None]:
    """Keep what ray sets for the whole process: what is done at SIGTERM, and with an error that nobody catches."""
    hook, handler = sys.excepthook, signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        sys.excepthook = hook
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
