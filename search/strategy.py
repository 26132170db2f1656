"""What a search strategy is.

A strategy proposes genomes (`ask`) and learns what they were worth (`tell`). It never calls the objective, owns its
random state, and can be saved and restored exactly.
"""

import copy
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from deap import tools

from search.diversity import diversity
from search.errors import SearchValueError
from search.individual import Individual
from search.novelty import GROWTH, IsKnown, Propose, Tally, novel
from search.space import Space
from search.variation import mutate

_DRY = 0.5  # share of known proposals above which they are running dry
_MOST = GROWTH**4  # no more than that: steps would only be clipped at the bounds
# Of the genomes that fill up the first generation, one in so many is a fresh sample, the others vary initial ones.
_SAMPLED = 4


class Strategy(ABC):
    """Proposes genomes and keeps the best that it has seen; subclasses say how to propose new ones.

    Args:
        space: What is searched.
        population: Number of genomes in a generation.
        elite: Number of best genomes that survive.
        seed: Seed of the strategy's own random state.
        initial: Known good genomes. All of them are the first generation, filled up to `population` mostly with
            variations of theirs; without any, the first generation is sampled.
    """

    adapts = True
    """Whether proposals vary more strongly (`boost`) while most of them turn out to be known."""

    def __init__(
        self, space: Space, *, population: int, elite: int, seed: int, initial: Sequence[Sequence[float]] = ()
    ) -> None:
        """Start at generation 0 with nothing known."""
        for name, value in (("population", population), ("elite", elite)):
            if value < 1:
                raise SearchValueError(f"{name} must be at least 1, got {value}")
        self.space = space
        self.population = population
        self.elite = elite
        self.initial = [space.clip(genome) for genome in initial]
        self.boost = 1.0
        self._proposed = self._known = 0
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

    @property
    def rival(self) -> list[float] | None:
        """A genome which a proposal has to surpass to have any influence; None if every one may have some."""
        return None

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
                self._pending = self._next(is_known or _nothing_known, limit)
        self._pending = self._pending[:limit]
        return [list(genome) for genome in self._pending]

    def _last_survivor(self) -> list[float] | None:
        """Return the one that the next survivor displaces; with two of a fitness, any new fitness displaces one."""
        values = {survivor.value for survivor in self._survivors}
        return list(self._survivors[-1]) if len(values) == self.elite else None

    def _next(self, is_known: IsKnown, limit: int | None) -> list[list[float]]:
        first = [] if self._generation else [list(genome) for genome in self.initial[:limit]]
        for genome in first:
            is_known(genome)  # kept whatever the answer, but what fills up must differ from them
        tally = Tally(is_known)
        missing = (self.population if limit is None else min(limit, self.population)) - len(first)
        if missing > 0 and self._survivors:
            first += self._propose(tally, missing)
        else:
            first += [novel(self._filler(index), tally) for index in range(missing)]
        self._proposed, self._known = tally.proposed, tally.known
        if self.adapts and tally.proposed:
            dry = tally.known > _DRY * tally.proposed
            self.boost = min(self.boost * GROWTH, _MOST) if dry else max(self.boost / GROWTH, 1.0)
        return first

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
        self._learn(told)
        self._pending = []
        self._generation += 1

    def diversity(self) -> dict[str, float]:
        """Return how different the population still is; see `search.diversity.diversity`."""
        return diversity(self.space, self._members)

    def proposals(self) -> dict[str, float]:
        """Return what became of the last generation's proposals.

        Returns:
            ``proposed``: proposals made, further tries included, initial genomes not. ``known``: those of them that
            would have brought nothing new. ``boost``: how much more strongly the next ones vary, 1 unless most of the
            last ones were known; it falls again when they no longer are.
        """
        return {"proposed": self._proposed, "known": self._known, "boost": self.boost}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides the future; ``json.loads(json.dumps(state))`` restores it bit for bit."""
        version, words, gauss = self._random.getstate()
        return {
            "strategy": type(self).__name__,
            "generation": self._generation,
            "population": [list(individual) for individual in self._survivors],
            "fitnesses": [individual.value for individual in self._survivors],
            "pending": [list(genome) for genome in self._pending],
            **self.proposals(),
            "random": [version, list(words), gauss],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` returned; the constructor's arguments must be the same.

        Raises:
            SearchError: The state is of another strategy or space, or incomplete. The strategy is unchanged then.
        """
        if state.get("strategy") != type(self).__name__:
            raise SearchValueError(f"state must be of a {type(self).__name__}, got {state.get('strategy')!r}")
        loaded = copy.copy(self)
        try:
            loaded._load(state)
        except KeyError as error:
            raise SearchValueError(f"state must have the key {error}, got {sorted(state)}") from None
        for genome in [*loaded._survivors, *loaded._members, *loaded._pending]:
            self.space.check(genome)
        self.__dict__ |= loaded.__dict__

    def _load(self, state: dict[str, Any]) -> None:
        """Set attributes from a state; what is mutable must be made anew."""
        self._survivors = individuals(state["population"], state["fitnesses"])
        self._pending = [list(genome) for genome in state["pending"]]
        self._generation = int(state["generation"])
        self._proposed, self._known, self.boost = state["proposed"], state["known"], state["boost"]
        version, words, gauss = state["random"]
        self._random = random.Random()
        self._random.setstate((version, tuple(words), gauss))

    @abstractmethod
    def _propose(self, is_known: IsKnown, count: int) -> list[list[float]]:
        """Return 1 to `count` new genomes, drawing from the global `random`; the strategy has been told before.

        It must not change the strategy before the last call of `is_known`, which may raise.
        """

    def _learn(self, told: list[Individual]) -> None:  # noqa: B027 - most have nothing more to learn
        """Learn a generation beyond its survivors."""

    @property
    def _members(self) -> Sequence[Individual]:
        """What counts as the population."""
        return self._survivors

    def _filler(self, index: int) -> Propose:
        """Return what proposes the genome of this index of those that fill up the first generation."""
        if not self.initial or index % _SAMPLED == _SAMPLED - 1:
            return self._sampled
        return lambda attempt: self._mutated(random.choice(self.initial), attempt)

    def _sampled(self, attempt: int) -> list[float]:
        return self.space.sample(random.Random(random.getrandbits(64)))

    def _mutated(self, genome: Sequence[float], attempt: int, rate: float = 0.1) -> list[float]:
        """Return a mutated copy, mutated the more the more often that has been tried and proposals have run dry."""
        strength = self.boost * GROWTH**attempt
        return list(*mutate(Individual(genome), self.space, min(1.0, rate * strength), strength))

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


def individuals(genomes: Sequence[Sequence[float]], fitnesses: Sequence[float]) -> list[Individual]:
    """Return genomes with their fitnesses, as a state holds them."""
    return [Individual(genome, fitness) for genome, fitness in zip(genomes, fitnesses, strict=True)]


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
