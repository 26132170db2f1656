"""Which channels a network still has while another pruner removes some and renumbers the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from blend.errors import InputError
from criteria.graph import ChannelGraph
from criteria.remains import positions_left

Indices = NDArray[np.int64]
Side = tuple[str, bool]  # a layer, and whether it is about its inputs


class Survivors:
    """The channels of a graph that are still there.

    Args:
        graph: The channel graph of the network before anything was removed.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.alive: dict[str, NDArray[np.bool_]] = {g.name: np.ones(g.size, dtype=bool) for g in graph.groups}
        self._sides = graph.sides

    def channels(self, layer: str, *, consumes: bool = False) -> list[tuple[str, Indices]]:
        """Whose channels a layer puts out, or takes: of each group, for each position that is left, the channel there.

        A channel's number is that of before anything was removed; -1 stands for a position that belongs to none of the
        group. Nothing for a side of a layer that the graph leaves alone.
        """
        side = (layer, consumes)
        return [(group, member.channels[self._left(side)]) for group, member in self._sides.get(side, ())]

    def remove(self, layer: str, is_output: bool, positions: Iterable[int]) -> None:
        """Follows the removal of positions of a layer's outputs, or inputs, as they are numbered at that moment.

        Raises:
            InputError: If a part of a channel stays, what is removed is not known to the graph, or was removed before
                together with another layer's.
        """
        side = (layer, not is_output)
        if side not in self._sides:
            raise InputError(f"layer '{layer}' was pruned, whose channels the blend does not know")
        left, where = self._left(side), list(positions)
        if where and max(where) >= len(left):
            raise self._apart(layer)
        gone = {}
        for group, member in self._sides[side]:
            numbers = member.channels[left[where]]
            gone[group] = np.unique(numbers[numbers >= 0])
        whole = sum(np.isin(member.channels, gone[group]).sum() for group, member in self._sides[side])
        if whole != len(where):
            raise InputError(f"a part of a channel of layer '{layer}' was pruned: some of its positions stay")
        for group, numbers in gone.items():
            self.alive[group][numbers] = False

    def check_widths(self, layer: str, outputs: int, inputs: int) -> None:
        """Compares what is left of a layer's outputs and inputs with how many it really has.

        Raises:
            InputError: They are not as many.
        """
        for side, width in (((layer, False), outputs), ((layer, True), inputs)):
            if side in self._sides and len(self._left(side)) != width:
                raise self._apart(layer)

    def _apart(self, layer: str) -> InputError:
        groups = {group for consumes in (False, True) for group, _ in self._sides.get((layer, consumes), ())}
        makers = [name for (name, consumes), of in self._sides.items() if not consumes and groups & {g for g, _ in of}]
        tied = ", ".join(f"'{name}'" for name in makers)
        return InputError(
            f"the channels of layer '{layer}' cannot be followed: those of {tied} belong together in the blend, and "
            "the pruner removes them apart; 'blend prune' can make this network smaller"
        )

    def _left(self, side: Side) -> Indices:
        """The positions that are left, by their numbers before anything was removed."""
        return np.flatnonzero(positions_left(self._sides[side], self.alive))


def distinct_ranks(scores: Sequence[NDArray[np.float64]], floors: Sequence[int]) -> list[Indices]:
    """One ranking over all groups in which no two channels are equal.

    Args:
        scores: Of each group's channels, comparable across groups.
        floors: How many channels of each group are to stay, whatever happens: its best come after all others.

    Returns:
        Per group, ranks from 1; equal scores in the order of the channels.
    """
    protected = []
    for values, floor in zip(scores, floors, strict=True):
        best = np.argsort(-values, kind="stable")[:floor]
        protected.append(np.isin(np.arange(len(values)), best))
    order = np.lexsort((np.concatenate(scores), np.concatenate(protected)))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(1, len(order) + 1)
    return np.split(ranks, np.cumsum([len(values) for values in scores])[:-1])
