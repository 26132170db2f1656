"""The blended criterion as a formula: which criterion counts how much in each group, and the group's offset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blend.errors import InputError
from criteria.graph import ChannelGraph, Keep
from criteria.scores import Normalisation, ScoreTable, normalise


@dataclass(frozen=True)
class GroupFormula:
    """How one group's channels are scored.

    Attributes:
        factors: Calibration factor of each criterion that speaks, normalised so that their absolute values sum to 1,
            because only their proportions matter. Negative where a criterion speaks against what it ranks high.
        offset: Lifts or lowers the whole group in the global ranking, in shares of the group: with an offset of 0.1
            the group gives 10 percentage points fewer of its channels than a group with offset 0.
        scores: The channels' final scores as they are, where no criterion speaks.
    """

    factors: tuple[tuple[str, float], ...]
    offset: float = 0.0
    scores: tuple[float, ...] = ()


Formula = Mapping[str, GroupFormula]


def normalised(factors: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Drops the factors that are zero and scales the others to absolute sum 1; all zero means all equal."""
    speaking = {name: factor for name, factor in factors.items() if factor} or dict.fromkeys(factors, 1.0)
    total = sum(map(abs, speaking.values()))
    return tuple((name, factor / total) for name, factor in speaking.items())


class Blender:
    r"""Turns formulas into calibrated scores over one score table.

    .. math:: s_g = o_g + \operatorname{rank}\Big(\sum_k f_{gk}\, \operatorname{norm}(c_{gk})\Big)

    The outer rank lies in (0, 1) and is spread evenly, so that the factors decide *which* channels of a group go and
    the offset alone decides *how many*: equal offsets take the same share of every group.

    Args:
        table: Scores of all criteria in all groups.
        normalisation: ``rank``, ``minmax`` or ``z``, applied to each criterion's scores inside a group.
    """

    def __init__(self, table: ScoreTable, normalisation: Normalisation = "rank") -> None:
        self.table = table
        self.normalisation = normalisation
        self._parts: dict[tuple[str, str], NDArray[np.float64]] = {}

    def scores(self, formula: Formula) -> dict[str, NDArray[np.float64]]:
        """The calibrated scores of every group in the formula, each of shape (channels,); comparable across groups."""
        return {group: self._score(group, part) for group, part in formula.items()}

    def normalised_part(self, criterion: str, group: str) -> NDArray[np.float64]:
        """One criterion's normalised scores in a group, before any factor."""
        if (criterion, group) not in self._parts:
            self._parts[criterion, group] = normalise(self._usable(criterion, group), self.normalisation)
        return self._parts[criterion, group]

    def blended(self, group: str, part: GroupFormula) -> NDArray[np.float64]:
        """The weighted sum of the normalised criteria that speak in a group, before it is calibrated."""
        total = sum(factor * self.normalised_part(name, group) for name, factor in part.factors)
        return np.asarray(total, dtype=np.float64)

    def _score(self, group: str, part: GroupFormula) -> NDArray[np.float64]:
        if part.scores:
            return np.array(part.scores)
        # A criterion that speaks alone keeps its own order: normalising it could make scores equal by rounding.
        (name, factor), *others = part.factors
        values = self.blended(group, part) if others else np.copysign(1.0, factor) * self._usable(name, group)
        return part.offset + normalise(values, "rank")

    def _usable(self, criterion: str, group: str) -> NDArray[np.float64]:
        scores = self.table.get(criterion, group)
        if scores is None:
            raise InputError(f"criterion '{criterion}' has no usable scores in group '{group}'")
        return scores


def reproducing_offsets(graph: ChannelGraph, keep: Keep, level: float = 0.0) -> dict[str, float]:
    """Offsets with which a formula takes exactly as many channels of each group as a mask does.

    A group of n channels that loses k of them gets ``level`` - k/n: its first k ranks fall below the level, the others
    stay above. The mask must be minimal, as those of :func:`blend.budget.keep_mask` are; then the ranking stops at the
    very same one.

    Args:
        graph: The channel graph.
        keep: The mask.
        level: Where the ranking is cut. The result does not depend on it; but genomes can only exchange groups when
            theirs are cut at about the same level.
    """
    return {group.name: level - float(np.sum(~part)) / group.size for group, part in graph.split(keep)}
