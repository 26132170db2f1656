"""What DEAP's operators work on.

Plain classes: `deap.creator` writes module globals, which worker processes and a second search in the same process
don't share.
"""

from collections.abc import Iterable

from deap import base


class Fitness(base.Fitness):
    """One number, maximised."""

    weights: tuple[float, ...] = (1.0,)


class Individual(list[float]):
    """A genome with its fitness; `fitness.valid` is false until it has been evaluated.

    Attributes:
        fitness: What selection compares.
    """

    def __init__(self, genome: Iterable[float] = (), fitness: float | None = None) -> None:
        """Copy `genome`; a copy of an individual starts without its fitness."""
        super().__init__(genome)
        self.fitness = Fitness() if fitness is None else Fitness((fitness,))

    @property
    def value(self) -> float:
        """The fitness as a number; the individual must have been evaluated."""
        return float(self.fitness.values[0])
