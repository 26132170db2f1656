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

Indices = NDArray[np.int64]
Keep = NDArray[np.bool_]

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORM = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass(frozen=True)
class Member:
    """One layer's axis that carries a group's channels.

    Attributes:
        layer: Dotted name of the module.
        channels: For each position of the axis, the channel of the group that it belongs to, or -1.
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
            ignore: Patterns (as in :mod:`fnmatch`) of layers whose output channels must stay.

        Returns:
            The graph, without the groups that reach the network's output.

        Raises:
            GraphError: If a pattern matches nothing, a layer is frozen or of a kind that cannot be sliced, or no
                prunable group is left.
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
        _refuse_frozen(model, ignore)
        self.model = copy.deepcopy(model).eval()
        self.names = {module: name for name, module in self.model.named_modules()}
        self.ignored = _matching_layers(self.model, ignore)
        self.input = example_input
        self.order: list[str] = []
        self.positions: dict[str, int] = {}
        self.shapes = {name: tuple(t.shape) for name, t in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(True)
            self.shapes[name] = tuple(parameter.shape)

    def graph(self) -> ChannelGraph:
        self._record_forward()
        found = sorted(self._dependency_groups(), key=lambda item: self.order.index(item[0].name))
        groups: list[ChannelGroup] = []
        axes: dict[tuple[str, int], Axis] = {}
        offset = 0
        for group, slots in found:
            for slot in slots:
                self._claim(axes, slot, offset)
            groups.append(group)
            offset += group.size
        if not groups:
            raise GraphError(
                "the network has no prunable channel group: every conv and linear layer is ignored or makes the output"
            )
        parameters = frozenset(name for name, _ in self.model.named_parameters())
        return ChannelGraph(tuple(groups), tuple(axes.values()), self.shapes, self.positions, parameters)

    def _record_forward(self) -> None:
        """Notes the order of the layers and how many positions each weight is applied to."""

        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            name = self.names[module]
            self.order.append(name)
            if isinstance(module, (*CONV, nn.Linear)):
                transposed = isinstance(module, CONV) and module.transposed
                seen, width = (inputs[0], _width(module, "in")) if transposed else (output, _width(module, "out"))
                uses = seen.numel() // width // len(inputs[0])
                self.positions[f"{name}.weight"] = self.positions.get(f"{name}.weight", 0) + uses

        hooks = [module.register_forward_hook(note) for module in self.model.modules() if not list(module.children())]
        try:
            with torch.no_grad():
                self.model(self.input)
        finally:
            for hook in hooks:
                hook.remove()

    def _dependency_groups(self) -> Iterator[tuple[ChannelGroup, list[Axis]]]:
        graph = tp.DependencyGraph()
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of unwrapped parameters, which _slots handles
            graph.build_dependency(self.model, example_inputs=self.input, verbose=False)
            layers = (*CONV, nn.Linear)
            for group in graph.get_all_groups(ignored_layers=self.ignored, root_module_types=list(layers)):
                if not self._reaches_output(graph, group):
                    yield self._convert(graph, group)

    def _reaches_output(self, graph: Any, group: Any) -> bool:
        for dependency, _ in group:
            node = dependency.target
            splits = isinstance(node.module, (*CONV, nn.Linear)) and not _is_depthwise(node.module)
            if not node.outputs and (not splits or graph.is_out_channel_pruning_fn(dependency.handler)):
                return True
        return False

    def _convert(self, graph: Any, group: Any) -> tuple[ChannelGroup, list[Axis]]:
        size = len(group[0].root_idxs)
        producers: dict[str, Member] = {}
        consumers: dict[str, Member] = {}
        slots: list[Axis] = []
        for item in group:
            node, out = item.dep.target, graph.is_out_channel_pruning_fn(item.dep.handler)
            name = self._name_of(graph, node)
            axes = [
                Axis(tensor, dim, self._owner(name, tensor, dim, item), reads)
                for tensor, dim, reads in self._slots(node, name, out)
            ]
            slots.extend(axes)
            if isinstance(node.module, (*CONV, nn.Linear)):
                member = Member(name, axes[0].owner)
                if out or _is_depthwise(node.module):
                    producers[name] = replace(member, norm=self._norm_after(node))
                if not out or _is_depthwise(node.module):
                    consumers[name] = member
        made = tuple(sorted(producers.values(), key=lambda m: self.order.index(m.layer)))
        read = tuple(sorted(consumers.values(), key=lambda m: self.order.index(m.layer)))
        return ChannelGroup(made[0].layer, size, made, read), slots

    def _owner(self, name: str, tensor: str, dim: int, item: Any) -> Indices:
        owner = np.full(self.shapes[tensor][dim], -1, dtype=np.int64)
        if max(item.idxs) >= len(owner):
            raise GraphError(_cannot(name, "is coupled by an operation whose channel order is not understood"))
        owner[item.idxs] = item.root_idxs
        return owner

    def _slots(self, node: Any, name: str, out: bool) -> Iterator[tuple[str, int, bool]]:
        """The (tensor, dimension, reads the channels?) that a member owns; the weight first, then the bias."""
        module = node.module
        if isinstance(module, nn.Parameter):
            yield name, node.pruning_dim % module.ndim, False
        elif isinstance(module, (*CONV, nn.Linear)):
            grouped = isinstance(module, CONV) and module.groups > 1
            if grouped and not _is_depthwise(module):
                raise GraphError(_cannot(name, f"is a grouped convolution (groups={module.groups})"))
            transposed = isinstance(module, CONV) and module.transposed
            depthwise = _is_depthwise(module)
            yield f"{name}.weight", 0 if depthwise else int(out == bool(transposed)), not out and not depthwise
            if (out or depthwise) and module.bias is not None:
                yield f"{name}.bias", 0, False
        elif isinstance(module, (*BATCH_NORM, *INSTANCE_NORM)):
            for key in ("weight", "bias", "running_mean", "running_var"):
                if f"{name}.{key}" in self.shapes:
                    yield f"{name}.{key}", 0, False
        elif isinstance(module, nn.PReLU):
            if module.num_parameters > 1:
                yield f"{name}.weight", 0, False
        elif not type(module).__module__.startswith("torch_pruning"):
            raise GraphError(_cannot(name, f"is a {type(module).__name__}"))

    def _claim(self, axes: dict[tuple[str, int], Axis], slot: Axis, offset: int) -> None:
        """Enters a group's positions of one axis; another group may own the rest of it (a concatenation)."""
        key = (slot.tensor, slot.dim)
        known = axes.get(key, replace(slot, owner=np.full_like(slot.owner, -1)))
        mine = slot.owner >= 0
        claimed = np.where(mine, slot.owner + offset, known.owner)
        if np.any(mine & (known.owner >= 0) & (known.owner != claimed)):
            raise GraphError(_cannot(slot.tensor, "is claimed by two channel groups"))
        axes[key] = replace(known, owner=claimed)

    def _name_of(self, graph: Any, node: Any) -> str:
        if isinstance(node.module, nn.Parameter):
            return str(graph._param_to_name[node.module])
        return str(self.names.get(node.module, ""))

    def _norm_after(self, node: Any) -> str | None:
        readers = set(node.outputs)
        if len(readers) != 1:
            return None
        module = next(iter(readers)).module
        return self.names[module] if isinstance(module, BATCH_NORM) else None


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, CONV) and module.groups == module.out_channels == module.in_channels > 1


def _width(module: nn.Module, side: str) -> int:
    """Number of channels or features that a layer reads (``in``) or makes (``out``)."""
    return int(getattr(module, f"{side}_features" if isinstance(module, nn.Linear) else f"{side}_channels"))


def _cannot(name: str, why: str) -> str:
    return f"layer '{name}' {why}, which cannot be sliced; leave the channels that reach it alone with ignore="


def _matching_layers(model: nn.Module, ignore: Sequence[str]) -> list[nn.Module]:
    named = [(name, module) for name, module in model.named_modules() if name]
    for pattern in ignore:
        if not any(fnmatch.fnmatch(name, pattern) for name, _ in named):
            raise GraphError(f"ignore: no layer matches '{pattern}'; the layers are called like '{named[0][0]}'")
    return [module for name, module in named if any(fnmatch.fnmatch(name, pattern) for pattern in ignore)]


def _refuse_frozen(model: nn.Module, ignore: Sequence[str]) -> None:
    """Frozen layers have no gradient to be scored by, and pruning them is rarely meant: say so instead of guessing."""
    for name, module in model.named_modules():
        ignored = any(fnmatch.fnmatch(name, pattern) for pattern in ignore)
        for key, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad and not ignored and isinstance(module, (*CONV, nn.Linear, *BATCH_NORM)):
                full = f"{name}.{key}" if name else key
                raise GraphError(
                    f"parameter '{full}' is frozen (requires_grad=False); unfreeze it with requires_grad_(True) "
                    f"or leave its layer alone with ignore=['{name}']"
                )
