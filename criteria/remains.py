"""The channel graph of a pruned network: that of the unpruned one without what is gone, so that nothing is traced."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import nn

from criteria.graph import Axis, ChannelGraph, ChannelGroup, Indices, Keep, Member


def remaining_graph(graph: ChannelGraph, keep: Keep, network: nn.Module) -> ChannelGraph:
    """The graph of a network that a mask was applied to; its channels are those that stay, in the same order.

    Tracing it again would give the same, but for groups of a single channel, which can no longer be told from what is
    broadcast.

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
    groups = tuple(_group(group, part) for group, part in graph.split(keep))
    axes = [replace(axis, owner=_kept(axis.owner, keep)) for axis in graph.axes]
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    outputs = {axis.tensor: axis.owner for axis in axes if not axis.consumes}
    for name in (name for name in shapes if name not in graph.shapes):  # an added bias goes with its layer's outputs
        if (owner := outputs.get(f"{name.rpartition('.')[0]}.weight")) is not None:
            axes.append(Axis(name, 0, np.tile(owner, shapes[name][0] // len(owner))))
    parameters = frozenset(name for name, _ in network.named_parameters())
    return replace(graph, groups=groups, axes=tuple(axes), shapes=shapes, parameters=parameters)


def _group(group: ChannelGroup, keep: Keep) -> ChannelGroup:
    producers, consumers = (
        tuple(_member(member, keep) for member in members) for members in (group.producers, group.consumers)
    )
    return ChannelGroup(group.name, int(keep.sum()), producers, consumers)


def _member(member: Member, keep: Keep) -> Member:
    return replace(member, channels=_kept(member.channels, keep))


def _kept(owner: Indices, keep: Keep) -> Indices:
    """Whose positions are left, by the new numbers of the channels; -1 stays -1."""
    numbers = np.append(np.cumsum(keep) - 1, -1)
    left: Indices = numbers[owner[np.append(keep, True)[owner]]]
    return left
