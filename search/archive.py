"""Every evaluation once: the cache by phenotype, and the history."""

import math
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from search.errors import SearchError, SearchValueError

WORST_FITNESS = -1e30
"""Fitness of an evaluation that failed or was not finite: below any real one, but finite, so that it sorts."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation asked for by a strategy.

    A long search has thousands, so lists of floats are kept as arrays, in a third of the memory.

    Attributes:
        number: Position in the archive's history, from 0.
        phase: What it was made for, such as the search itself or a baseline.
        generation: Generation of that phase, from 0.
        genome: The genome; None where the phenotype did not come from one.
        phenotype: What the genome stands for: evaluations with equal phenotypes have equal results.
        fitness: Finite; `WORST_FITNESS` if the evaluation failed.
        details: The evaluator's whole answer, JSON-able but for such arrays; empty if there was none. One that it gave
            up early has the ``share`` of its work that was done.
        seconds: Time the evaluator took; 0 if cached.
        cached: Whether the result was copied from an earlier evaluation of the same phenotype.
        error: Why it failed, or None.
    """

    number: int
    phase: str
    generation: int
    genome: Sequence[float] | None
    phenotype: bytes
    fitness: float
    details: dict[str, Any]
    seconds: float
    cached: bool
    error: str | None

    def __post_init__(self) -> None:
        """Pack the floats."""
        details = {sys.intern(key): _packed(value) for key, value in self.details.items()}
        object.__setattr__(self, "genome", None if self.genome is None else array("d", self.genome))
        object.__setattr__(self, "details", details)

    @property
    def given_up(self) -> bool:
        """Whether it ended early, as what its phase wanted it to surpass was out of reach."""
        return "share" in self.details


class Archive:
    """All evaluations in order, found again by phenotype.

    Args:
        evaluations: A history to start from.
    """

    def __init__(self, evaluations: Iterable[Evaluation] = ()) -> None:
        """Add `evaluations` in order."""
        self._all: list[Evaluation] = []
        self._first: dict[bytes, Evaluation] = {}
        self._own: dict[tuple[str, bytes], Evaluation] = {}
        self._phases: dict[str, list[Evaluation]] = {}
        self._best: dict[str | None, Evaluation] = {}
        self._newest: dict[str, int] = {}
        self._fronts: dict[tuple[str, str | None], tuple[list[Evaluation], int]] = {}
        for evaluation in evaluations:
            self.add(evaluation)

    def add(self, evaluation: Evaluation) -> None:
        """Append an evaluation.

        Raises:
            SearchError: Its fitness is not finite.
        """
        if not math.isfinite(evaluation.fitness):
            raise SearchValueError(
                f"fitness must be finite (WORST_FITNESS and an error if it failed), got {evaluation.fitness}"
            )
        self._all.append(evaluation)
        known = self._first.get(evaluation.phenotype)
        if known is None or (known.given_up and not evaluation.given_up):
            self._first[evaluation.phenotype] = evaluation
        if self._own.setdefault((evaluation.phase, evaluation.phenotype), evaluation) is evaluation:
            self._newest[evaluation.phase] = evaluation.generation
        self._phases.setdefault(evaluation.phase, []).append(evaluation)
        for phase in (evaluation.phase, None) if evaluation.error is None else ():
            best = self._best.setdefault(phase, evaluation)
            if evaluation.fitness > best.fitness:
                self._best[phase] = evaluation

    def get(self, phenotype: bytes, phase: str) -> Evaluation | None:
        """Return the first evaluation of a phenotype in a phase, else one of another phase to the end, or None.

        What another phase gave up says nothing here.
        """
        first = self._first.get(phenotype)
        return self._own.get((phase, phenotype)) or (None if first is None or first.given_up else first)

    def holds(self, phenotype: bytes, phase: str | None = None) -> bool:
        """Whether a phenotype has been evaluated in a phase, or in any."""
        return phenotype in self._first if phase is None else (phase, phenotype) in self._own

    def __len__(self) -> int:
        """Return the number of evaluations, cached ones included."""
        return len(self._all)

    def __iter__(self) -> Iterator[Evaluation]:
        """Iterate over the history."""
        return iter(self._all)

    def history(self, phase: str | None = None) -> list[Evaluation]:
        """Return the evaluations of a phase, or all, in order."""
        return list(self._all if phase is None else self._phases.get(phase, ()))

    def best(self, phase: str | None = None) -> Evaluation | None:
        """Return the fittest evaluation of a phase, or of all: the first among equals, None if none succeeded."""
        return self._best.get(phase)

    def newest(self, phase: str) -> int:
        """Return the last generation of a phase that brought something new to it; -1 if none has."""
        return self._newest.get(phase, -1)

    def front(self, cost_key: str, phase: str | None = None) -> list[Evaluation]:
        """Return the Pareto front of fitness (higher is better) against a cost (lower is better).

        Only what has come since the last time is looked at.

        Args:
            cost_key: Key of the cost in `Evaluation.details`.
            phase: Whose front; None for that of all evaluations.

        Returns:
            The evaluations than which no other is at least as good in both and better in one, by rising cost.
            Of several with the same fitness and cost, the first.

        Raises:
            SearchError: A successful evaluation does not report that cost.
        """
        history = self._all if phase is None else self._phases.get(phase, [])
        known, count = self._fronts.get((cost_key, phase), ([], 0))
        succeeded = [evaluation for evaluation in history[count:] if evaluation.error is None]
        for evaluation in succeeded:
            if cost_key not in evaluation.details:
                raise SearchError(
                    f"cost_key must be in the details of every evaluation, but {cost_key!r} is not in number "
                    f"{evaluation.number}, which has {sorted(evaluation.details)}"
                )
        front: list[Evaluation] = []
        for evaluation in sorted([*known, *succeeded], key=lambda e: (e.details[cost_key], -e.fitness)):
            if not front or evaluation.fitness > front[-1].fitness:
                front.append(evaluation)
        self._fronts[cost_key, phase] = front, len(history)
        return list(front)


def _packed(value: Any) -> Any:
    is_floats = isinstance(value, list) and all(isinstance(item, float) for item in value)
    return array("d", value) if is_floats else value
