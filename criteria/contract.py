"""Checks of what every criterion has to keep: scores of the right shape, the same each time, and nothing touched."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np

from criteria.errors import CriterionError, CriterionFault
from criteria.specimens import Specimen
from criteria.stats import collect
from criteria.traces import differences, planted, snapshot
from criteria.trial import Found, Look, Scores, Trial, listed, scored


def shape(trial: Trial) -> Found:
    """One score per channel, on one of the networks at least; fills ``trial.first``."""
    inapplicable = []
    for specimen in trial.on:
        try:
            trial.first[specimen.name] = scored(trial.criterion, specimen)
        except CriterionFault as error:
            raise error.__cause__ or error from None
        except CriterionError as error:
            if "must return" in str(error):
                return [f"{specimen.name}: {error}"]
            inapplicable.append(f"it applies to none of the networks: {specimen.name}: {error}")
    return [] if trial.first else inapplicable[:1]


def finite(trial: Trial) -> Found:
    """All scores are finite."""
    notes = [(name, note) for name, table in trial.first.items() for note in table.notes]
    return [f"{name}, {note.group}: {note.reason}" for name, note in notes if "not finite" in note.reason]


def deterministic(trial: Trial) -> Found:
    """Two calls give the same bits."""
    again = ((specimen, trial.scores(specimen), trial.scores(specimen)) for specimen in trial.applicable)
    return [
        f"{specimen.name}, {group}: two calls give {listed(one[group])} and {listed(two[group])}"
        for specimen, one, two in again
        for group in one
        if group not in two or not np.array_equal(one[group], two[group])
    ]


def stateless(trial: Trial) -> Found:
    """A, then B of the same layout, then A again."""
    found = []
    for specimen in trial.applicable:
        other, again, first = trial.scores(specimen.shaken()), trial.scores(specimen), trial.before(specimen)
        changed = [group for group in first if not _equal(group, first, again)]
        found += [f"{specimen.name}, {g}: the scores are others after another network was scored" for g in changed]
        # A small group can have the same scores by right: (0, 1) for two channels of which one is dead.
        if not changed and first and _reads_weights(trial) and all(_equal(group, first, other) for group in first):
            found.append(f"{specimen.name}: another network of the same layout gets the scores of the one before")
    return found


def _equal(group: str, one: Scores, other: Scores) -> bool:
    """Whether a group has the same scores, bit for bit."""
    return group in other and np.array_equal(one[group], other[group])


def _reads_weights(trial: Trial) -> bool:
    """Whether other weights must show in the scores: not in those that count, nor in those that need nothing."""
    return bool(trial.criterion.needs) and "distinct" in trial.criterion.claims


def untouched(trial: Trial) -> Found:
    """Network, hooks, gradients, random state and statistics are as before."""
    found = []
    for specimen in trial.applicable:
        marked = planted(specimen)
        before = snapshot(marked.model)
        scored(trial.criterion, marked)
        found += [f"{specimen.name}: {what} afterwards" for what in differences(before, snapshot(marked.model))]
        found += [f"{specimen.name}: {what}" for what in _changed_statistics(trial, marked)]
    return found


def _changed_statistics(trial: Trial, specimen: Specimen) -> Iterator[str]:
    """Statistics are shared by all criteria of a sweep: none may write to them."""
    criterion = trial.criterion
    stats = collect(specimen.model, specimen.graph, specimen.batches(), specimen.loss, criterion.needs)
    for view in (view for views in stats.values() for view in views):
        if view.side == criterion.side and criterion.missing(view) is None:
            before = {name: getattr(view, name).clone() for name in view.present}
            criterion(view)
            yield from (f"it writes to {n!r}" for n, old in before.items() if not getattr(view, n).equal(old))


CONTRACT: Mapping[str, tuple[str, Look]] = MappingProxyType(
    {
        "shape": ("one score per channel", shape),
        "finite": ("all scores are finite", finite),
        "deterministic": ("two calls give the same bits", deterministic),
        "no state": ("scores do not depend on what was scored before", stateless),
        "untouched": ("network, hooks, gradients, random state and statistics are as before", untouched),
    }
)
"""Check → what it means to pass it, and the check."""

PREREQUISITES = ("shape", "finite")
"""Checks without which there are no scores that can be compared."""
