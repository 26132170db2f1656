"""Elitist evolution of a front: fitness against cost."""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from deap import tools

from search.archive import WORST_FITNESS
from search.evolution import Evolution
from search.individual import Fitness, Individual
from search.space import Space

_FEWEST = 4  # that DEAP's tournament can hold


class TradeOff(Fitness):
    """Fitness, maximised, and cost, minimised."""

    weights = (1.0, -1.0)


class Compromise(Individual):
    """A genome with its fitness and its cost.

    Attributes:
        cost: What it costs; what failed costs more than anything, so that everything dominates it.
    """

    def __init__(self, genome: Sequence[float], fitness: float, cost: float) -> None:
        """Copy `genome`."""
        super().__init__(genome)
        self.cost = cost if fitness > WORST_FITNESS else -WORST_FITNESS
        self.fitness = TradeOff((fitness, self.cost))


class NSGA2(Evolution):
    """NSGA-II (Deb et al., IEEE TEC 6(2), 2002): the population is the front of all that was told, or what it is of it.

    Of parents and offspring together those survive that fewest dominate, and among equals those with most room around
    them. Parents are chosen by the same two questions. Offspring come about as in `search.evolution.Evolution`, and
    `best` is the fittest, whatever it costs.

    Args:
        space: What is searched.
        population: Number of offspring in a generation, and of parents.
        seed: Seed of the own random state.
        initial: As for `search.strategy.Strategy`.
        cost: What a genome costs. Without it all cost the same, and fitness alone decides.

    Raises:
        SearchError: `population` is below 1, or an initial genome has the wrong length or a NaN.
    """

    def __init__(
        self,
        space: Space,
        *,
        population: int,
        seed: int,
        initial: Sequence[Sequence[float]] = (),
        cost: Callable[[Sequence[float]], float] | None = None,
    ) -> None:
        """Start without parents."""
        super().__init__(space, population=population, seed=seed, initial=initial, elite=1)
        self.cost = cost
        self._front: list[Compromise] = []

    @property
    def rival(self) -> list[float] | None:
        """None: whom a proposal has to surpass depends on what it costs."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides the future; the parents with it."""
        return super().state_dict() | {
            "parents": [list(parent) for parent in self._front],
            "parents_fitnesses": [parent.value for parent in self._front],
            "parents_costs": [parent.cost for parent in self._front],
        }

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        parents = zip(state["parents"], state["parents_fitnesses"], state["parents_costs"], strict=True)
        self._front = _spaced(Compromise(*parent) for parent in parents)

    def _learn(self, told: list[Individual]) -> None:
        newcomers = (Compromise(one, one.value, self.cost(one) if self.cost else 0.0) for one in told)
        distinct: dict[tuple[float, ...], Compromise] = {}
        for one in (*self._front, *newcomers):
            distinct.setdefault(one.fitness.values, one)  # copies of a point would crowd others out
        self._front = _spaced(tools.selNSGA2(list(distinct.values()), self.population))

    def _parents(self) -> Sequence[Sequence[float]]:
        if not self._front:
            return super()._parents()
        if len(self._front) < _FEWEST:
            return random.choices(self._front, k=2)
        return tools.selTournamentDCD(self._front, _FEWEST)[:2]  # type: ignore[no-any-return]

    @property
    def _members(self) -> Sequence[Individual]:
        return self._front


def _spaced(parents: Iterable[Compromise]) -> list[Compromise]:
    """Return parents in an order of their own, each with its crowding distance: a function of the set alone."""
    ordered = sorted(parents, key=lambda one: one.fitness.values)
    for front in tools.sortNondominated(ordered, len(ordered)):
        tools.emo.assignCrowdingDist(front)
    return ordered
