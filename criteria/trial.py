"""A criterion in front of the conformance suite: the networks it is tried on, and the scores it gives there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from criteria.registry import Criterion
from criteria.scores import ScoreTable
from criteria.scoring import score
from criteria.specimens import Specimen

Scores = dict[str, NDArray[np.float64]]
"""Group → scores, of those that have usable ones."""

Found = list[str]
"""What is wrong, one line each."""

TOLERANCE = 1e-6
"""Relative to a group's largest score; the networks compute in double precision."""


@dataclass(frozen=True)
class Trial:
    """One criterion and the networks.

    Attributes:
        criterion: what is tried.
        on: the networks.
        first: for each network to which the criterion applies, by name, the table of the first call.
    """

    criterion: Criterion
    on: tuple[Specimen, ...]
    first: dict[str, ScoreTable] = field(default_factory=dict)

    @property
    def applicable(self) -> list[Specimen]:
        """The networks to which the criterion applies."""
        return [specimen for specimen in self.on if specimen.name in self.first]

    def scores(self, specimen: Specimen, *sizes: int) -> Scores:
        """The usable scores of a fresh call, the examples in batches of these sizes."""
        return _usable(scored(self.criterion, specimen, *sizes))

    def before(self, specimen: Specimen) -> Scores:
        """The usable scores of the first call."""
        return _usable(self.first[specimen.name])


Look = Callable[[Trial], Found | str]
"""One check: what it found, or a text that says why it does not apply."""


def scored(criterion: Criterion, specimen: Specimen, *sizes: int) -> ScoreTable:
    """The score table of one criterion on one specimen, its examples in batches of these sizes."""
    batches = specimen.batches(*sizes)
    return score(specimen.model, specimen.graph, batches, specimen.loss, [criterion], metric=_right)


def _right(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the highest output is the target's class, else 0."""
    return (outputs.argmax(1) == targets).double()


def _usable(table: ScoreTable) -> Scores:
    return {group: table.matrix(group)[0] for group in table.groups if table.usable(group)}


def unequal(where: str, expected: NDArray[np.float64], got: NDArray[np.float64] | None) -> Iterator[str]:
    """A line if scores differ by more than rounding, or are no longer there."""
    if got is None:
        yield f"{where}: there are no scores any more"
    else:
        error = float(np.abs(got - expected).max() / max(float(np.abs(expected).max()), 1e-300))
        if not error <= TOLERANCE:
            yield f"{where}: the scores differ by {error:.2g} of the largest"


def listed(scores: NDArray[np.float64]) -> str:
    """The first few scores, for a person."""
    shown = ", ".join(f"{score:.4g}" for score in scores[:4])
    return f"({shown}{', …' if len(scores) > 4 else ''})"
