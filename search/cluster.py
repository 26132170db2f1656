"""What executors on clusters share: how items are handed out, watched, tried again and given up."""

import time
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from search.cargo import Parcel, Reply, parcel
from search.errors import SearchError
from search.executor import TICK, Executor
from search.machine import kind
from search.patience import Patience, Refused, Trouble, hangs
from search.worker import Failure, Unfit

T = TypeVar("T")
R = TypeVar("R")

QUIET = 15.0  # seconds without anything under way after which that is told
LOSSES = 3  # times that an item's result may be lost before that is taken for its fault
PAUSES = (2.0, 8.0, 30.0)  # seconds before an item is sent again that a worker has refused: its disk may have been full


class Lost(Trouble):
    """A result that was gone before it came, through no fault of the item."""


class ClusterExecutor(Executor):
    """Workers of a cluster, however many there are at the moment.

    No more items are under way than there are workers, so that a worker that dies takes a single item with it. The
    cluster's own scheduler runs an item whose worker died on another, a few times. What goes wrong nevertheless, raises
    or takes too long is tried once more when all others are done, alone; what goes wrong again is a `Failure`.

    A function travels with every item, its `Cargo` once to each worker.

    A worker that can run no item is waited for, while others go on; what is refused to the end ends it all.

    Args:
        timeout: As for `LocalExecutor`; it counts from when a worker takes up an item. What hangs costs its worker
            process, which is ended.
        tell: Is told, in one line, when no worker has taken up anything for a while, or one cannot.
    """

    def __init__(self, timeout: float | None = None, tell: Callable[[str], None] | None = None) -> None:
        """Keep the time limit; whoever inherits connects."""
        self.patience = Patience(timeout)
        self.tell = tell or (lambda line: None)
        self._kinds = {kind()}  # of processors
        self._reasons: set[str] = set()  # of refusals, that were told

    @abstractmethod
    def _submit(self, sent: Parcel, item: Any) -> Any:
        """Send an item on its way; return a handle on it, or None if the last worker has just gone."""

    @abstractmethod
    def _wait(self, handles: list[Any], seconds: float) -> Iterable[Any]:
        """Return those that are done, after so long at most."""

    @abstractmethod
    def _outcome(self, handle: Any) -> Any:
        """Return the `Reply` to one that is done, or a `Trouble`."""

    @abstractmethod
    def _place(self, handle: Any) -> Hashable:
        """Return where it runs, and nothing while it waits."""

    @abstractmethod
    def _abandon(self, handle: Any) -> None:
        """Give one up that hangs, with the process that it hangs in."""

    @abstractmethod
    def _cancel(self, handles: list[Any]) -> None:
        """Forget those; nobody wants their results."""

    def run(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R | Failure]]:
        """Yield (index, result) for every item, in the order of completion; see `Executor`.

        Raises:
            SearchError: If the cluster is gone, or has a worker that cannot take part.
        """
        sent = parcel(function)
        suspects: list[int] = []
        for index, outcome in self._attempt(sent, items, range(len(items))):
            if isinstance(outcome, Trouble):
                suspects.append(index)
            else:
                yield index, outcome
        for index in suspects:
            [(_, outcome)] = self._attempt(sent, items, [index])
            yield index, outcome.final(2) if isinstance(outcome, Trouble) else outcome

    def _attempt(self, sent: Parcel, items: Sequence[Any], indices: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Yield every item's index and outcome, in the order of completion."""
        waiting, losses, refusals = deque(indices), Counter[int](), _Refusals(self.tell, self._reasons)
        running: dict[Any, _Job] = {}
        looked, quiet = time.monotonic(), 0.0
        try:
            while waiting or running or refusals:
                waiting.extendleft(refusals.over())
                workers = self.workers
                for _ in range(min(len(waiting), workers - len(running))):
                    if (handle := self._submit(sent, items[waiting[0]])) is None:
                        break
                    running[handle] = _Job(waiting.popleft())
                done = self._wait(list(running), TICK)
                looked, passed = time.monotonic(), min(time.monotonic() - looked, 2 * TICK)
                for handle, job in running.items():
                    job.watch(self._place(handle), passed)
                busy = done or refusals or (workers and any(job.place is not None for job in running.values()))
                before, quiet = quiet, 0.0 if busy else quiet + passed
                if before <= QUIET < quiet:
                    self.tell(_what_is_awaited(workers))
                for handle in done:
                    job = running.pop(handle)
                    outcome = self._judged(handle, job)
                    losses[job.index] += isinstance(outcome, Lost)
                    if isinstance(outcome, Lost) and losses[job.index] <= LOSSES:
                        waiting.appendleft(job.index)
                    elif isinstance(outcome, Refused):
                        refusals.add(job.index, outcome.reason)
                    else:
                        yield job.index, outcome
                limit = self.patience.limit
                for handle, job in [(handle, job) for handle, job in running.items() if job.seconds > limit]:
                    del running[handle]
                    self._abandon(handle)
                    yield job.index, hangs(limit)
        finally:
            if running:
                self._cancel(list(running))

    def _judged(self, handle: Any, job: "_Job") -> Any:
        reply = self._outcome(handle)
        if isinstance(reply, Trouble):
            return reply
        if not isinstance(reply, Reply):
            return Refused("it has another release of this package")
        if isinstance(reply.outcome, Unfit):
            return Refused(reply.outcome.reason)
        if reply.kind not in self._kinds:
            self._kinds.add(reply.kind)
            self.tell(_what_differs(reply.kind))
        if isinstance(reply.outcome, Failure):
            return Trouble(reply.outcome.reason)
        self.patience.took(job.seconds)
        return reply.outcome


def _what_is_awaited(workers: int) -> str:
    if workers == 0:
        return "the cluster has no worker; it goes on when one joins"
    return (
        f"none of the cluster's {workers} workers has taken up anything for {QUIET:g} s: they may have other work, or "
        "too little memory free to begin; it goes on when one does"
    )


def _what_differs(other: str) -> str:
    return (
        f"a worker has another kind of processor ({other}) than this machine ({kind()}), on which results may have "
        "other last digits: another time the search may go another way"
    )


class _Refusals:
    """Items that workers have refused, which are sent again after a while.

    Args:
        tell: Is told of each reason once.
        told: Of which it was told.
    """

    def __init__(self, tell: Callable[[str], None], told: set[str]) -> None:
        self.tell = tell
        self._told = told
        self._count = Counter[int]()
        self._due: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._due)

    def add(self, index: int, reason: str) -> None:
        """One more; raises a SearchError if that was one too many."""
        said = f"a worker of the cluster cannot take part: {reason}"
        self._count[index] += 1
        if self._count[index] > len(PAUSES):
            raise SearchError(said)
        if reason not in self._told:
            self._told.add(reason)
            self.tell(f"{said}; what it was to do is tried again in {PAUSES[0]:g} s")
        self._due[index] = time.monotonic() + PAUSES[self._count[index] - 1]

    def over(self) -> list[int]:
        """Those to be sent again now."""
        now = time.monotonic()
        over = [index for index, due in self._due.items() if due <= now]
        for index in over:
            del self._due[index]
        return over


@dataclass
class _Job:
    """An item under way, where it runs, and the seconds that it was seen to run there."""

    index: int
    place: Hashable = None
    seconds: float = 0.0

    def watch(self, place: Hashable, passed: float) -> None:
        if place != self.place:  # taken up, or anew by another worker
            self.place, self.seconds = place, 0.0
        elif place is not None:
            self.seconds += passed
