"""From labels to groups: turns what a forward pass shows into the plain data of a channel graph."""

from __future__ import annotations

import copy
import fnmatch
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from criteria.errors import GraphError, raise_if_out_of_memory
from criteria.graph import Axis, ChannelGraph, ChannelGroup, GroupNote, Indices, Member
from criteria.labels import compact, varying
from criteria.layers import BATCH_NORM, WEIGHTED
from criteria.tracing import Trace, trace


def build_graph(model: nn.Module, example_input: Tensor, ignore: Sequence[str]) -> ChannelGraph:
    """What :meth:`ChannelGraph.build` promises."""
    ignored = matching_layers(model, ignore)
    _refuse_frozen(model, ignored)
    try:
        copied = copy.deepcopy(model).eval()
    except Exception as error:
        raise_if_out_of_memory(error)
        raise GraphError(f"the network must be one that can be copied, got {type(error).__name__}: {error}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = trace(copied, example_input, ignored, _whole_layers(model, shapes))
    if not found.made:
        raise GraphError(
            "the network must call conv or linear layers of its own, and a copy of it calls none; a forward that is "
            "replaced on the instance keeps calling the layers of the network that it was made for"
        )
    grouping = _Grouping(found)
    groups, notes = grouping.groups()
    if not groups:
        reasons = "".join(f"; {note}" for note in notes)
        rule = "all layers are ignored, make the output, or cannot be sliced"
        raise GraphError(f"the network has no prunable channel group: {rule}{reasons}")
    parameters = frozenset(name for name, _ in model.named_parameters())
    return ChannelGraph(groups, grouping.axes(groups), shapes, found.positions, parameters, notes, found.uncounted)


@dataclass(frozen=True)
class _Units:
    """Units that lie in the same axes equally often, in the order of their channels: a group, or what is left alone."""

    layers: tuple[str, ...]
    numbers: Indices

    @property
    def name(self) -> str:
        return self.layers[0]


class _Grouping:
    """Channels are units of labels that go together; units that lie in the same axes equally often make a group."""

    def __init__(self, found: Trace) -> None:
        self.trace = found
        self._pin_used()
        self.unit = found.ties.units()
        self.made = {layer: self.unit[labels.numpy()] for layer, labels in found.made.items()}
        self.read = {layer: self.unit[labels.numpy()] for layer, labels in found.read.items()}
        self.reasons: dict[int, list[GroupNote | None]] = defaultdict(list)
        is_made = np.zeros(self.unit.max() + 1, dtype=bool)  # of all other units nobody asks
        for units in self.made.values():
            is_made[units] = True
        for pin in found.ties.pins:
            note = None if pin.reason is None else GroupNote("", pin.layer, pin.reason)
            numbers = self.unit[pin.labels.numpy()]
            for number in np.unique(numbers[is_made[numbers]]).tolist():
                self.reasons[number].append(note)

    def _pin_used(self) -> None:
        """Tensors used outside of layers: each holds channels along one dimension, or stays as it is."""
        layers = {tensor: labels for (tensor, _), (labels, _) in self.trace.axes.items()}
        for name, labels in self.trace.used.items():
            if name in layers:
                self.trace.ties.pin(labels, name, "is also used outside of its layer")
                for (tensor, _), (own, _) in self.trace.axes.items():
                    if tensor == name:
                        self.trace.ties.pin(own, name, "is also used outside of its layer")
        units = self.trace.ties.units()
        for name, labels in self.trace.used.items():
            if len(varying(compact(torch.from_numpy(np.asarray(units[labels.numpy()]))))) > 1:
                self.trace.ties.pin(labels, name, "does not hold its channels along one dimension")

    def groups(self) -> tuple[tuple[ChannelGroup, ...], tuple[GroupNote, ...]]:
        """The prunable groups in forward order, and why other channels are left alone."""
        groups: list[ChannelGroup] = []
        notes: dict[GroupNote, None] = {}
        names: set[str] = set()
        for units in self._alike():
            reasons = [reason for number in units.numbers.tolist() for reason in self.reasons.get(number, [])]
            if not reasons and len(units.numbers) == 1:
                reasons = [GroupNote("", units.name, "has channels that can only be removed all at once")]
            if not reasons:
                groups.append(self._group(units, names))
            elif None not in reasons:
                first = next(reason for reason in reasons if reason is not None)
                notes[GroupNote(units.name, first.layer, first.reason)] = None
        return tuple(groups), tuple(notes)

    def _alike(self) -> Iterator[_Units]:
        """Units with the same positions in the same axes and the same fate, in forward order."""
        order = {layer: number for number, layer in reversed(list(enumerate(self.trace.order)))}
        layers = sorted(self.made, key=order.__getitem__)
        arrays = [self.unit[labels.numpy()] for labels, _ in self.trace.axes.values()]
        arrays += [self.made[layer] for layer in layers]
        made = np.concatenate([self.made[layer] for layer in layers])
        row = np.full(self.unit.max() + 1, -1)  # of all other units, each element of a large tensor may be one
        row[made] = np.unique(made, return_inverse=True)[1]
        rows = [row[array] for array in arrays]
        counts = np.stack([np.bincount(mine[mine >= 0], minlength=row.max() + 1) for mine in rows], 1)
        alike: dict[tuple[bytes, bool], list[int]] = {}
        for number in dict.fromkeys(made.tolist()):
            if number != self.unit[0]:
                alike.setdefault((counts[row[number]].tobytes(), number in self.reasons), []).append(number)
        for numbers in alike.values():
            yield _Units(tuple(layer for layer in layers if numbers[0] in self.made[layer]), np.array(numbers))

    def _group(self, units: _Units, names: set[str]) -> ChannelGroup:
        channel = np.full(self.unit.max() + 1, -1, dtype=np.int64)
        channel[units.numbers] = np.arange(len(units.numbers))
        name = next(name for name in _numbered(units.name) if name not in names)
        names.add(name)
        producers = [Member(layer, channel[self.made[layer]], self.trace.norms.get(layer)) for layer in units.layers]
        order = list(dict.fromkeys(self.trace.order))
        readers = sorted((layer for layer, read in self.read.items() if units.numbers[0] in read), key=order.index)
        consumers = [Member(layer, channel[self.read[layer]]) for layer in readers]
        return ChannelGroup(name, len(units.numbers), tuple(producers), tuple(consumers))

    def axes(self, groups: Sequence[ChannelGroup]) -> tuple[Axis, ...]:
        """The slicing plan of these groups."""
        owner = np.full(self.unit.max() + 1, -1, dtype=np.int64)
        offset = 0
        for group in groups:
            first = group.producers[0]
            held = first.channels >= 0
            owner[self.made[first.layer][held]] = first.channels[held] + offset
            offset += group.size
        known = [
            Axis(tensor, dim, owner[self.unit[labels.numpy()]], reads)
            for (tensor, dim), (labels, reads) in self.trace.axes.items()
        ]
        for tensor, labels in self.trace.used.items():
            owners = compact(torch.from_numpy(np.asarray(owner[self.unit[labels.numpy()]])))
            known.extend(Axis(tensor, dim, owners.flatten().numpy()) for dim in varying(owners))
        return tuple(axis for axis in known if (axis.owner >= 0).any())


def _numbered(name: str) -> Iterator[str]:
    """A name, and then others for further groups that the same layer is the first to make."""
    yield name
    number = 2
    while True:
        yield f"{name}#{number}"
        number += 1


def _whole_layers(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Layers whose weight is not theirs alone to be sliced, and why."""
    whole: dict[str, str] = {}
    first: dict[int, tuple[str, str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, WEIGHTED) and f"{name}.weight" not in shapes:
            whole[name] = "has a weight that is computed from other parameters"
        for key, parameter in module.named_parameters(recurse=False):
            other, key_there = first.setdefault(id(parameter), (name, key))
            if other != name:
                whole[name] = f"shares its {key} with '{other}'"
                whole[other] = f"shares its {key_there} with '{name}'"
    return whole


def matching_layers(model: nn.Module, ignore: Sequence[str]) -> set[str]:
    """Names of the modules that match a pattern, and of all inside them.

    Raises:
        GraphError: A pattern matches nothing.
    """
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
