"""``make scaling``: how long searches take on many workers. Simulated time, real strategy, real loop; nothing is timed.

The loop is `search.search` with its generations, budget and archive; only the executor is another, whose workers keep
a virtual clock. The tables on stdout are those of docs/scaling.md.
"""

import heapq
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from search import Archive, Evolution, Executor, search
from tests.search_tests import toy

WORKERS = (8, 64, 512)
POPULATIONS = (16, 32, 64, 128, 256, 512, 1024, 2048)
EVALUATIONS = 4096


@dataclass(frozen=True)
class Assumptions:
    """What a candidate costs. All times in seconds.

    Attributes:
        images: Images that go through each candidate: recalibration and held-out.
        gigaflops: Of one image through half of a ResNet-50 at 224 x 224: 4.1 GMACs for the whole of it.
        throughput: GFLOP/s that a worker sustains.
        spread: Sigma of the lognormal factor on the time, of mean 1: racing, stragglers.
        propose: The driver's work on each candidate before a generation starts: genome, mask.
        dispatch: The driver's work on each candidate while workers compute: sending, receiving, keeping.
        transfer: Of the workspace to one worker; whoever has it passes it on, as in a tree.
    """

    images: int = 10_000 + 1_024
    gigaflops: float = 4.1
    throughput: float = 50.0
    spread: float = 0.4
    propose: float = 0.005
    dispatch: float = 0.002
    transfer: float = 10.0

    @property
    def mean(self) -> float:
        """Seconds of a candidate on average."""
        return self.images * self.gigaflops / self.throughput

    def sampler(self, seed: int = 0) -> Callable[[], float]:
        """Draws the seconds of one candidate after another."""
        generator = random.Random(seed)
        return lambda: self.mean * math.exp(generator.gauss(0.0, self.spread) - self.spread**2 / 2)


class SimulatedExecutor(Executor):
    """Gives items to whichever worker is free first, as the real ones do, and lets a clock go instead of working.

    Attributes:
        clock: Seconds since the start.
        busy: Seconds that workers computed, all together.
    """

    workers = 0

    def __init__(self, workers: int, seconds: Callable[[], float], assumptions: Assumptions) -> None:
        self.workers, self.seconds, self.assumptions = workers, seconds, assumptions
        self.clock = assumptions.transfer * math.ceil(math.log2(workers + 1))
        self.busy = 0.0

    def run(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield in the order of completion."""
        driver = self.clock + self.assumptions.propose * len(items)
        free = [driver] * self.workers
        ends = []
        for index in range(len(items)):
            driver = max(driver, heapq.heappop(free)) + self.assumptions.dispatch
            seconds = self.seconds()
            self.busy += seconds
            heapq.heappush(free, driver + seconds)
            ends.append((driver + seconds, index))
        for self.clock, index in sorted(ends):
            yield index, function(items[index])

    def close(self) -> None:
        """Nothing runs."""


@dataclass(frozen=True)
class Outcome:
    """Of one simulated search.

    Attributes:
        makespan: Seconds from its start to its end.
        efficiency: Share of that in which the workers computed.
        generations: How many there were.
    """

    makespan: float
    efficiency: float
    generations: int


def simulate(
    workers: int,
    population: int,
    evaluations: int = EVALUATIONS,
    seconds: Callable[[], float] | None = None,
    assumptions: Assumptions | None = None,
) -> Outcome:
    """The default strategy of `blend search`, on a sphere; which one it is does not matter, as all have generations.

    Args:
        workers: How many.
        population: Candidates per generation.
        evaluations: Budget.
        seconds: Draws the time of a candidate; of the assumptions by default.
        assumptions: About everything else.
    """
    assumptions = assumptions or Assumptions()
    executor = SimulatedExecutor(workers, seconds or assumptions.sampler(), assumptions)
    strategy = Evolution(toy.SPACE, population=population, seed=0)
    search(strategy, toy.Sphere(digits=12), Archive(), executor, phase="search", evaluations=evaluations)
    return Outcome(executor.clock, executor.busy / workers / executor.clock, strategy.generation)


def without_generations(workers: int, evaluations: int, assumptions: Assumptions) -> Outcome:
    """All candidates in one generation that was proposed before: what strategies that wait for nobody could do."""
    executor = SimulatedExecutor(workers, assumptions.sampler(), replace(assumptions, propose=0.0))
    list(executor.run(bool, range(evaluations)))
    return Outcome(executor.clock, executor.busy / workers / executor.clock, 1)


def table(assumptions: Assumptions, unit: float, name: str) -> str:
    """Makespan and efficiency, population by number of workers, in Markdown.

    Args:
        assumptions: About times.
        unit: Seconds of the unit in which makespans are told.
        name: Of the unit.
    """
    lines = ["| population | generations | " + " | ".join(f"{workers} workers" for workers in WORKERS) + " |"]
    lines.append("|---|---:|" + "---:|" * len(WORKERS))

    def row(population: object, generations: object, outcomes: list[Outcome]) -> None:
        cells = [f"{outcome.makespan / unit:.3g} {name}, {outcome.efficiency:.2f}" for outcome in outcomes]
        lines.append(f"| {population} | {generations} | " + " | ".join(cells) + " |")

    for population in POPULATIONS:
        outcomes = [simulate(workers, population, assumptions=assumptions) for workers in WORKERS]
        row(population, outcomes[0].generations, outcomes)
    row("no generations", "–", [without_generations(workers, EVALUATIONS, assumptions) for workers in WORKERS])
    return "\n".join(lines)


def rule(spreads: Sequence[float] = (0.0, 0.2, 0.4, 0.6), ratios: Sequence[int] = (1, 2, 4, 8, 16)) -> str:
    """Efficiency of 64 workers with so many candidates per worker and generation, by spread, in Markdown."""
    head = "| population / workers | " + " | ".join(f"spread {spread:g}" for spread in spreads) + " |"
    lines = [head, "|---|" + "---:|" * len(spreads)]
    for ratio in ratios:
        values = [
            simulate(64, 64 * ratio, 64 * ratio * 10, assumptions=Assumptions(spread=spread)).efficiency
            for spread in spreads
        ]
        lines.append(f"| {ratio} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(lines)


ACCELERATOR = Assumptions(throughput=10_000.0)


if __name__ == "__main__":
    print(f"Workers of 50 GFLOP/s, {Assumptions().mean:.0f} s a candidate; hours, efficiency\n")
    print(table(Assumptions(), 3600.0, "h"))
    print(f"\nWorkers of 10 TFLOP/s, {ACCELERATOR.mean:.1f} s a candidate; minutes, efficiency\n")
    print(table(ACCELERATOR, 60.0, "min"))
    print("\nWorkers of 50 GFLOP/s, 64 of them, 10 generations; efficiency\n")
    print(rule())
