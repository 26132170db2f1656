"""The channel graph: which channels of a network can only be removed together, and where each of them is stored.

Coupling is computed once, by :class:`torch_pruning.DependencyGraph`; the result is plain data that can be pickled and
that nobody else has to reason about.
"""

from __future__ import annotations

import copy
import fnmatch
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn

from criteria.errors import GraphError
from criteria.forward import watch_forward
from criteria.layers import BATCH_NORM, WEIGHTED, channel_axes, is_depthwise, unsliceable

Indices = NDArray[np.int64]
Keep = NDArray[np.bool_]


@dataclass(frozen=True)
class Member:
    """One layer's axis that carries a group's channels.

    Attributes:
        layer: Dotted name of the module.
        channels: For each position of the axis, the channel of the group that it belongs to, or -1 where it belongs to
            none. Every channel of the group has equally many positions.
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
class ChannelGraph:
    """All prunable channel groups of a network, in forward order.

    Attributes:
        groups: The groups; concatenated, their channels form the vector that a keep mask speaks about.
        axes: Every tensor axis that loses positions when channels are removed: the slicing plan.
        shapes: Shape of every tensor of the network.
        positions: For each conv and linear weight, how often every element is used for one example, so that
            MACs = sum of elements times positions.
        parameters: Names of the tensors that are parameters, not buffers.
    """

    groups: tuple[ChannelGroup, ...]
    axes: tuple[Axis, ...]
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    positions: dict[str, int] = field(repr=False)
    parameters: frozenset[str] = field(repr=False)

    @classmethod
    def build(cls, model: nn.Module, example_input: Tensor, ignore: Sequence[str] = ()) -> ChannelGraph:
        """Traces a network and finds its channel groups. The network itself is not touched.

        Args:
            model: The network.
            example_input: A batch that it accepts.
            ignore: Patterns (as in :mod:`fnmatch`) of layers whose output channels must stay. What holds for a module
                holds for everything inside it.

        Returns:
            The graph, without the groups that reach the network's output.

        Raises:
            GraphError: If a pattern matches nothing, a layer is frozen, shares its weights with another or is of a kind
                that cannot be sliced, or no prunable group is left.
        """
        return _Tracer(model, example_input, ignore).graph()

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
        for axis in self.axes:
            digest.update(f"{axis.tensor}:{axis.dim}".encode() + axis.owner.tobytes())
        digest.update(repr([(group.name, group.size) for group in self.groups]).encode())
        return digest.hexdigest()[:16]


class _Tracer:
    """Runs the network once and turns torch-pruning's dependency groups into plain data."""

    def __init__(self, model: nn.Module, example_input: Tensor, ignore: Sequence[str]) -> None:
        self.ignored = _matching_layers(model, ignore)
        _refuse_frozen(model, self.ignored)
        try:
            self.model = copy.deepcopy(model).eval().requires_grad_(True)
        except RuntimeError as error:
            raise GraphError(f"the network cannot be copied: {error}") from error
        self.names = {module: name for name, module in self.model.named_modules()}
        self.input = example_input
        self.forward = watch_forward(self.model, self.names, example_input)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}

    def graph(self) -> ChannelGraph:
        found = sorted(self._dependency_groups(), key=lambda item: self.forward.order.index(item[0].name))
        axes: dict[tuple[str, int], Axis] = {}
        offset = 0
        for group, slots in found:
            for slot in slots:
                self._claim(axes, slot, offset)
            offset += group.size
        if not found:
            raise GraphError("the network has no prunable channel group: all layers are ignored or make the output")
        self._refuse_tied({axis.tensor for axis in axes.values()})
        groups = tuple(group for group, _ in found)
        parameters = frozenset(name for name, _ in self.model.named_parameters())
        return ChannelGraph(groups, tuple(axes.values()), self.shapes, self.forward.positions, parameters)

    def _dependency_groups(self) -> Iterator[tuple[ChannelGroup, list[Axis]]]:
        graph = tp.DependencyGraph()
        ignored = [module for module, name in self.names.items() if name in self.ignored]
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of unwrapped parameters, which _slots handles
            # A tuple, because of a bare tensor it would try the examples as arguments, one by one, first.
            graph.build_dependency(self.model, example_inputs=(self.input,), verbose=False)
            for group in graph.get_all_groups(ignored_layers=ignored, root_module_types=list(WEIGHTED)):
                if not self._reaches_output(graph, group):
                    yield self._convert(graph, group)

    def _reaches_output(self, graph: Any, group: Any) -> bool:
        for dependency, _ in group:
            node = dependency.target
            reads_only = isinstance(node.module, WEIGHTED) and not is_depthwise(node.module)
            # A layer that is called again after it has made the output has readers, too.
            at_end = not node.outputs or self.names.get(node.module, "") == self.forward.output
            if at_end and (not reads_only or graph.is_out_channel_pruning_fn(dependency.handler)):
                return True
        return False

    def _convert(self, graph: Any, group: Any) -> tuple[ChannelGroup, list[Axis]]:
        root = self.names[group[0].dep.target.module]
        size = len(group[0].root_idxs)
        producers: dict[str, Member] = {}
        consumers: dict[str, Member] = {}
        slots: list[Axis] = []
        for item in group:
            node, out = item.dep.target, graph.is_out_channel_pruning_fn(item.dep.handler)
            axes = [
                Axis(tensor, dim, self._owner(tensor, dim, item, size, root), reads)
                for tensor, dim, reads in self._slots(graph, node, out, root)
            ]
            slots.extend(axes)
            if isinstance(node.module, WEIGHTED):
                member = Member(self.names[node.module], axes[0].owner)
                if out or is_depthwise(node.module):
                    producers[member.layer] = replace(member, norm=self._norm_after(node))
                if not out or is_depthwise(node.module):
                    consumers[member.layer] = member
        made, read = self._in_order(producers), self._in_order(consumers)
        return ChannelGroup(made[0].layer, size, made, read), slots

    def _in_order(self, members: dict[str, Member]) -> tuple[Member, ...]:
        return tuple(sorted(members.values(), key=lambda member: self.forward.order.index(member.layer)))

    def _owner(self, tensor: str, dim: int, item: Any, size: int, root: str) -> Indices:
        if tensor not in self.shapes:
            raise GraphError(_cannot(f"'{tensor}'", "is computed from other parameters", root))
        owner = np.full(self.shapes[tensor][dim], -1, dtype=np.int64)
        if max(item.idxs) >= len(owner):
            raise GraphError(_cannot(f"'{tensor}'", "follows an operation whose channel order is not understood", root))
        owner[item.idxs] = item.root_idxs
        counts = np.bincount(owner[owner >= 0], minlength=size)
        if counts.min() != counts.max():
            raise GraphError(_cannot(f"'{tensor}'", f"holds only some of the channels that '{root}' makes", root))
        return owner

    def _slots(self, graph: Any, node: Any, out: bool, root: str) -> Iterator[tuple[str, int, bool]]:
        """The (tensor, dimension, reads the channels?) that a member of a group owns; the weight's first."""
        module = node.module
        if isinstance(module, nn.Parameter):
            yield str(graph._param_to_name[module]), node.pruning_dim % module.ndim, False
        elif module in self.names:
            if reason := unsliceable(module):
                raise GraphError(_cannot(f"layer '{self.names[module]}'", reason, root))
            for key, dim, reads in channel_axes(module, out):
                yield f"{self.names[module]}.{key}", dim, reads

    def _claim(self, axes: dict[tuple[str, int], Axis], slot: Axis, offset: int) -> None:
        """Enters a group's positions of one axis; another group may own the rest of it (a concatenation)."""
        key = (slot.tensor, slot.dim)
        known = axes.get(key, replace(slot, owner=np.full_like(slot.owner, -1)))
        mine = slot.owner >= 0
        claimed = np.where(mine, slot.owner + offset, known.owner)
        if np.any(mine & (known.owner >= 0) & (known.owner != claimed)):
            raise GraphError(f"'{slot.tensor}' is claimed by two channel groups; leave the layers before it alone")
        axes[key] = replace(known, owner=claimed)

    def _refuse_tied(self, sliced: set[str]) -> None:
        """A module may be called twice; two modules with one parameter would come apart when they are sliced."""
        first: dict[int, str] = {}
        for module, name in self.names.items():
            for key, parameter in module.named_parameters(prefix=name, recurse=False):
                other = first.setdefault(id(parameter), key)
                if other != key and sliced & {key, other}:
                    twins = f"parameter '{key}' is the same tensor as '{other}', which cannot be sliced"
                    raise GraphError(f"{twins}; use one module twice, or leave the layers around them alone (ignore=)")

    def _norm_after(self, node: Any) -> str | None:
        readers = set(node.outputs)
        if len(readers) != 1:
            return None
        module = next(iter(readers)).module
        return self.names[module] if isinstance(module, BATCH_NORM) else None


def _cannot(what: str, why: str, root: str) -> str:
    return f"{what} {why}, which cannot be sliced; leave the channels that reach it alone with ignore=['{root}']"


def _matching_layers(model: nn.Module, ignore: Sequence[str]) -> set[str]:
    """Names of the modules that match a pattern, and of all inside them."""
    names = [name for name, _ in model.named_modules() if name]
    matching: set[str] = set()
    for pattern in ignore:
        found = set(fnmatch.filter(names, pattern))
        if not found:
            raise GraphError(f"ignore: no layer matches '{pattern}'; the layers are called {', '.join(names[:3])}, ...")
        matching |= found
    return {name for name in names if any(f"{name}.".startswith(f"{outer}.") for outer in matching)}


def _refuse_frozen(model: nn.Module, ignored: set[str]) -> None:
    """Frozen layers have no gradient to be scored by, and pruning them is rarely meant: say so instead of guessing."""
    for name, module in model.named_modules():
        if name in ignored or not isinstance(module, (*WEIGHTED, *BATCH_NORM)):
            continue
        for full, parameter in module.named_parameters(prefix=name, recurse=False):
            if not parameter.requires_grad:
                raise GraphError(
                    f"parameter '{full}' is frozen (requires_grad=False); unfreeze it with requires_grad_(True) "
                    f"or leave its layer alone with ignore=['{name}']"
                )
