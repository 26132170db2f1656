"""Elitist evolution of mixed genomes."""

import random
from collections.abc import Sequence

from deap import tools

from search.errors import SearchValueError
from search.individual import Individual
from search.novelty import IsKnown, Propose, novel
from search.space import Space
from search.strategy import Strategy
from search.variation import cross_blocks


class Evolution(Strategy):
    """A (μ + λ) evolution: the best `elite` genomes ever seen are the parents of the next `population`.

    An offspring takes whole blocks from two parents and then a sparse mutation. Evaluations are few and dear, so the
    defaults are greedy: few parents and many short generations find more than a large, slowly moving population.

    Args:
        space: What is searched.
        population: Number of offspring in a generation (λ).
        seed: Seed of the own random state.
        initial: As for `search.strategy.Strategy`; what fills up the first generation is mostly offspring of theirs.
        crossover: Probability that an offspring has two parents.
        mutation: Probability that a gene of an offspring changes; at least one always does.
        tournament: Number of survivors of which the best becomes a parent.
        elite: Number of survivors (μ).

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
        crossover: float = 1.0,
        mutation: float = 0.1,
        tournament: int = 2,
        elite: int = 6,
    ) -> None:
        """Start at generation 0 with nothing known but the initial genomes."""
        super().__init__(space, population=population, elite=elite, seed=seed, initial=initial)
        for name, value in (("crossover", crossover), ("mutation", mutation)):
            if not 0 <= value <= 1:
                raise SearchValueError(f"{name} must be in [0, 1], got {value}")
        if tournament < 1:
            raise SearchValueError(f"tournament must be at least 1, got {tournament}")
        self.crossover = crossover
        self.mutation = mutation
        self.tournament = tournament

    @property
    def rival(self) -> list[float] | None:
        """The worst survivor, once there are as many as survive."""
        return self._last_survivor()

    def _propose(self, is_known: IsKnown, count: int) -> list[list[float]]:
        return [novel(self._offspring, is_known) for _ in range(count)]

    def _filler(self, index: int) -> Propose:
        usual = super()._filler(index)
        return usual if usual == self._sampled else self._offspring

    def _offspring(self, attempt: int) -> list[float]:
        child, mate = map(Individual, self._parents())
        if random.random() < self.crossover:
            cross_blocks(child, mate, self.space)
        return self._mutated(child, attempt, self.mutation)

    def _parents(self) -> Sequence[Sequence[float]]:
        if not self._survivors:
            return random.choices(self.initial, k=2)
        return tools.selTournament(self._survivors, 2, self.tournament)  # type: ignore[no-any-return]
