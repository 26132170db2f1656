"""What a search strategy is, and the part that all of ours share.

A strategy proposes genomes (`ask`) and learns what they were worth (`tell`). It never calls the objective, owns its
random state, and can be saved and restored exactly.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from deap import tools

from search.diversity import diversity
from search.errors import SearchValueError
from search.individual import Individual
from search.space import Space

IsKnown = Callable[[list[float]], bool]

_TRIES = 8


class Strategy(Protocol):
    """What `search.loop.search` needs; see `AskTell` for the meaning of each part."""

    @property
    def generation(self) -> int:
        """Number of completed `tell` calls."""
        ...

    @property
    def best(self) -> tuple[list[float], float] | None:
        """The best genome so far and its fitness."""
        ...

    def ask(self, is_known: IsKnown | None = None, limit: int | None = None) -> list[list[float]]:
        """Return the genomes to evaluate next."""
        ...

    def tell(self, genomes: Sequence[Sequence[float]], fitnesses: Sequence[float]) -> None:
        """Learn the fitness of every genome asked."""
        ...

    def diversity(self) -> dict[str, float]:
        """Return how different the survivors still are."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides the future, as JSON-able data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        ...


class AskTell(ABC):
    """A strategy that keeps the best genomes it has seen; subclasses say how to propose new ones.

    Args:
        space: What is searched.
        population: Number of genomes in a generation.
        elite: Number of best genomes that survive.
        seed: Seed of the strategy's own random state.
    """

    def __init__(self, space: Space, *, population: int, elite: int, seed: int) -> None:
        """Start at generation 0 with nothing known."""
        for name, value in (("population", population), ("elite", elite)):
            if value < 1:
                raise SearchValueError(f"{name} must be at least 1, got {value}")
        self.space = space
        self.population = population
        self.elite = elite
        self._random = random.Random(seed)
        self._generation = 0
        self._survivors: list[Individual] = []
        self._pending: list[list[float]] = []

    @property
    def generation(self) -> int:
        """Number of completed `tell` calls."""
        return self._generation

    @property
    def best(self) -> tuple[list[float], float] | None:
        """The best genome so far and its fitness; among equals the one that was told first."""
        return (list(self._survivors[0]), self._survivors[0].value) if self._survivors else None

    def ask(self, is_known: IsKnown | None = None, limit: int | None = None) -> list[list[float]]:
        """Return the genomes to evaluate next; the same ones again until they are told.

        Args:
            is_known: Says that evaluating a genome would bring nothing new. It is asked once about every proposal, in
                order; a known one is proposed anew, more strongly varied, a bounded number of times.
            limit: Return no more than this many.

        Raises:
            SearchError: `limit` is below 1.
        """
        if limit is not None and limit < 1:
            raise SearchValueError(f"limit must be at least 1, got {limit}")
        if not self._pending:
            with self._own_random():
                self._pending = self._propose(is_known or _nothing_known, limit)
        self._pending = self._pending[:limit]
        return [list(genome) for genome in self._pending]

    def tell(self, genomes: Sequence[Sequence[float]], fitnesses: Sequence[float]) -> None:
        """Learn the fitness of every genome asked, in the order asked.

        Raises:
            SearchError: The genomes are not those asked, or a fitness is missing or not finite. Nothing is learnt then.
        """
        if not self._pending or [list(genome) for genome in genomes] != self._pending:
            raise SearchValueError(
                f"genomes must be the {len(self._pending)} asked, in order, got {len(genomes)} that differ"
            )
        if len(fitnesses) != len(genomes):
            raise SearchValueError(f"fitnesses must have one value a genome ({len(genomes)}), got {len(fitnesses)}")
        for index, fitness in enumerate(fitnesses):
            if not math.isfinite(fitness):  # NaN sorts as the best in DEAP's selection
                raise SearchValueError(f"fitnesses[{index}] must be finite, got {fitness}")
        told = [Individual(genome, fitness) for genome, fitness in zip(self._pending, fitnesses, strict=True)]
        self._survivors = _survivors(self._survivors + told, self.elite)
        self._pending = []
        self._generation += 1

    def diversity(self) -> dict[str, float]:
        """Return how different the survivors still are; see `search.diversity.diversity`."""
        return diversity(self.space, self._survivors)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides the future; ``json.loads(json.dumps(state))`` restores it bit for bit."""
        version, words, gauss = self._random.getstate()
        return {
            "strategy": type(self).__name__,
            "generation": self._generation,
            "population": [list(individual) for individual in self._survivors],
            "fitnesses": [individual.value for individual in self._survivors],
            "pending": [list(genome) for genome in self._pending],
            "random": [version, list(words), gauss],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` returned; the constructor's arguments must be the same.

        Raises:
            SearchError: The state is of another strategy or space, or incomplete. The strategy is unchanged then.
        """
        if state.get("strategy") != type(self).__name__:
            raise SearchValueError(f"state must be of a {type(self).__name__}, got {state.get('strategy')!r}")
        try:
            saved = zip(state["population"], state["fitnesses"], strict=True)
            survivors = [Individual(genome, fitness) for genome, fitness in saved]
            pending = [list(genome) for genome in state["pending"]]
            generation = int(state["generation"])
            version, words, gauss = state["random"]
        except KeyError as error:
            raise SearchValueError(f"state must have the key {error}, got {sorted(state)}") from None
        for genome in [*survivors, *pending]:
            self.space.check(genome)
        self._random.setstate((version, tuple(words), gauss))
        self._survivors, self._pending, self._generation = survivors, pending, generation

    @abstractmethod
    def _propose(self, is_known: IsKnown, limit: int | None) -> list[list[float]]:
        """Return a new generation, of at most `limit` genomes, drawing from the global `random`."""

    def _sample(self) -> list[float]:
        return self.space.sample(random.Random(random.getrandbits(64)))

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        """Lend the own random state to the global `random`, from which DEAP's operators draw."""
        callers = random.getstate()
        random.setstate(self._random.getstate())
        try:
            yield
            self._random.setstate(random.getstate())
        finally:
            random.setstate(callers)


def novel(propose: Callable[[int], list[float]], is_known: IsKnown) -> list[float]:
    """Return the first of ``propose(0)``, ``propose(1)``, … that is not known, or the last one tried."""
    for attempt in range(_TRIES):
        genome = propose(attempt)
        if not is_known(genome):
            break
    return genome


def _nothing_known(genome: list[float]) -> bool:
    return False


def _survivors(individuals: list[Individual], count: int) -> list[Individual]:
    """Return the `count` best, one of each fitness before a second of any.

    Evaluation is deterministic, so genomes that stand for the same phenotype agree in fitness to the last bit and
    must not fill the population. Different phenotypes may agree too (a plateau): they only queue behind.
    """
    first: list[Individual] = []
    again: list[Individual] = []
    seen: set[float] = set()
    for individual in tools.selBest(individuals, len(individuals)):
        (again if individual.value in seen else first).append(individual)
        seen.add(individual.value)
    return (first + again)[:count]
