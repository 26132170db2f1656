"""From scores to keep masks: how much a pruned network costs, and which channels go to reach a reduction."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from blend.errors import InputError, nearest
from criteria.graph import ChannelGraph, Keep
from criteria.scores import normalise

Scores = Mapping[str, NDArray[np.float64]]

COSTS = ("macs", "params")
ALLOCATIONS = ("global", "uniform")


class Cost(Protocol):
    """What a reduction is about: something that never grows when a channel goes."""

    kind: str

    @property
    def full(self) -> float:
        """Cost of the unpruned network."""

    def __call__(self, keep: Keep) -> float:
        """Cost of the network with these channels kept."""

    def reduction(self, keep: Keep) -> float:
        """The share of the cost that a mask removes, in [0, 1)."""


class AxisCounts:
    """How many positions of each axis of a graph stay under a keep mask.

    Args:
        graph: The network's channel graph.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self._starts = np.array([where.start for where in graph.slices.values()])
        # Every channel of a group owns as many positions of an axis as the first: how many stay decides, not which.
        owned = [np.bincount(a.owner[a.owner >= 0], minlength=len(graph))[self._starts] for a in graph.axes]
        fixed = [np.count_nonzero(axis.owner < 0) for axis in graph.axes]
        self._owned = np.array([*owned, np.zeros_like(self._starts)], dtype=np.int64)  # (axes + 1, groups)
        self._fixed = np.array([*fixed, 1], dtype=np.int64)  # the last one stands for an axis that is not there

    def __call__(self, keep: Keep) -> NDArray[np.int64]:
        """Shape (axes + 1,); the last one is 1 and stands for an axis that is not there."""
        kept: NDArray[np.int64] = np.add.reduceat(keep, self._starts, dtype=np.int64)
        counts: NDArray[np.int64] = self._fixed + self._owned @ kept
        return counts


class CostModel:
    """The exact cost of any pruned version of a network, coupled layers included.

    A tensor's cost is its number of elements times how often each of them is used: for ``macs`` the positions that a
    conv or linear weight is applied to for one example, for ``params`` once.

    Args:
        graph: The network's channel graph.
        kind: ``macs`` or ``params``.

    Raises:
        InputError: If the kind is unknown.
    """

    def __init__(self, graph: ChannelGraph, kind: str = "macs") -> None:
        if kind not in COSTS:
            raise InputError(f"cost must be one of {', '.join(COSTS)}, got '{kind}'{nearest(kind, COSTS)}")
        self.kind = kind
        uses = graph.positions if kind == "macs" else dict.fromkeys(graph.parameters, 1)
        terms = [self._term(graph, tensor, count) for tensor, count in uses.items()]
        self._factors = np.array([factor for factor, _, _ in terms], dtype=np.float64)
        self._first = np.array([first for _, first, _ in terms], dtype=np.int64)
        self._second = np.array([second for _, _, second in terms], dtype=np.int64)
        self._counts = AxisCounts(graph)
        self.full = self(np.ones(len(graph), dtype=bool))

    def __call__(self, keep: Keep) -> int:
        """Cost of the network with these channels kept: MACs for one example, or a number of parameters."""
        counts = self._counts(keep)
        return int((self._factors * counts[self._first] * counts[self._second]).sum())

    def reduction(self, keep: Keep) -> float:
        """The share of the cost that a mask removes, in [0, 1)."""
        return 1.0 - self(keep) / self.full

    @staticmethod
    def _term(graph: ChannelGraph, tensor: str, uses: int) -> tuple[float, int, int]:
        """A tensor's cost as a constant times the kept positions of up to two of its axes (-1: no such axis)."""
        axes = [number for number, axis in enumerate(graph.axes) if axis.tensor == tensor]
        dims = {graph.axes[number].dim for number in axes}
        rest = [size for dim, size in enumerate(graph.shapes[tensor]) if dim not in dims]
        first, second = [*axes, -1, -1][:2]
        return float(uses * math.prod(rest)), first, second


def floors(graph: ChannelGraph, share: float = 0.1) -> dict[str, int]:
    """The least number of channels that stay in each group: a share of it, and never fewer than one."""
    return {group.name: max(1, int(np.ceil(share * group.size))) for group in graph.groups}


def keep_mask(
    graph: ChannelGraph, scores: Scores, reduction: float, cost: Cost, floor: Mapping[str, int] | None = None
) -> Keep:
    """Removes the lowest scores of one ranking over all groups until the reduction is reached.

    The number of removed channels is found by bisection on the true cost. The last channel may have been a costly one
    and overshoot; so the others are offered their place back, the last removed first, as long as the reduction holds.
    What is left is minimal: giving any single channel back would miss the reduction, so that the achieved one lies less
    than the cheapest removed channel's worth above the requested one. Inside a group, the lowest scores always go.
    Ties go by the order of the channels: the first one leaves first.

    Args:
        graph: The channel graph.
        scores: Per group, the scores of its channels, comparable across groups. A group that is missing stays whole.
        reduction: The share of cost to remove, in (0, 1).
        cost: What is counted.
        floor: Channels that stay in each group whatever their scores; :func:`floors` by default.

    Returns:
        One truth value per channel of the graph.

    Raises:
        InputError: If the reduction is not in (0, 1) or the floors make it impossible.
    """
    check_reduction(reduction)
    floor = floors(graph) if floor is None else floor
    order = _removal_order(graph, scores, floor)
    return without_first(graph, order, range(len(order) + 1), reduction, cost)


def without_first(
    graph: ChannelGraph, order: NDArray[np.int64], ends: Sequence[int], reduction: float, cost: Cost
) -> Keep:
    """Removes the first blocks of some until a reduction is reached, and gives back which it holds without.

    The last removed are offered their place first, and of each group only until one has to stay removed: the lowest
    scores always go.

    Args:
        graph: The channel graph.
        order: All channels that may go, the first to go first.
        ends: How many channels the first blocks have, from no block to all of them; a block is of one group.
        reduction: The share of cost to remove.
        cost: What is counted.

    Raises:
        InputError: If that is not reached without all of them.
    """
    check_reachable(cost.reduction(_without(graph, order)), reduction, cost)
    count = bisect_left(ends, reduction, key=lambda end: cost.reduction(_without(graph, order[:end])))
    keep = _without(graph, order[: ends[count]])
    group_of = np.repeat(np.arange(len(graph.groups)), [group.size for group in graph.groups])
    spent: set[int] = set()
    for last in range(count, 0, -1):
        block = order[ends[last - 1] : ends[last]]
        if (group := int(group_of[block[0]])) not in spent:
            keep[block] = True
            if cost.reduction(keep) < reduction:
                keep[block] = False
                spent.add(group)
        if len(spent) == len(graph.groups):
            break
    return keep


def is_reachable(graph: ChannelGraph, scores: Scores, reduction: float, cost: Cost, floor: Mapping[str, int]) -> bool:
    """Whether removing all that the scores and floors allow is enough for a reduction."""
    return cost.reduction(_without(graph, _removal_order(graph, scores, floor))) >= reduction


def uniform(scores: Scores) -> dict[str, NDArray[np.float64]]:
    """Scores whose global ranking takes the same share of every group: their normalised ranks."""
    return {group: normalise(values, "rank") for group, values in scores.items()}


def check_reduction(reduction: float) -> None:
    """Raises :class:`InputError` unless the reduction lies strictly between 0 and 1."""
    if not 0.0 < reduction < 1.0:
        raise InputError(f"reduction must be in (0, 1), got {reduction:g}")


def check_reachable(possible: float, reduction: float, cost: Cost) -> None:
    """Raises :class:`InputError` if a reduction is above the largest possible one, and says that."""
    if possible < reduction:
        raise InputError(
            f"reduction {reduction:g} of {cost.kind} cannot be reached: with the channels that must stay in each group "
            f"the largest possible is {math.floor(possible * 1000) / 1000:.3f}"
        )


def _removal_order(graph: ChannelGraph, scores: Scores, floor: Mapping[str, int]) -> NDArray[np.int64]:
    """All channels that may go, lowest score first."""
    keys = np.full(len(graph), np.inf)
    for group in graph.groups:
        if group.name in scores:
            values = np.array(scores[group.name], dtype=np.float64)
            protected = np.argsort(values, kind="stable")[group.size - floor[group.name] :]
            values[protected] = np.inf
            keys[graph.slices[group.name]] = values
    order = np.argsort(keys, kind="stable")
    return order[: int(np.isfinite(keys).sum())]


def _without(graph: ChannelGraph, removed: NDArray[np.int64]) -> Keep:
    keep = np.ones(len(graph), dtype=bool)
    keep[removed] = False
    return keep
