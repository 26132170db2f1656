"""Random search, the baseline that evolution has to beat."""

from search.space import Space
from search.strategy import AskTell, IsKnown, novel


class RandomSearch(AskTell):
    """Samples the space uniformly and remembers the best.

    Args:
        space: What is searched.
        population: Number of genomes in a generation.
        seed: Seed of the own random state.
    """

    def __init__(self, space: Space, *, population: int, seed: int) -> None:
        """Start at generation 0 with nothing known."""
        super().__init__(space, population=population, elite=population, seed=seed)

    def _propose(self, is_known: IsKnown, limit: int | None) -> list[list[float]]:
        size = self.population if limit is None else min(limit, self.population)
        return [novel(lambda attempt: self._sample(), is_known) for _ in range(size)]
