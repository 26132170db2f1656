"""Evolutionary search over mixed genomes; it knows nothing of networks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "archive": ("WORST_FITNESS", "Archive", "Evaluation"),
    "errors": ("SearchError", "SearchValueError"),
    "evolution": ("Evolution",),
    "executor": ("Executor", "Failure", "LocalExecutor"),
    "loop": ("Objective", "search"),
    "random_search": ("RandomSearch",),
    "space": ("Choice", "Gene", "Real", "Space"),
    "strategies": ("STRATEGIES",),
    "strategy": ("Strategy",),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: DEAP and joblib take long, and workers need little of them."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"search.{home}"), name)
    raise AttributeError(f"module 'search' has no attribute {name!r}")
