"""The channel graph: which channels of a network can only be removed together, and where each of them is stored.

Coupling is computed once, from the labels that channels carry through one forward pass (:mod:`criteria.tracing`); the
result is plain data that can be pickled and that nobody else has to reason about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

Indices = NDArray[np.int64]
Keep = NDArray[np.bool_]


@dataclass(frozen=True)
class Member:
    """One layer's axis that carries a group's channels.

    Attributes:
        layer: Dotted name of the module.
        channels: For each position of the axis, the channel of the group that it belongs to, or -1 where it belongs to
            none. Every channel of the group has equally many positions; more than one where a linear layer reads a
            flattened map, and where channels of several conv groups go together.
        norm: For producers, the BatchNorm that reads the layer's output directly, if there is one.
    """

    layer: str
    channels: Indices
    norm: str | None = None


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together: the unit of scoring, ranking and pruning.

    Attributes:
        name: Name of the first producer in forward order.
        size: Number of channels.
        producers: Layers whose output axis carries the channels, in forward order.
        consumers: Layers that read the channels along their input axis, in forward order.
    """

    name: str
    size: int
    producers: tuple[Member, ...]
    consumers: tuple[Member, ...]


@dataclass(frozen=True)
class Axis:
    """One dimension of one tensor of the network, and which channel owns each position of it.

    Attributes:
        tensor: Name as in ``state_dict()``.
        dim: Dimension of the tensor.
        owner: For each position, the channel's index in the concatenation of all groups, or -1 where it stays.
        consumes: True where the axis reads the channels (a consumer's input axis).
    """

    tensor: str
    dim: int
    owner: Indices
    consumes: bool = False


@dataclass(frozen=True)
class GroupNote:
    """Why channels are left alone.

    Attributes:
        group: Name of the first layer that makes them.
        layer: The layer that is the reason.
        reason: What it does to them.
    """

    group: str
    layer: str
    reason: str

    def __str__(self) -> str:
        """One line for a person."""
        return f"the channels of '{self.group}' are left alone: '{self.layer or 'forward'}' {self.reason}"


@dataclass(frozen=True)
class ChannelGraph:
    """All prunable channel groups of a network, in forward order.

    Attributes:
        groups: The groups; concatenated, their channels form the vector that a keep mask speaks about.
        axes: Every tensor axis that loses positions when channels are removed: the slicing plan.
        shapes: Shape of every tensor of the network.
        positions: For each conv and linear weight, how often every element is used for one example, so that
            MACs = sum of elements times positions.
        parameters: Names of the tensors that are parameters, not buffers.
        notes: Which channels are left alone, and why, where neither ``ignore`` nor the network's output is the reason.
        uncounted: Of each module, MACs of one example outside of layers, of which a cost knows nothing: of attention,
            or of weights that are used by functions.
    """

    groups: tuple[ChannelGroup, ...]
    axes: tuple[Axis, ...]
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    positions: dict[str, int] = field(repr=False)
    parameters: frozenset[str] = field(repr=False)
    notes: tuple[GroupNote, ...] = ()
    uncounted: dict[str, int] = field(default_factory=dict, repr=False)

    @classmethod
    def build(cls, model: nn.Module, example_input: Tensor, ignore: Sequence[str] = ()) -> ChannelGraph:
        """Traces a network and finds its channel groups. The network itself is not touched.

        Args:
            model: The network.
            example_input: A batch that it accepts.
            ignore: Patterns (as in :mod:`fnmatch`) of layers whose output channels must stay. What holds for a module
                holds for everything inside it.

        Returns:
            The graph, without the channels that reach the network's output, and without those that an operation mixes
            or that are combined with values that stay, which its notes name.

        Raises:
            GraphError: If a pattern matches nothing, a layer is frozen, or no prunable group is left.
        """
        from criteria.grouping import build_graph  # it makes objects of this module

        return build_graph(model, example_input, ignore)

    @cached_property
    def sides(self) -> dict[tuple[str, bool], list[tuple[str, Member]]]:
        """Of each layer's inputs (True) and outputs, the members that lie there, with their group's name."""
        found: dict[tuple[str, bool], list[tuple[str, Member]]] = {}
        for group in self.groups:
            for consumes, members in ((False, group.producers), (True, group.consumers)):
                for member in members:
                    found.setdefault((member.layer, consumes), []).append((group.name, member))
        return found

    @cached_property
    def mixing(self) -> frozenset[str]:
        """Names of the layers that mix the channels they read; depthwise ones hand each on by itself."""
        return frozenset(axis.tensor.rpartition(".")[0] for axis in self.axes if axis.consumes)

    def __len__(self) -> int:
        """Number of channels in all groups."""
        return sum(group.size for group in self.groups)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each group lies in the vector of all channels."""
        ends = np.cumsum([group.size for group in self.groups]).tolist()
        return {g.name: slice(end - g.size, end) for g, end in zip(self.groups, ends, strict=True)}

    def split(self, channels: NDArray[Any]) -> Iterator[tuple[ChannelGroup, NDArray[Any]]]:
        """Pairs every group with its part of a vector over all channels."""
        for group in self.groups:
            yield group, channels[self.slices[group.name]]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the layout: tensor names and shapes, groups, and who owns what. Weights do not enter."""
        digest = hashlib.sha256(repr(sorted(self.shapes.items())).encode())
        for axis in sorted(self.axes, key=lambda axis: (axis.tensor, axis.dim)):
            digest.update(f"{axis.tensor}:{axis.dim}".encode() + axis.owner.tobytes())
        digest.update(repr([(group.name, group.size) for group in self.groups]).encode())
        return digest.hexdigest()[:16]
