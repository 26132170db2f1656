"""Pruned networks: sliced out of the original's tensors, without copying or tracing the network again."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blend.errors import InputError
from criteria.errors import raise_if_out_of_memory
from criteria.graph import ChannelGraph, Indices, Keep
from criteria.layers import BATCH_NORM, refit, unit_of

# Of a masked against a sliced network, relative to the largest output; rounding is ~1e-14, ~1e-6 and ~1e-2.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.03}

LARGE = 1 << 17  # numbers from which kernels are sliced in one go, without a tensor in between that no cache holds

FORWARD_ERRORS = (RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError, ArithmeticError)
"""What a forward may raise that does not stand what was done to its network."""


class PrunedNetwork:
    """One network that can become any of its pruned versions, again and again.

    The slicing plan is compiled once. :meth:`prune` indexes the original tensors and puts the slices into the modules
    of a shell; the originals stay as they are, so candidates do not influence one another.

    Args:
        model: The unpruned network; it is copied once and not touched.
        graph: Its channel graph.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self.graph = graph
        self._frozen = frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
        self.shell = copy.deepcopy(model).eval().requires_grad_(False)
        self._device = next(self.shell.parameters()).device
        self._tensors: dict[str, Tensor] = self.shell.state_dict(keep_vars=True)
        # Recalibration writes to the statistics of BatchNorm, so that they are copied for every candidate.
        self._statistics = frozenset(
            f"{name}.{key}"
            for name, module in self.shell.named_modules()
            if isinstance(module, BATCH_NORM)
            for key, _ in module.named_buffers(recurse=False)
        )
        # What compensation writes to has to be put back, also where no channel of it goes.
        biases = {f"{member.layer}.bias" for group in graph.groups for member in group.consumers} & set(self._tensors)
        self._owners, self._plan = _slicing_plan(graph, self._statistics | biases)
        self._originals = {name: self._tensors[name].detach().clone() for name in self._plan}
        touched = {name.rpartition(".")[0] for name in self._plan}
        # One whose inputs are down to one for each conv group looks like a depthwise one; the graph knows better.
        modules = [(name, module) for name, module in self.shell.named_modules() if name in touched]
        self._layers = [(module, None if name in graph.mixing else unit_of(module)) for name, module in modules]
        self._outputs = {axis.tensor: axis.owner for axis in graph.axes if not axis.consumes}
        self.added: dict[str, nn.Parameter] = {}

    def prune(self, keep: Keep, corrected: Mapping[str, Tensor] = MappingProxyType({})) -> nn.Module:
        """Slices the network to the kept channels.

        Args:
            keep: One truth value per channel of the graph, groups one after the other.
            corrected: Tensors of consumers, in the unpruned shape, to be sliced in place of the original ones; biases
                that a layer does not have are added to it, and are found in ``added``.

        Returns:
            The shell with the sliced tensors; valid until the next call. Statistics of BatchNorm are the original's.
        """
        kept = np.append(keep, True)  # owner -1 reads the last one: positions that no group owns stay
        positions = [torch.from_numpy(np.flatnonzero(kept[owner])).to(self._device) for owner in self._owners]
        for name, axes in self._plan.items():
            original = tensor = self._originals[name]
            if name in corrected:
                tensor = torch.empty_like(original).copy_(corrected[name])
            tensor = _sliced(tensor, {dim: positions[owner] for dim, owner in axes})
            shared = tensor is original and name in self._statistics
            self._tensors[name].data = tensor.clone() if shared else tensor
        for layer, unit in self._layers:
            refit(layer, unit)
        self._add_biases(kept, {name: values for name, values in corrected.items() if name not in self._tensors})
        return self.shell

    def _add_biases(self, kept: Keep, biases: Mapping[str, Tensor]) -> None:
        """Takes those of the candidate before away, and puts these on, sliced as the outputs of their layers are."""
        for name in self.added:
            self.shell.get_submodule(name.rpartition(".")[0]).bias = None  # type: ignore[assignment]
        self.added = {}
        for name, values in biases.items():
            layer: Any = self.shell.get_submodule(name.rpartition(".")[0])
            owner = self._outputs.get(f"{name.rpartition('.')[0]}.weight")
            if owner is not None:
                owner = np.tile(owner, len(values) // len(owner))  # a transposed one's are of one conv group
                values = values[torch.from_numpy(kept[owner])]
            layer.bias = self.added[name] = nn.Parameter(values.to(layer.weight), requires_grad=False)

    def mask(self, keep: Keep) -> nn.Module:
        """Leaves every tensor in its full size, and blinds the consumers for the removed channels.

        The outputs equal those of :meth:`prune`; this is the reference that the slicing plan is checked against.
        """
        self.prune(np.ones_like(keep))
        kept = np.append(keep, True)
        for axis in self.graph.axes:
            if axis.consumes:
                tensor = self._tensors[axis.tensor]
                shape = [-1 if dim == axis.dim else 1 for dim in range(tensor.ndim)]
                tensor.data = tensor.data * torch.from_numpy(kept[axis.owner]).view(shape).to(tensor)
        return self.shell

    def extract(self, keep: Keep, corrected: Mapping[str, Tensor] = MappingProxyType({})) -> nn.Module:
        """A physically smaller network of its own, in evaluation mode, with the same parameters trainable as before."""
        network = copy.deepcopy(self.prune(keep, corrected))
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name not in self._frozen)
        return network


def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Re-estimates the BatchNorm statistics of a pruned network, in place.

    Statistics are reset and averaged over the batches (cumulative average); those of a BatchNorm that the forward does
    not call, weights, dropout and everything else stay as they are, in evaluation mode. Without labels and without
    gradients. Without any batch, statistics stay as they are.

    Args:
        network: A network in evaluation mode.
        batches: Inputs from the calibration split, without their labels, best of equal size: each counts the same.

    Raises:
        InputError: A batch is no tensor; statistics stay as they were.
    """
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORM) and module.track_running_stats]
    before = [(norm.momentum, norm.training, [buffer.clone() for buffer in norm.buffers()]) for norm in norms]
    try:
        with torch.no_grad():
            for number, inputs in enumerate(batches if norms else ()):
                if not isinstance(inputs, Tensor):
                    what = type(inputs).__name__
                    raise InputError(f"batches must be inputs alone, without labels, got a {what} as batch {number}")
                if number == 0:
                    for norm in norms:
                        norm.reset_running_stats()
                        norm.momentum = None
                        norm.train()
                network(inputs)
    finally:
        for norm, (momentum, training, buffers) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.train(training)
            if not norm.num_batches_tracked:  # never called: its statistics are used elsewhere, or not at all
                for buffer, value in zip(norm.buffers(), buffers, strict=True):
                    buffer.copy_(value)


def check_slicing(model: nn.Module, graph: ChannelGraph, example_input: Tensor, seed: int = 0) -> None:
    """Proves the slicing plan on a batch: the masked and the physically sliced network must agree.

    Every group is checked on its own, so that the error can name it, and then all together. In double precision, where
    rounding cannot be mistaken for an error nor hide one; in the network's own where its forward insists on that.

    Raises:
        InputError: Naming the first group whose slices are wrong, and what to do.
    """
    network, inputs = _in_double(model, graph, example_input)
    tolerance = TOLERANCES[next(network.shell.parameters()).dtype]
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, where in [*graph.slices.items(), ("all groups", slice(None))]:
            for halves in _halves(graph, rng):
                keep = np.ones(len(graph), dtype=bool)
                keep[where] = halves[where]
                difference = _disagreement(network, keep, inputs)
                if not difference <= tolerance:
                    raise InputError(
                        f"pruning the channels of '{name}' gives another network than masking them ({difference}); "
                        f"the coupling of this layer is not understood: leave it alone with "
                        f"--ignore '{name.partition('#')[0]}'"
                    )


def _in_double(model: nn.Module, graph: ChannelGraph, inputs: Tensor) -> tuple[PrunedNetwork, Tensor]:
    """The network and its input in double precision, or as they are if the network does not run like that."""
    try:
        doubled = copy.deepcopy(model).eval().double()
        wide = inputs.double() if inputs.is_floating_point() else inputs
        with torch.no_grad():
            doubled(wide)
    except FORWARD_ERRORS as error:  # something in it has a type of its own, or the device knows no doubles
        raise_if_out_of_memory(error)
        return PrunedNetwork(model, graph), inputs
    return PrunedNetwork(doubled, graph), wide


def _halves(graph: ChannelGraph, rng: np.random.Generator) -> Iterator[Keep]:
    """The first half of every group, and a random half, which alone might hide a symmetric mistake in a small group."""
    first = np.concatenate([np.arange(group.size) < (group.size + 1) // 2 for group in graph.groups])
    yield first
    yield np.concatenate([rng.permutation(part) for _, part in graph.split(first)])


def _disagreement(network: PrunedNetwork, keep: Keep, example_input: Tensor) -> float:
    try:
        masked = network.mask(keep)(example_input)
        sliced = network.prune(keep)(example_input)
    except FORWARD_ERRORS as error:
        raise_if_out_of_memory(error)
        return float("inf")  # the slices do not even fit together: as wrong as can be
    if sliced.shape != masked.shape:
        return float("inf")
    difference = torch.where(sliced == masked, 0, sliced - masked)  # also where both are the same infinity
    scale = masked[masked.isfinite()].abs().amax().clamp_min(1e-12) if masked.isfinite().any() else 1.0
    return float(difference.abs().max() / scale)


@contextmanager
def reproducibly() -> Iterator[None]:
    """Inside, the same computation gives the same bits again: one intra-op thread, and cuDNN's deterministic kernels.

    These compute in the precision of what they are given, and not in TF32.
    """
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    torch.set_num_threads(1)
    try:
        with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads)


def _sliced(tensor: Tensor, positions: Mapping[int, Tensor]) -> Tensor:
    """The kept positions of each dimension."""
    cut = sorted(dim for dim, kept in positions.items() if len(kept) < tensor.shape[dim])
    large = tensor.is_contiguous() and tensor.shape[2:].numel() > 1 and tensor.numel() > LARGE
    if large and cut == [0, 1]:
        where = positions[0].unsqueeze(1) * tensor.shape[1] + positions[1]
        return tensor.flatten(0, 1).index_select(0, where.flatten()).view(*where.shape, *tensor.shape[2:])
    for dim in cut:
        tensor = tensor.index_select(dim, positions[dim])
    return tensor


def _slicing_plan(
    graph: ChannelGraph, statistics: Iterable[str]
) -> tuple[list[Indices], dict[str, list[tuple[int, int]]]]:
    """The different owners, and for each tensor its sliced dimensions with the number of their owner."""
    numbers: dict[bytes, int] = {}
    owners: list[Indices] = []
    plan: dict[str, list[tuple[int, int]]] = {name: [] for name in statistics}
    for axis in graph.axes:
        number = numbers.setdefault(axis.owner.tobytes(), len(owners))
        if number == len(owners):
            owners.append(axis.owner)
        plan.setdefault(axis.tensor, []).append((axis.dim, number))
    return owners, plan
