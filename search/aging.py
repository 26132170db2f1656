"""Regularised evolution: everybody dies of age."""

import random
from collections.abc import Sequence
from typing import Any

from deap import tools

from search.errors import SearchValueError
from search.individual import Individual
from search.novelty import IsKnown, novel
from search.space import Space
from search.strategy import Strategy, individuals


class AgingEvolution(Strategy):
    """The population is a queue: newcomers enter at one end, the oldest leave at the other, however good they are.

    A parent is the best of a sample of the queue, a child its mutation; there is no crossover. A genome stays only
    through its offspring, so that luck and early winners cannot hold the population for long (Real et al., AAAI 2019,
    arXiv:1802.01548). Children come in generations here, so that they can be evaluated at the same time; of
    one age, the worst leave first.

    Args:
        space: What is searched.
        population: Number of children in a generation.
        seed: Seed of the own random state.
        initial: As for `search.strategy.Strategy`.
        lifetime: Generations that a genome lives; ``lifetime × population`` is the length of the queue.
        tournament: Share of the queue that is sampled for a parent.
        mutation: Probability that a gene of a child changes; at least one always does.

    Raises:
        SearchError: A value is out of its range, or an initial genome has the wrong length or a NaN.
    """

    def __init__(
        self,
        space: Space,
        *,
        population: int,
        seed: int,
        initial: Sequence[Sequence[float]] = (),
        lifetime: int = 3,
        tournament: float = 0.5,
        mutation: float = 0.1,
    ) -> None:
        """Start with an empty queue."""
        super().__init__(space, population=population, elite=1, seed=seed, initial=initial)
        if lifetime < 1:
            raise SearchValueError(f"lifetime must be at least 1, got {lifetime}")
        for name, value in (("tournament", tournament), ("mutation", mutation)):
            if not 0 < value <= 1:
                raise SearchValueError(f"{name} must be in (0, 1], got {value}")
        self.lifetime = lifetime
        self.tournament = tournament
        self.mutation = mutation
        self._queue: list[Individual] = []

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides the future; the queue with it."""
        return super().state_dict() | {
            "queue": [list(member) for member in self._queue],
            "queue_fitnesses": [member.value for member in self._queue],
        }

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._queue = individuals(state["queue"], state["queue_fitnesses"])

    def _propose(self, is_known: IsKnown, count: int) -> list[list[float]]:
        return [novel(self._child, is_known) for _ in range(count)]

    def _child(self, attempt: int) -> list[float]:
        sampled = random.sample(self._queue, max(1, round(self.tournament * len(self._queue))))
        (parent,) = tools.selBest(sampled, 1)
        return self._mutated(parent, attempt, self.mutation)

    def _learn(self, told: list[Individual]) -> None:
        of_an_age = sorted(told, key=lambda member: member.value)  # the worst leave first
        self._queue = (self._queue + of_an_age)[-self.lifetime * self.population :]

    @property
    def _members(self) -> list[Individual]:
        return self._queue
