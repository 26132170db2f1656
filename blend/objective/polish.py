"""The last touch on a blend: channels near the cut change places, one for one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from blend.blended.formula import Blender, Formula
from blend.objective.encoding import SCORE
from criteria.graph import ChannelGraph, Keep
from search.space import Space

WINDOW = 0.25
"""Share of a group's channels, on either side of the cut, that may change places."""


class CorrectionEncoding:
    """The calibrated scores of the channels nearest to the cut, group by group; all others stay as the blend has them.

    A strategy that only exchanges scores inside a group decides anew *which* channels go, and never *how many*: every
    candidate has exactly the blend's cost.

    Args:
        formula: The blend to be polished.
        blender: Turns it into scores.
        graph: The channel graph.
        keep: Which channels the blend keeps.

    Attributes:
        window: Per group that can be polished, the channels nearest to the cut. A group that stays whole is not there.
    """

    def __init__(self, formula: Formula, blender: Blender, graph: ChannelGraph, keep: Keep) -> None:
        self.formula = formula
        self.own = blender.scores(formula)
        parts = {group.name: part for group, part in graph.split(keep)}
        self._removed = {name: int(np.sum(~parts[name])) for name in self.own}
        windows = {name: _window(scores, self._removed[name]) for name, scores in self.own.items()}
        self.window = {name: window for name, window in windows.items() if len(window)}

    @property
    def space(self) -> Space:
        """One block a group.

        Raises:
            SearchError: No group can be polished.
        """
        return Space(tuple((SCORE,) * len(window) for window in self.window.values()))

    @property
    def unpolished(self) -> list[float]:
        """The genome of the blend as it is."""
        return [float(score) for name, window in self.window.items() for score in self.own[name][window]]

    def decode(self, genome: Sequence[float]) -> Formula:
        """The blend's formula, with the scores that hold instead of those that it would give.

        Only channels that change sides get another score, and only one of those that the others of them had, so that
        the scores of a group are the same numbers as before.
        """
        scores = {name: own.copy() for name, own in self.own.items()}
        genes = iter(genome)
        for name, window in self.window.items():
            wanted = self.own[name].copy()
            wanted[window] = [next(genes) for _ in window]
            _exchange(scores[name], wanted, self._removed[name])
        return {name: replace(part, scores=tuple(scores[name].tolist())) for name, part in self.formula.items()}


def exchanged(keep: Keep, before: Keep) -> int:
    """How many channels stay that would have gone before: as many go that would have stayed."""
    return int(np.sum(keep & ~before))


def _window(scores: NDArray[np.float64], removed: int) -> NDArray[np.int64]:
    """The channels nearest to the cut, in their order; none where nothing is cut."""
    if not 0 < removed < len(scores):
        return np.array([], dtype=np.int64)
    width = max(1, math.ceil(WINDOW * len(scores)))
    order = np.argsort(scores, kind="stable")
    return np.sort(order[max(0, removed - width) : removed + width])


def _exchange(scores: NDArray[np.float64], wanted: NDArray[np.float64], removed: int) -> None:
    """Lets channels that would stay and channels that would go change places, so that those go that are wanted to."""
    before, after = (np.argsort(values, kind="stable")[:removed] for values in (scores, wanted))
    back, gone = before[~np.isin(before, after)], after[~np.isin(after, before)]
    back, gone = (some[np.argsort(scores[some], kind="stable")] for some in (back, gone))
    scores[back], scores[gone] = scores[gone], scores[back]
