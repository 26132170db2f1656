"""Evolutionary search over mixed genomes; it knows nothing of networks."""

from search.archive import WORST_FITNESS, Archive, Evaluation
from search.errors import SearchError, SearchValueError
from search.evolution import Evolution
from search.executor import Executor, Failure, LocalExecutor
from search.loop import Objective, search
from search.random_search import RandomSearch
from search.space import Choice, Gene, Real, Space
from search.strategies import STRATEGIES
from search.strategy import Strategy

__all__ = [
    "STRATEGIES",
    "WORST_FITNESS",
    "Archive",
    "Choice",
    "Evaluation",
    "Evolution",
    "Executor",
    "Failure",
    "Gene",
    "LocalExecutor",
    "Objective",
    "RandomSearch",
    "Real",
    "SearchError",
    "SearchValueError",
    "Space",
    "Strategy",
    "search",
]
