"""Local search over orders: values change places inside their block."""

from collections.abc import Sequence

from search.errors import SearchValueError
from search.evolution import Evolution
from search.individual import Individual
from search.novelty import GROWTH, Propose
from search.space import Space
from search.variation import exchange, exchangeable


class SwapSearch(Evolution):
    """An evolution whose only mutation exchanges the values of two genes of one block.

    Where the genes of a block are scores of which the highest win, an exchange puts one thing in the place of another
    and leaves the number of winners as it is. Crossover of whole blocks joins exchanges that were found apart.

    Args:
        space: What is searched; at least one block with two genes of the same kind.
        population: Number of offspring in a generation.
        seed: Seed of the own random state.
        initial: As for `search.strategy.Strategy`; what they hold is all that can ever be exchanged.
        crossover: Probability that an offspring has two parents.
        elite: Number of survivors.

    Raises:
        SearchError: A value is out of its range, or there is nothing to exchange.
    """

    def __init__(
        self,
        space: Space,
        *,
        population: int,
        seed: int,
        initial: Sequence[Sequence[float]] = (),
        crossover: float = 0.5,
        elite: int = 4,
    ) -> None:
        """Start at generation 0 with nothing known but the initial genomes."""
        super().__init__(space, population=population, seed=seed, initial=initial, crossover=crossover, elite=elite)
        if not exchangeable(space):
            raise SearchValueError("space must have a block with two genes of the same kind, and there is none")

    def _filler(self, index: int) -> Propose:
        return self._offspring if self.initial else self._sampled

    def _mutated(self, genome: Sequence[float], attempt: int, rate: float = 0.1) -> list[float]:
        return list(*exchange(Individual(genome), self.space, round(self.boost * GROWTH**attempt)))
