"""Evaluations on the workers of a dask cluster, which may join, leave and die meanwhile."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, Self, TypeVar

import cloudpickle

from search.errors import SearchError, SearchValueError
from search.worker import Failure, failure

T = TypeVar("T")
R = TypeVar("R")

_ONE_AT_A_TIME = threading.Lock()  # functions may cache what is not safe for threads


class DaskExecutor:
    """Workers of a running dask scheduler, however many there are.

    The function travels once per worker, not once per item, so it may carry what the items have in common. An item
    whose worker died is run on another by dask itself (three times); one that raised gets one more try here. Hanging
    items are not ended: dask runs them in threads.

    Args:
        address: Of the scheduler, like ``tcp://host:8786``.
        retries: How often items are sent again after what they need was lost with a worker.

    Raises:
        SearchError: If distributed is not installed.
        SearchValueError: If no scheduler answers there.
    """

    def __init__(self, address: str, retries: int = 3) -> None:
        """Connect."""
        try:
            distributed: Any = import_module("distributed")
        except ImportError as error:
            raise SearchError("executor dask needs the package distributed: pip install distributed") from error
        self.retries = retries
        self._distributed = distributed
        try:
            self._client: Any = distributed.Client(address, timeout=10, set_as_default=False)
        except (OSError, ValueError) as error:
            rule, reason = "address must be that of a running dask scheduler", str(error).partition("\n")[0]
            raise SearchValueError(f"{rule}, got {address!r}: {reason}") from error
        self._shared: tuple[str, Any] = ("", None)

    @property
    def workers(self) -> int:
        """How many there are now."""
        return len(self._client.nthreads())

    def run(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R | Failure]]:
        """Yield (index, result) for every item, in the order of completion; see `Executor`."""
        tries = dict.fromkeys(range(len(items)), 0)
        running = {self._submit(function, item): index for index, item in enumerate(items)}
        try:
            while running:
                with self._client.as_current():
                    done = self._distributed.wait(list(running), return_when="FIRST_COMPLETED").done
                for future in done:
                    index = running.pop(future)
                    outcome, attempts = self._outcome(future)
                    tries[index] += 1
                    if tries[index] <= attempts:
                        if future.status in ("lost", "cancelled"):
                            self._shared = ("", None)
                        running[self._submit(function, items[index])] = index
                    else:
                        yield index, outcome
        finally:
            if running:
                self._client.cancel(list(running))

    def close(self) -> None:
        """Disconnect; the workers live on."""
        self._client.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _submit(self, function: Callable[[T], R], item: T) -> Any:
        return self._client.submit(_run, self._share(function), item, pure=False)

    def _share(self, function: Callable[[T], R]) -> Any:
        """The function's bytes on the cluster; sent anew only when they differ from the last ones or were lost."""
        pickled = cloudpickle.dumps(function)
        digest = hashlib.sha256(pickled).hexdigest()
        known, shared = self._shared
        if known != digest or shared.status != "finished":
            shared = self._client.scatter(_Pickled(digest, pickled), broadcast=True, hash=False)
            self._shared = (digest, shared)
        return shared

    def _outcome(self, future: Any) -> tuple[Any, int]:
        """What came of an item, and how often such a thing is tried again."""
        if future.status in ("lost", "cancelled"):
            return Failure(f"its result was {future.status} with a worker"), self.retries
        if future.status == "error":
            error = future.exception()
            killed = isinstance(error, self._distributed.KilledWorker)
            return Failure("it killed several workers") if killed else failure(error), 0 if killed else 1
        result = future.result()
        return result, int(isinstance(result, Failure))


class _Pickled:
    """A function's bytes; unpickled once in each worker process."""

    def __init__(self, digest: str, pickled: bytes) -> None:
        self.digest = digest
        self.pickled = pickled


_loaded: dict[str, Callable[[Any], Any]] = {}


def _run(shared: _Pickled, item: Any) -> Any:
    with _ONE_AT_A_TIME:
        try:
            if shared.digest not in _loaded:
                _loaded.clear()
                _loaded[shared.digest] = cloudpickle.loads(shared.pickled)
            return _loaded[shared.digest](item)
        except Exception as error:  # noqa: BLE001 - one item's error is its result
            return failure(error)
