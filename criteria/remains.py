"""The channel graph of a pruned network: that of the unpruned one without what is gone, so that nothing is traced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from criteria.graph import Axis, ChannelGraph, ChannelGroup, Indices, Keep, Member


def remaining_graph(graph: ChannelGraph, keep: Keep, network: nn.Module) -> ChannelGraph:
    """The graph of a network that a mask was applied to; its channels are those that stay, in the same order.

    Tracing it again would give the same, but for what could no longer be told: groups of a single channel from what is
    broadcast, and convolutions with a single input left for each of their groups from depthwise ones.

    Args:
        graph: Of the unpruned network.
        keep: The channels that stay, at least one of each group.
        network: The pruned network; it may have got biases that the unpruned one did not have.

    Raises:
        ValueError: A group has nothing left.
    """
    for group, part in graph.split(keep):
        if not part.any():
            raise ValueError(f"keep must leave a channel of every group, got none of '{group.name}'")
    alive = {group.name: part for group, part in graph.split(keep)}
    left = {side: positions_left(members, alive) for side, members in graph.sides.items()}
    groups = tuple(_group(group, part, left) for group, part in graph.split(keep))
    axes = [replace(axis, owner=_kept(axis.owner, keep)) for axis in graph.axes]
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    outputs = {axis.tensor: axis.owner for axis in axes if not axis.consumes}
    for name in (name for name in shapes if name not in graph.shapes):  # an added bias goes with its layer's outputs
        if (owner := outputs.get(f"{name.rpartition('.')[0]}.weight")) is not None:
            axes.append(Axis(name, 0, np.tile(owner, shapes[name][0] // len(owner))))
    parameters = frozenset(name for name, _ in network.named_parameters())
    return replace(graph, groups=groups, axes=tuple(axes), shapes=shapes, parameters=parameters)


def positions_left(members: Iterable[tuple[str, Member]], alive: Mapping[str, Keep]) -> Keep:
    """Which positions of a layer's inputs or outputs stay: those that no group owns, and of each group what it keeps.

    Args:
        members: All that lie there, of `ChannelGraph.sides`; several where groups are concatenated.
        alive: The channels that stay, by group.
    """
    stays: Keep = np.logical_and.reduce([np.append(alive[group], True)[member.channels] for group, member in members])
    return stays


def _group(group: ChannelGroup, keep: Keep, left: Mapping[tuple[str, bool], Keep]) -> ChannelGroup:
    numbers = _numbers(keep)
    producers, consumers = (
        tuple(replace(m, channels=numbers[m.channels[left[m.layer, consumes]]]) for m in members)
        for consumes, members in ((False, group.producers), (True, group.consumers))
    )
    return ChannelGroup(group.name, int(keep.sum()), producers, consumers)


def _kept(owner: Indices, keep: Keep) -> Indices:
    """Whose positions are left, by the new numbers of the channels; -1 stays -1."""
    left: Indices = _numbers(keep)[owner[np.append(keep, True)[owner]]]
    return left


def _numbers(keep: Keep) -> Indices:
    """The new number of each channel that stays, and last that of none."""
    return np.append(np.cumsum(keep) - 1, -1)
