"""Which channels a network still has while another pruner removes some and renumbers the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from blend.errors import InputError
from criteria.graph import ChannelGraph, Member

Indices = NDArray[np.int64]


class Survivors:
    """The channels of a graph that are still there.

    Args:
        graph: The channel graph of the network before anything was removed.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.alive: dict[str, NDArray[np.bool_]] = {g.name: np.ones(g.size, dtype=bool) for g in graph.groups}
        self._outputs = {member.layer: (g.name, member) for g in graph.groups for member in g.producers}
        self._inputs = {member.layer: (g.name, member) for g in graph.groups for member in g.consumers}

    def channels(self, layer: str) -> tuple[str, Indices] | None:
        """Whose channels a layer puts out: the group and, for each position that is left, the channel's number there.

        A number is that of before anything was removed; -1 stands for a position that belongs to no channel. None for
        a layer whose outputs the graph leaves alone.
        """
        if layer not in self._outputs:
            return None
        group, member = self._outputs[layer]
        return group, self._left(group, member)

    def remove(self, layer: str, is_output: bool, positions: Iterable[int]) -> None:
        """Follows the removal of positions of a layer's outputs, or inputs, as they are numbered at that moment.

        Raises:
            InputError: If a part of a channel stays, what is removed is not known to the graph, or was removed before
                together with another layer's.
        """
        side = self._outputs if is_output else self._inputs
        if layer not in side:
            raise InputError(f"layer '{layer}' was pruned, whose channels the blend does not know")
        group, member = side[layer]
        left, where = self._left(group, member), list(positions)
        if where and max(where) >= len(left):
            raise self._apart(layer)
        numbers = left[where]
        gone = np.unique(numbers)
        each = np.count_nonzero(member.channels >= 0) // len(self.alive[group])  # positions of a channel
        if (gone < 0).any() or len(numbers) != len(gone) * each:
            raise InputError(f"a part of a channel of layer '{layer}' was pruned: some of its positions stay")
        self.alive[group][gone] = False

    def check_width(self, layer: str, width: int) -> None:
        """Compares what is left of a layer's outputs with how many it really has.

        Raises:
            InputError: They are not as many.
        """
        known = self.channels(layer)
        if known is not None and len(known[1]) != width:
            raise self._apart(layer)

    def _apart(self, layer: str) -> InputError:
        group, _ = (self._outputs | self._inputs)[layer]
        tied = ", ".join(f"'{name}'" for name, (of, _) in self._outputs.items() if of == group)
        return InputError(
            f"the channels of layer '{layer}' cannot be followed: those of {tied} belong together in the blend, and "
            "the pruner removes them apart; 'blend prune' can make this network smaller"
        )

    def _left(self, group: str, member: Member) -> Indices:
        channels: Indices = member.channels
        return channels[(channels < 0) | self.alive[group][channels]]


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
