"""A formula on what is left of a network's groups, when scores are computed anew while channels go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from blend.blended.records import BlendedGroup
from blend.progress import say
from criteria.scores import ScoreTable


def of_whole(values: NDArray[np.float64], offset: float, size: int) -> NDArray[np.float64]:
    """Calibrated scores of what is left of a group as scores of the whole group.

    Offsets and equal shares are about the group as it was in the beginning. So ranks are counted from the lowest that
    has gone: steps that change no ranking end at the same mask as a single one, but for what a step took that a single
    one would have given back.

    Args:
        values: Offset and rank in (0, 1) among what is left.
        offset: Of the group.
        size: Its channels before any were removed.
    """
    return offset + 1 + (values - offset - 1) * len(values) / size


def heard(groups: Iterable[BlendedGroup], table: ScoreTable) -> Iterator[BlendedGroup]:
    """The groups that all their candidates can still rank; says which are left alone."""
    for group in groups:
        silent = [c.criterion for c in group.candidates if table.get(c.criterion, group.name) is None]
        if silent:
            say(f"note: '{group.name}' gives nothing at this step: {silent[0]} cannot rank what is left of it")
        else:
            yield group
