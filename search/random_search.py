"""Random search, the baseline that evolution has to beat."""

from collections.abc import Sequence

from search.novelty import IsKnown, novel
from search.space import Space
from search.strategy import Strategy


class RandomSearch(Strategy):
    """Samples the space uniformly and remembers the best.

    Args:
        space: What is searched.
        population: Number of genomes in a generation.
        seed: Seed of the own random state.
        initial: As for `search.strategy.Strategy`; without any, everything is sampled.
    """

    adapts = False

    def __init__(self, space: Space, *, population: int, seed: int, initial: Sequence[Sequence[float]] = ()) -> None:
        """Start at generation 0 with nothing known but the initial genomes."""
        super().__init__(space, population=population, elite=population, seed=seed, initial=initial)

    @property
    def rival(self) -> list[float] | None:
        """The best genome: nothing else is remembered for any purpose."""
        return list(self._survivors[0]) if self._survivors else None

    def _propose(self, is_known: IsKnown, count: int) -> list[list[float]]:
        return [novel(self._sampled, is_known) for _ in range(count)]
