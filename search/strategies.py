"""Every strategy by name."""

from collections.abc import Sequence
from typing import Protocol

from search.aging import AgingEvolution
from search.cma_es import CMAES
from search.evolution import Evolution
from search.greedy import GreedySearch
from search.nsga2 import NSGA2
from search.random_search import RandomSearch
from search.space import Space
from search.strategy import Strategy
from search.swap import SwapSearch


class MakesStrategy(Protocol):
    """What makes a strategy: a class whose other parameters have defaults."""

    def __call__(
        self, space: Space, *, population: int, seed: int, initial: Sequence[Sequence[float]] = ()
    ) -> Strategy:
        """Return the strategy at generation 0."""
        ...


STRATEGIES: dict[str, MakesStrategy] = {
    "ga": Evolution,
    "aging": AgingEvolution,
    "cma": CMAES,
    "greedy": GreedySearch,
    "swap": SwapSearch,
    "nsga2": NSGA2,
    "random": RandomSearch,
}
