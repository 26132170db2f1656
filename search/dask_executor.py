"""Evaluations on the workers of a dask cluster, which may join, leave and die meanwhile."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any
from uuid import uuid4

from search.cargo import Cargo, Parcel, call
from search.cluster import ClusterExecutor, Lost
from search.errors import SearchError, SearchValueError
from search.executor import TICK
from search.patience import Refused, Trouble
from search.worker import failure

CONNECT = 10.0  # seconds that a scheduler has to answer
RULE = "address must be that of a running dask scheduler"
KILLED = "KilledWorker: every worker that it was given to died"
_ONE_AT_A_TIME = threading.Lock()  # functions may cache what is not safe for threads


class DaskExecutor(ClusterExecutor):
    """Workers of a running dask scheduler.

    Dask runs an item whose worker died on another, three times. As it runs items in threads, one that hangs is ended
    with its worker process, which the worker's nanny starts anew; a worker without a nanny is lost then.

    Args:
        address: Of the scheduler, like ``tcp://host:8786``.
        timeout: As for `ClusterExecutor`.
        tell: As for `ClusterExecutor`.

    Raises:
        SearchError: If distributed is not installed.
        SearchValueError: If no scheduler answers there.
    """

    def __init__(self, address: str, timeout: float | None = None, tell: Callable[[str], None] | None = None) -> None:
        """Connect."""
        super().__init__(timeout, tell)
        try:
            self._distributed: Any = import_module("distributed")
        except ImportError as error:
            raise SearchError("executor dask needs the package distributed: pip install distributed") from error
        self.address = address
        try:
            self._distributed.comm.get_address_host_port(address)
            asyncio.run(asyncio.wait_for(self._greet(address), CONNECT))  # a client that fails stays for a while
            self._client: Any = self._distributed.Client(address, timeout=CONNECT, set_as_default=False)
        except TimeoutError as error:
            raise SearchValueError(f"{RULE}, got {address!r}: no answer within {CONNECT:g} s") from error
        except (OSError, TypeError, ValueError) as error:
            raise SearchValueError(f"{RULE}, got {address!r}: {str(error).partition(chr(10))[0]}") from error
        self._sent: dict[str, Any] = {}
        self._places: dict[str, str] = {}
        self._topic = f"blend-{uuid4()}"
        self._client.subscribe_topic(self._topic, lambda event: self._places.update([event[1]]))

    async def _greet(self, address: str) -> None:
        """Have what listens there say what it is; a client would wait for ever for what says nothing."""
        security = self._distributed.Security().get_connection_args("client")
        greeting = await self._distributed.comm.connect(address, timeout=CONNECT, **security)
        await greeting.close()

    @property
    def workers(self) -> int:
        """How many there are now; each runs one item at a time, however many threads it has."""
        self._check_connected()
        try:
            return len(self._client.nthreads())
        except OSError:  # the connection has just been lost
            return 0

    def close(self) -> None:
        """Disconnect; the workers live on."""
        self._client.close()

    def _submit(self, sent: Parcel, item: Any) -> Any:
        try:
            self._sent = cargo = {key: self._share(key, thing) for key, thing in sent.cargo.items()}
        except TimeoutError:  # there is nobody to share it with
            return None
        except OSError:  # the connection has just been lost
            self._check_connected()
            return None
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise SearchError(
                f"each worker of the dask cluster at {self.address} must have this package installed, but one cannot "
                f"take what it is sent: {reason}"
            ) from error
        key = f"blend-{uuid4()}"
        return self._client.submit(_run, self._topic, key, sent.pickled, cargo, item, key=key)

    def _share(self, key: str, cargo: Cargo) -> Any:
        """The cargo on the cluster; sent anew only if it was lost."""
        known = self._sent.get(key)
        if known is not None and known.status == "finished":
            return known
        return self._client.scatter(_Packed(cargo.pack()), broadcast=True, hash=False)

    def _wait(self, handles: list[Any], seconds: float) -> Iterable[Any]:
        if not handles:  # no worker
            time.sleep(seconds)
            return ()
        with self._client.as_current(), suppress(TimeoutError, CancelledError):
            self._distributed.wait(handles, timeout=seconds, return_when="FIRST_COMPLETED")
        self._check_connected()
        return [handle for handle in handles if handle.done()]

    def _check_connected(self) -> None:
        """Wait while the client tries to connect again, for as long as a scheduler has to answer; then it is gone."""
        while self._client.status == "connecting":
            time.sleep(0.1)
        if self._client.status != "running":
            raise SearchError(f"the dask scheduler at {self.address} is gone")

    def _outcome(self, handle: Any) -> Any:
        self._places.pop(handle.key, None)
        if handle.status in ("lost", "cancelled"):
            self._check_connected()
            return Lost(KILLED)  # with the last worker that held its cargo
        if handle.status == "error":
            error = handle.exception()
            if isinstance(error, self._distributed.KilledWorker):
                return Trouble(KILLED)
            return Refused(failure(error).reason)  # what an item raises is part of a reply
        try:
            return handle.result()
        except CancelledError:  # its worker took it along, just when it was asked for
            self._check_connected()
            return Lost(KILLED)

    def _place(self, handle: Any) -> Hashable:
        return self._places.get(handle.key)

    def _abandon(self, handle: Any) -> None:
        self._cancel([handle])
        threading.Thread(target=self._end, args=[self._places.pop(handle.key)], daemon=True).start()

    def _end(self, worker: str) -> None:
        """End a worker's process, however often it has to be told; what hangs may not even let it answer."""
        with suppress(OSError, RuntimeError):  # disconnected meanwhile
            while self._client.status == "running" and worker in self._client.nthreads():
                self._client.run(os._exit, 1, workers=[worker], on_error="ignore")
                time.sleep(TICK)

    def _cancel(self, handles: list[Any]) -> None:
        if self._client.status == "running":
            self._client.cancel(handles, force=True)


class _Packed:
    """Bytes that dask does not look into."""

    def __init__(self, content: bytes) -> None:
        self.content = content


def _run(topic: str, key: str, pickled: bytes, cargo: dict[str, _Packed], item: Any) -> Any:
    worker: Any = import_module("distributed").get_worker()
    with _ONE_AT_A_TIME:
        worker.log_event(topic, (key, worker.address))
        return call(pickled, {name: partial(getattr, packed, "content") for name, packed in cargo.items()}, item)
