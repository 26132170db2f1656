"""Elitist evolution of mixed genomes."""

import random
from collections.abc import Sequence

from deap import tools

from search.errors import SearchValueError
from search.individual import Individual
from search.space import Space
from search.strategy import AskTell, IsKnown, novel
from search.variation import cross_blocks, mutate

# By how much a proposal that turned out to be known is varied more at the next try.
_GROWTH = 1.5
# Of the genomes that fill up the first generation, one in so many is a fresh sample, the others vary initial ones.
_SAMPLED = 4


class Evolution(AskTell):
    """A (μ + λ) evolution: the best `elite` genomes ever seen are the parents of the next `population`.

    An offspring takes whole blocks from two parents and then a sparse mutation. Evaluations are few and dear, so the
    defaults are greedy: few parents and many short generations find more than a large, slowly moving population.

    Args:
        space: What is searched.
        population: Number of offspring in a generation (λ).
        seed: Seed of the own random state.
        initial: Known good genomes. All of them are the first generation, filled up to `population` mostly with
            offspring of theirs; without any, the first generation is sampled.
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
        super().__init__(space, population=population, elite=elite, seed=seed)
        for name, value in (("crossover", crossover), ("mutation", mutation)):
            if not 0 <= value <= 1:
                raise SearchValueError(f"{name} must be in [0, 1], got {value}")
        if tournament < 1:
            raise SearchValueError(f"tournament must be at least 1, got {tournament}")
        self.initial = [space.clip(genome) for genome in initial]
        self.crossover = crossover
        self.mutation = mutation
        self.tournament = tournament

    def _propose(self, is_known: IsKnown, limit: int | None) -> list[list[float]]:
        if self._survivors:
            size = self.population if limit is None else min(limit, self.population)
            return [novel(self._offspring, is_known) for _ in range(size)]
        first = [list(genome) for genome in self.initial[:limit]]
        for genome in first:
            is_known(genome)  # kept whatever the answer, but what fills up must differ from them
        size = self.population if limit is None else min(limit, self.population)
        fillers = range(size - len(first))
        return first + [novel(self._sampler if self._is_sampled(i) else self._offspring, is_known) for i in fillers]

    def _is_sampled(self, index: int) -> bool:
        return not self.initial or index % _SAMPLED == _SAMPLED - 1

    def _sampler(self, attempt: int) -> list[float]:
        return self._sample()

    def _offspring(self, attempt: int) -> list[float]:
        child, mate = map(Individual, self._parents())
        if random.random() < self.crossover:
            cross_blocks(child, mate, self.space)
        growth = _GROWTH**attempt
        mutate(child, self.space, min(1.0, self.mutation * growth), growth)
        return list(child)

    def _parents(self) -> Sequence[Sequence[float]]:
        if not self._survivors:
            return random.choices(self.initial, k=2)
        return tools.selTournament(self._survivors, 2, self.tournament)  # type: ignore[no-any-return]
