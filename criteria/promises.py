"""Checks of what a criterion claims of its scores, see `CLAIMS`; they do not apply where it claims nothing."""

from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType

import numpy as np

from criteria.specimens import single_producer
from criteria.trial import TOLERANCE, Found, Look, Trial, listed, unequal


def _claimed(claim: str) -> Callable[[Callable[[Trial], Found]], Look]:
    """The check applies to criteria that claim this."""

    def asking(look: Callable[[Trial], Found]) -> Look:
        @wraps(look)
        def asked(trial: Trial) -> Found | str:
            return look(trial) if claim in trial.criterion.claims else "the criterion does not claim it"

        return asked

    return asking


@_claimed("permutation")
def permutation(trial: Trial) -> Found:
    """Permuting channels permutes scores."""
    found: Found = []
    for specimen in trial.applicable:
        random = np.random.default_rng(0)
        parts = specimen.graph.slices
        order = np.concatenate([part.start + random.permutation(part.stop - part.start) for part in parts.values()])
        after = trial.scores(specimen.permuted(order))
        for group, scores in trial.before(specimen).items():
            expected = scores[order[parts[group]] - parts[group].start]
            found += unequal(f"{specimen.name}, {group}", expected, after.get(group))
    return found


@_claimed("batch-split")
def batch_split(trial: Trial) -> Found:
    """The split in batches does not matter."""
    found: Found = []
    for specimen in trial.applicable:
        third = len(specimen.inputs) // 3
        after = trial.scores(specimen, third, len(specimen.inputs) - third)
        for group, scores in trial.before(specimen).items():
            found += unequal(f"{specimen.name}, {group}", scores, after.get(group))
    return found


def degenerate(trial: Trial) -> Found:
    """Channels that are all alike cannot be ranked; filters that are all zero must not break anything."""
    found = []
    for specimen in trial.applicable:
        trial.scores(specimen.without_filters(np.arange(len(specimen.graph))))
        ranked = trial.scores(specimen.alike())
        if "alike" in trial.criterion.claims:
            found += [
                f"{specimen.name}, {group}: channels that are all alike are ranked by {listed(scores)}"
                for group, scores in ranked.items()
            ]
    return found


@_claimed("distinct")
def ties(trial: Trial) -> Found:
    """Different channels get different scores; but two of them are equally far from one another."""
    found = []
    for specimen in trial.applicable:
        several = {group.name for group in specimen.graph.groups if group.size > 2}
        constant = [note for note in trial.first[specimen.name].notes if note.reason.startswith("degenerate")]
        found += [f"{specimen.name}, {note.group}: {note.reason}" for note in constant if note.group in several]
        for group, scores in trial.before(specimen).items():
            values = scores[scores != 0] / np.abs(scores).max()  # several may have no importance at all
            if len(values) > (different := len(np.unique(values.round(9)))):
                what = f"{len(values)} different channels get {different} different scores"
                found.append(f"{specimen.name}, {group}: {what}, {listed(scores)}")
    return found


@_claimed("dead-last")
def dead(trial: Trial) -> Found:
    """A dead filter ranks last."""
    found = []
    for specimen in trial.applicable:
        planted = np.array([part.stop - 2 for part in specimen.graph.slices.values()])
        for group, scores in trial.scores(specimen.without_filters(planted)).items():
            if scores[-2] > scores.min() + TOLERANCE * np.abs(scores).max():
                place = int((scores > scores[-2]).sum()) + 1
                ranks = f"the dead one ranks {place} of {len(scores)} from above"
                found.append(f"{specimen.name}, {group}: {ranks} (a sign error?)")
    return found


@_claimed("duplicate-lower")
def duplicate(trial: Trial) -> Found:
    """A duplicated filter scores lower."""
    found = []
    for specimen in trial.applicable:
        group = single_producer(specimen.graph)
        if group is None or group.name not in (before := trial.before(specimen)):
            continue
        start = specimen.graph.slices[group.name].start
        after = trial.scores(specimen.with_duplicate(start, start + 1))
        was, now = (float(scores[group.name][0]) for scores in (before, after))
        if not now < was:
            found.append(f"{specimen.name}, {group.name}: duplicated, a filter goes from {was:.6g} to {now:.6g}")
    return found


PROMISES: Mapping[str, tuple[str, Look]] = MappingProxyType(
    {
        "permutation": ("permuting channels permutes scores", permutation),
        "batch split": ("the split in batches does not matter", batch_split),
        "degenerate input": ("channels that cannot be ranked are not", degenerate),
        "ties": ("different channels get different scores", ties),
        "dead filter": ("a dead filter ranks last", dead),
        "duplicate filter": ("a duplicated filter scores lower", duplicate),
    }
)
"""Check → what it means to pass it, and the check."""
