"""The conformance suite: whether a criterion keeps the contract, and what it claims, on small networks.

Each check has a name, an outcome and a one-line reason. Whatever a bad criterion leaves behind (random state, hooks
on all modules) is cleared away, so that it cannot spoil the trial of the next one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from criteria.errors import CriterionError
from criteria.registry import CRITERIA, Criterion
from criteria.scores import ScoreTable
from criteria.scoring import score
from criteria.specimens import Specimen, single_producer, specimens
from criteria.stats import collect
from criteria.timing import forward_backward_seconds, seconds_of
from criteria.traces import cleared, differences, planted, snapshot

Outcome = Literal["pass", "fail", "not applicable"]
Scores = dict[str, NDArray[np.float64]]
Found = list[str]
"""What is wrong, one line each."""

TOLERANCE = 1e-6
"""Relative to a group's largest score; the networks compute in double precision."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        outcome: whether it is as it should be.
        reason: one line.
    """

    name: str
    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class Conformance:
    """What the suite found of one criterion.

    Attributes:
        criterion: its name.
        checks: every check, in the suite's order.
        seconds: scoring one small network took.
        relative_cost: the same relative to a forward and backward pass over the same data.
    """

    criterion: str
    checks: tuple[Check, ...]
    seconds: float = float("nan")
    relative_cost: float = float("nan")

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.outcome == "fail")

    @property
    def passed(self) -> bool:
        """Whether none failed."""
        return not self.failures


def conformance(criterion: str | Criterion, on: Sequence[Specimen] | None = None) -> Conformance:
    """Hold a criterion to the contract and to its claims.

    Args:
        criterion: the criterion or its name.
        on: networks to try it on; the built-in ones by default.

    Returns:
        The outcome of every check; a criterion that raises fails, nothing is raised.

    Raises:
        CriterionValueError: an unknown name.
    """
    chosen = CRITERIA.get(criterion) if isinstance(criterion, str) else criterion
    with cleared():
        return _Trial(chosen, specimens() if on is None else tuple(on)).conduct()


def scored(criterion: Criterion, specimen: Specimen, *sizes: int) -> ScoreTable:
    """The score table of one criterion on one specimen, its examples in batches of these sizes."""
    batches = specimen.batches(*sizes)
    return score(specimen.model, specimen.graph, batches, specimen.loss, [criterion], metric=_right)


def _right(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the highest output is the target's class, else 0."""
    return (outputs.argmax(1) == targets).double()


@dataclass
class _Trial:
    """One criterion in front of the suite."""

    criterion: Criterion
    on: tuple[Specimen, ...]
    _first: dict[str, ScoreTable] = field(default_factory=dict)

    def conduct(self) -> Conformance:
        """Every check; once there are no scores that can be compared, the rest is not applicable."""
        checks: list[Check] = []
        for name, look in self._plan():
            if checks and checks[-1].name in _PREREQUISITES and checks[-1].outcome == "fail":
                rest = [name for name, _ in self._plan()][len(checks) :]
                checks += [Check(name, "not applicable", "there are no scores to look at") for name in rest]
                return Conformance(self.criterion.name, tuple(checks))
            checks.append(self._check(name, look))
        seconds = min(seconds_of(lambda: scored(self.criterion, self._applicable[0])) for _ in range(3))
        relative = seconds / forward_backward_seconds(self._applicable[0])
        cost = f"{1e3 * seconds:.2g} ms, {relative:.2g} × forward + backward"
        checks.append(Check("cost", "pass", cost))
        return Conformance(self.criterion.name, tuple(checks), seconds, relative)

    def _plan(self) -> tuple[tuple[str, Callable[[], Found | str]], ...]:
        return (
            ("shape", self._shape),
            ("finite", self._finite),
            ("deterministic", self._deterministic),
            ("no state", self._state),
            ("untouched", self._untouched),
            ("permutation", self._permutation),
            ("batch split", self._batch_split),
            ("degenerate input", self._degenerate),
            ("ties", self._ties),
            ("dead filter", self._dead),
            ("duplicate filter", self._duplicate),
        )

    def _check(self, name: str, look: Callable[[], Found | str]) -> Check:
        """Look, and put what was found in one line; a text instead of findings says why it does not apply."""
        try:
            found = look()
        except Exception as error:  # noqa: BLE001 - whatever a foreign criterion raises is a finding
            found = [f"{type(error).__name__}: {' '.join(str(error).split())}"]
        if isinstance(found, str):
            return Check(name, "not applicable", found)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return Check(name, "fail", found[0] + more) if found else Check(name, "pass", _MEANING[name])

    def _claims(self, claim: str) -> str | None:
        return None if claim in self.criterion.claims else "the criterion does not claim it"

    @cached_property
    def _applicable(self) -> list[Specimen]:
        return [specimen for specimen in self.on if specimen.name in self._first]

    def _scores(self, specimen: Specimen, *sizes: int) -> Scores:
        return _usable(scored(self.criterion, specimen, *sizes))

    def _before(self, specimen: Specimen) -> Scores:
        """The scores of the first call."""
        return _usable(self._first[specimen.name])

    def _shape(self) -> Found:
        inapplicable = []
        for specimen in self.on:
            try:
                self._first[specimen.name] = scored(self.criterion, specimen)
            except CriterionError as error:
                if "must return" in str(error):
                    return [f"{specimen.name}: {error}"]
                inapplicable.append(f"it applies to none of the networks: {specimen.name}: {error}")
        return [] if self._first else inapplicable[:1]

    def _finite(self) -> Found:
        notes = [(name, note) for name, table in self._first.items() for note in table.notes]
        return [f"{name}, {note.group}: {note.reason}" for name, note in notes if "not finite" in note.reason]

    def _deterministic(self) -> Found:
        again = ((specimen, self._scores(specimen), self._scores(specimen)) for specimen in self._applicable)
        return [
            f"{specimen.name}, {group}: two calls give {_listed(one[group])} and {_listed(two[group])}"
            for specimen, one, two in again
            for group in one
            if group not in two or not np.array_equal(one[group], two[group])
        ]

    def _state(self) -> Found:
        """A, then B of the same layout, then A again."""
        found = []
        for specimen in self._applicable:
            other, again, first = self._scores(specimen.shaken()), self._scores(specimen), self._before(specimen)
            for group, scores in first.items():
                where = f"{specimen.name}, {group}"
                if group not in again or not np.array_equal(scores, again[group]):
                    found.append(f"{where}: the scores are others after another network was scored")
                elif self._reads_weights and group in other and np.array_equal(scores, other[group]):
                    found.append(f"{where}: another network of the same layout gets the scores of the one before")
        return found

    @property
    def _reads_weights(self) -> bool:
        """Whether other weights must show in the scores: not in those that count, nor in those that need nothing."""
        return bool(self.criterion.needs) and "distinct" in self.criterion.claims

    def _untouched(self) -> Found:
        found = []
        for specimen in self._applicable:
            marked = planted(specimen)
            before = snapshot(marked.model)
            scored(self.criterion, marked)
            found += [f"{specimen.name}: {what} afterwards" for what in differences(before, snapshot(marked.model))]
            found += [f"{specimen.name}: {what}" for what in self._changed_statistics(marked)]
        return found

    def _changed_statistics(self, specimen: Specimen) -> Iterator[str]:
        """Statistics are shared by all criteria of a sweep: none may write to them."""
        stats = collect(specimen.model, specimen.graph, specimen.batches(), specimen.loss, self.criterion.needs)
        for view in (view for views in stats.values() for view in views):
            if view.side == self.criterion.side and self.criterion.missing(view) is None:
                before = {name: getattr(view, name).clone() for name in view.present}
                self.criterion(view)
                yield from (f"it writes to {n!r}" for n, old in before.items() if not getattr(view, n).equal(old))

    def _permutation(self) -> Found | str:
        if reason := self._claims("permutation"):
            return reason
        found: Found = []
        for specimen in self._applicable:
            random = np.random.default_rng(0)
            parts = specimen.graph.slices
            order = np.concatenate([part.start + random.permutation(part.stop - part.start) for part in parts.values()])
            after = self._scores(specimen.permuted(order))
            for group, scores in self._before(specimen).items():
                expected = scores[order[parts[group]] - parts[group].start]
                found += _unequal(f"{specimen.name}, {group}", expected, after.get(group))
        return found

    def _batch_split(self) -> Found | str:
        if reason := self._claims("batch-split"):
            return reason
        found: Found = []
        for specimen in self._applicable:
            third = len(specimen.inputs) // 3
            after = self._scores(specimen, third, len(specimen.inputs) - third)
            for group, scores in self._before(specimen).items():
                found += _unequal(f"{specimen.name}, {group}", scores, after.get(group))
        return found

    def _degenerate(self) -> Found:
        """Channels that are all alike cannot be ranked; filters that are all zero must not break anything."""
        found = []
        for specimen in self._applicable:
            self._scores(specimen.without_filters(np.arange(len(specimen.graph))))
            ranked = self._scores(specimen.alike())
            if "alike" in self.criterion.claims:
                found += [
                    f"{specimen.name}, {group}: channels that are all alike are ranked by {_listed(scores)}"
                    for group, scores in ranked.items()
                ]
        return found

    def _ties(self) -> Found | str:
        if reason := self._claims("distinct"):
            return reason
        found = []
        for specimen in self._applicable:
            constant = [note for note in self._first[specimen.name].notes if note.reason.startswith("degenerate")]
            found += [f"{specimen.name}, {note.group}: {note.reason}" for note in constant]
            for group, scores in self._before(specimen).items():
                values = scores[scores != 0] / np.abs(scores).max()  # several may have no importance at all
                if len(values) > (different := len(np.unique(values.round(9)))):
                    what = f"{len(values)} different channels get {different} different scores"
                    found.append(f"{specimen.name}, {group}: {what}, {_listed(scores)}")
        return found

    def _dead(self) -> Found | str:
        if reason := self._claims("dead-last"):
            return reason
        found = []
        for specimen in self._applicable:
            dead = np.array([part.stop - 2 for part in specimen.graph.slices.values()])
            for group, scores in self._scores(specimen.without_filters(dead)).items():
                if scores[-2] > scores.min() + TOLERANCE * np.abs(scores).max():
                    place = int((scores > scores[-2]).sum()) + 1
                    ranks = f"the dead one ranks {place} of {len(scores)} from above"
                    found.append(f"{specimen.name}, {group}: {ranks} (a sign error?)")
        return found

    def _duplicate(self) -> Found | str:
        if reason := self._claims("duplicate-lower"):
            return reason
        found = []
        for specimen in self._applicable:
            group = single_producer(specimen.graph)
            if group is None or group.name not in (before := self._before(specimen)):
                continue
            start = specimen.graph.slices[group.name].start
            after = self._scores(specimen.with_duplicate(start, start + 1))
            was, now = (float(scores[group.name][0]) for scores in (before, after))
            if not now < was:
                found.append(f"{specimen.name}, {group.name}: duplicated, a filter goes from {was:.6g} to {now:.6g}")
        return found


_PREREQUISITES = ("shape", "finite")
_MEANING = {
    "shape": "one score per channel",
    "finite": "all scores are finite",
    "deterministic": "two calls give the same bits",
    "no state": "scores do not depend on what was scored before",
    "untouched": "network, hooks, gradients, random state and statistics are as before",
    "permutation": "permuting channels permutes scores",
    "batch split": "the split in batches does not matter",
    "degenerate input": "channels that cannot be ranked are not",
    "ties": "different channels get different scores",
    "dead filter": "a dead filter ranks last",
    "duplicate filter": "a duplicated filter scores lower",
}


def _usable(table: ScoreTable) -> Scores:
    return {group: table.matrix(group)[0] for group in table.groups if table.usable(group)}


def _unequal(where: str, expected: NDArray[np.float64], got: NDArray[np.float64] | None) -> Found:
    if got is None:
        return [f"{where}: there are no scores any more"]
    error = float(np.abs(got - expected).max() / max(float(np.abs(expected).max()), 1e-300))
    return [] if error <= TOLERANCE else [f"{where}: the scores differ by {error:.2g} of the largest"]


def _listed(scores: NDArray[np.float64]) -> str:
    shown = ", ".join(f"{score:.4g}" for score in scores[:4])
    return f"({shown}{', …' if len(scores) > 4 else ''})"
