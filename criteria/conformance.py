"""The conformance suite: whether a criterion keeps the contract, and what it claims, on small networks.

Each check has a name, an outcome and a one-line reason. Whatever a bad criterion leaves behind (random state, hooks
on all modules) is cleared away, so that it cannot spoil the trial of the next one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from criteria.contract import CONTRACT, PREREQUISITES
from criteria.promises import PROMISES
from criteria.registry import CRITERIA, Criterion
from criteria.specimens import Specimen, specimens
from criteria.timing import forward_backward_seconds, seconds_of
from criteria.traces import cleared
from criteria.trial import Look, Trial, scored

Outcome = Literal["pass", "fail", "not applicable"]


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
        return _conduct(Trial(chosen, specimens() if on is None else tuple(on)))


def _conduct(trial: Trial) -> Conformance:
    """Every check; once there are no scores that can be compared, the rest is not applicable."""
    name = trial.criterion.name
    checks: list[Check] = []
    scoreless = False
    for what, (meaning, look) in {**CONTRACT, **PROMISES}.items():
        if scoreless:
            checks.append(Check(what, "not applicable", "there are no scores to look at"))
        else:
            checks.append(_check(trial, what, meaning, look))
            scoreless = what in PREREQUISITES and checks[-1].outcome == "fail"
    if scoreless:
        return Conformance(name, tuple(checks))
    seconds = min(seconds_of(lambda: scored(trial.criterion, trial.applicable[0])) for _ in range(3))
    relative = seconds / forward_backward_seconds(trial.applicable[0])
    cost = f"{1e3 * seconds:.2g} ms, {relative:.2g} × forward + backward"
    return Conformance(name, (*checks, Check("cost", "pass", cost)), seconds, relative)


def _check(trial: Trial, name: str, meaning: str, look: Look) -> Check:
    """Look, and put what was found in one line."""
    try:
        found = look(trial)
    except Exception as error:  # noqa: BLE001 - whatever a foreign criterion raises is a finding
        found = [f"{type(error).__name__}: {' '.join(str(error).split())}"]
    if isinstance(found, str):
        return Check(name, "not applicable", found)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Check(name, "fail", found[0] + more) if found else Check(name, "pass", meaning)
