"""Where evaluations run: in worker processes that may die, hang or raise, without the search noticing."""

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from search.errors import SearchError, SearchValueError
from search.patience import AS_ASKED, Patience, Refused, Trouble, hangs
from search.worker import Answer, Unfit, Worker, died, failure, imported
from search.worker import Failure as Failure  # part of what an executor answers

T = TypeVar("T")
R = TypeVar("R")

TICK = 1.0  # seconds between two looks at what runs
GROWTH = 256 * 2**20  # bytes of resident memory that a worker may gain over twice its settled level


class Executor(ABC):
    """Runs a function on many items, somewhere."""

    @property
    @abstractmethod
    def workers(self) -> int:
        """How many items run at once, now."""

    @abstractmethod
    def run(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R | Failure]]:
        """Yield (index, result) for every item, in the order of completion."""

    @abstractmethod
    def close(self) -> None:
        """End the workers; what still runs is abandoned."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class LocalExecutor(Executor):
    """Worker processes on this machine.

    What goes wrong with an item (its worker dies or is killed, it takes too long, it raises) is first taken for an
    accident: when all others are done the item is run again, alone, so that neither a neighbour's memory nor its load
    can be the reason, and in another process. Only an item that goes wrong again and again is a `Failure`.
    A process that can run no item is replaced; where that goes on, it ends the run.

    A single worker is a process, too, so that crashes, signals and results are the same for 1 and N. The processes
    start with the first items, if not before, and stay warm between runs, so functions may cache what they load; one
    whose memory keeps growing is replaced.

    Args:
        workers: Number of processes.
        retries: How often an item is run again after its worker died; one that raised or took too long gets one more
            try, unless this is 0.
        timeout: Seconds after which an item hangs, loading included. None for 100 times the median so far but at least
            five minutes; one hour while there is none.
        growth: Bytes of resident memory that a worker may gain over twice its settled level before it is replaced.
    """

    def __init__(self, workers: int, retries: int = 2, timeout: float | None = None, growth: int = GROWTH) -> None:
        """Start nothing yet."""
        if workers < 1:
            raise SearchValueError(f"workers must be at least 1, got {workers}")
        if retries < 0:
            raise SearchValueError(f"retries must be at least 0, got {retries}")
        self.retries = retries
        self.patience = Patience(timeout)
        self._workers = [Worker(growth) for _ in range(workers)]

    @property
    def workers(self) -> int:
        """Number of processes."""
        return len(self._workers)

    def run(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R | Failure]]:
        """Yield (index, result) for every item, in the order of completion.

        Args:
            function: Picklable by cloudpickle.
            items: Picklable.

        Yields:
            The index of the item and what the function returned, or a `Failure` if it kept raising, hanging or killing
            its worker.

        Raises:
            KeyboardInterrupt: Ctrl-C in the driver; the workers are ended.
            SearchError: A worker can run no item at all.
        """
        suspects: list[tuple[_Job, Trouble]] = []
        refusals: list[Refused] = []  # in a row
        try:
            for job, outcome in self._attempt(function, items, range(len(items)), self._workers):
                if isinstance(outcome, Trouble):
                    suspects.append((job, outcome))
                else:
                    yield job.index, outcome
                refusals = [*refusals, outcome] if isinstance(outcome, Refused) else []
                if len(refusals) > self.retries:
                    raise _hopeless(refusals[-1])
            for job, trouble in suspects:
                yield job.index, self._retried(function, items, job, trouble)
        except BaseException:  # interrupted, or the caller wants no more: the workers must not go on behind its back
            self.close()
            raise

    def start(self, module: str) -> None:
        """Start the processes now, and let them import a module, without waiting for either."""
        for worker in self._workers:
            worker.submit(imported, module)

    def close(self) -> None:
        """End the workers; what still runs is abandoned. A later `run` starts new ones."""
        for worker in self._workers:
            worker.end()

    def _retried(self, function: Callable[[T], R], items: Sequence[T], job: "_Job", trouble: Trouble) -> R | Failure:
        outcome: Any = trouble
        tries = 1
        while isinstance(outcome, Trouble) and tries <= min(self.retries, outcome.retries):
            other = self._workers[(self._workers.index(job.worker) + 1) % self.workers]
            if other is job.worker:
                other.end()
            [(job, outcome)] = self._attempt(function, items, [job.index], [other])
            tries += 1
        if isinstance(outcome, Refused):
            raise _hopeless(outcome)
        return outcome.final(tries) if isinstance(outcome, Trouble) else outcome

    def _attempt(
        self, function: Callable[[T], R], items: Sequence[T], indices: Iterable[int], workers: Sequence[Worker]
    ) -> "Iterator[tuple[_Job, R | Trouble]]":
        """Yield every item's job and outcome, in the order of completion, each item tried once."""
        waiting, free = iter(indices), list(workers)
        running: dict[Future[Answer], _Job] = {}
        looked = time.monotonic()
        while True:
            while free and (index := next(waiting, None)) is not None:
                worker = free.pop()
                running[worker.submit(function, items[index])] = _Job(index, worker)
            if not running:
                return
            done = wait(running, timeout=TICK, return_when=FIRST_COMPLETED).done
            now = time.monotonic()
            for job in running.values():
                job.seconds += min(now - looked, 2 * TICK)  # what goes beyond, this process stood still itself
            looked = now
            limit = self.patience.limit
            for future, job in list(running.items()):
                if future in done or job.seconds > limit:
                    del running[future]
                    free.append(job.worker)
                    yield job, self._outcome(future, job, limit)

    def _outcome(self, future: Future[Answer], job: "_Job", limit: float) -> Any:
        late = not future.done()  # asked before its end, which is the future's, too
        if late or died(future):
            job.worker.end()
            return hangs(limit) if late else _died(future)
        error = future.exception()
        if isinstance(error, KeyboardInterrupt):
            raise error
        answer = future.result() if error is None else Answer(failure(error), 0)
        if isinstance(answer.result, Unfit):
            job.worker.end()  # another process may be able to
            return Refused(answer.result.reason, retries=AS_ASKED)
        if isinstance(answer.result, Failure):
            return Trouble(answer.result.reason)
        job.worker.release_if_grown(answer.memory)
        self.patience.took(job.seconds)
        return answer.result


@dataclass
class _Job:
    """An item on a worker, and the seconds that it was seen to run."""

    index: int
    worker: Worker
    seconds: float = 0.0


def _hopeless(refusal: Refused) -> SearchError:
    return SearchError(f"no candidate can be evaluated: {refusal.reason}")


def _died(future: Future[Answer]) -> Trouble:
    told = re.search(r"exit codes of the workers are \{(.*?)\}", str(future.exception()))
    code = f", exit code {told[1]}" if told else ""
    hint = "; out of memory?" if "SIGKILL" in code else ""
    return Trouble(f"the worker died{code}{hint}", retries=AS_ASKED, counted=True)
