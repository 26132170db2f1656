"""Pruned networks: sliced out of the original's tensors, without copying or tracing the network again."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blend.errors import InputError
from criteria.graph import BATCH_NORM, CONV, INSTANCE_NORM, ChannelGraph, Keep

TOLERANCE = 1e-3  # of a masked against a sliced network, relative to the largest output; float32 rounding is ~1e-6


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
        self.shell = copy.deepcopy(model).eval().requires_grad_(False)
        self._slots = {name: _Slot(self.shell, name) for name in dict.fromkeys(axis.tensor for axis in graph.axes)}
        self._originals = {name: slot.get().clone() for name, slot in self._slots.items()}
        self._norms = [m for m in self.shell.modules() if isinstance(m, BATCH_NORM) and m.track_running_stats]
        self._statistics = [_copied_statistics(norm) for norm in self._norms]
        self._depthwise = [
            m for m in self.shell.modules() if isinstance(m, CONV) and m.groups == m.out_channels == m.in_channels > 1
        ]

    def prune(self, keep: Keep) -> nn.Module:
        """Slices the network to the kept channels.

        Args:
            keep: One truth value per channel of the graph, groups one after the other.

        Returns:
            The shell with the sliced tensors; valid until the next call. Statistics of BatchNorm are the original's.
        """
        for norm, statistics in zip(self._norms, self._statistics, strict=True):
            _restore_statistics(norm, statistics)
        sliced = dict(self._originals)
        kept = np.append(keep, True)  # owner -1 reads the last one: positions that no group owns stay
        for axis in self.graph.axes:
            positions = torch.from_numpy(np.flatnonzero(kept[axis.owner]))
            if len(positions) < len(axis.owner):
                sliced[axis.tensor] = sliced[axis.tensor].index_select(axis.dim, positions)
        for name, tensor in sliced.items():
            self._slots[name].set(tensor, original=tensor is self._originals[name])
        self._fit_attributes()
        return self.shell

    def mask(self, keep: Keep) -> nn.Module:
        """Leaves every tensor in its full size, and blinds the consumers for the removed channels.

        The outputs equal those of :meth:`prune`; this is the reference that the slicing plan is checked against.
        """
        self.prune(np.ones_like(keep))
        kept = torch.from_numpy(np.append(keep, True))
        for axis in self.graph.axes:
            if axis.consumes:
                weight = self._slots[axis.tensor].get()
                shape = [-1 if dim == axis.dim else 1 for dim in range(weight.ndim)]
                self._slots[axis.tensor].set(weight * kept[torch.from_numpy(axis.owner)].view(shape).to(weight.dtype))
        return self.shell

    def extract(self, keep: Keep) -> nn.Module:
        """A physically smaller network of its own, with its parameters trainable."""
        network = copy.deepcopy(self.prune(keep))
        return network.requires_grad_(True)

    def _fit_attributes(self) -> None:
        """Makes what the modules say of themselves true; only ``groups`` and normalised shapes change results."""
        for conv in self._depthwise:
            conv.groups = conv.weight.shape[0]
        for module in self.shell.modules():
            if isinstance(module, CONV):
                out, into = (1, 0) if module.transposed else (0, 1)
                module.out_channels = module.weight.shape[out] * (module.groups if module.transposed else 1)
                module.in_channels = module.weight.shape[into] * (1 if module.transposed else module.groups)
            elif isinstance(module, nn.Linear):
                module.out_features, module.in_features = module.weight.shape
            elif isinstance(module, (*BATCH_NORM, *INSTANCE_NORM)):
                known = module.weight if module.weight is not None else module.running_mean
                module.num_features = len(known) if known is not None else module.num_features


def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Re-estimates the BatchNorm statistics of a pruned network, in place.

    Statistics are reset and averaged over the batches (cumulative average); weights, dropout and everything else stay
    in evaluation mode. Without labels and without gradients.

    Args:
        network: A network in evaluation mode.
        batches: Inputs from the calibration split.
    """
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORM) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        with torch.no_grad():
            for inputs in batches:
                network(inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def check_slicing(model: nn.Module, graph: ChannelGraph, example_input: Tensor, seed: int = 0) -> None:
    """Proves the slicing plan on a batch: the masked and the physically sliced network must agree.

    Every group is checked on its own, so that the error can name it, and then all together.

    Raises:
        InputError: Naming the first group whose slices are wrong, and what to do.
    """
    network = PrunedNetwork(model, graph)
    rng = np.random.default_rng(seed)
    halves = np.zeros(len(graph), dtype=bool)
    for group, part in graph.split(halves):
        part[rng.permutation(group.size)[: (group.size + 1) // 2]] = True
    with torch.no_grad():
        for name, where in [*graph.slices.items(), ("all groups", slice(None))]:
            keep = np.ones(len(graph), dtype=bool)
            keep[where] = halves[where]
            difference = _disagreement(network, keep, example_input)
            if not difference <= TOLERANCE:
                raise InputError(
                    f"pruning the channels of '{name}' gives another network than masking them ({difference}); "
                    f"the coupling of this layer is not understood: leave it alone with --ignore '{name}'"
                )


def _disagreement(network: PrunedNetwork, keep: Keep, example_input: Tensor) -> float:
    masked = network.mask(keep)(example_input)
    try:
        sliced = network.prune(keep)(example_input)
    except (RuntimeError, IndexError, ValueError):
        return float("inf")  # the slices do not even fit together: as wrong as can be
    if sliced.shape != masked.shape:
        return float("inf")
    return float((sliced - masked).abs().max() / masked.abs().max().clamp_min(1e-12))


@contextmanager
def single_thread() -> Iterator[None]:
    """One intra-op thread inside, as everywhere else that candidates are judged, so that results are the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Slot:
    """A tensor's place in its module; getting and setting it without the checks of ``nn.Module``."""

    def __init__(self, model: nn.Module, tensor: str) -> None:
        path, _, self.key = tensor.rpartition(".")
        module = model.get_submodule(path)
        self.is_parameter = self.key in module._parameters
        self.store: dict[str, Any] = module._parameters if self.is_parameter else module._buffers

    def get(self) -> Tensor:
        tensor: Tensor = self.store[self.key]
        return tensor.detach()

    def set(self, tensor: Tensor, original: bool = False) -> None:
        if self.is_parameter:
            tensor = nn.Parameter(tensor, requires_grad=False)
        elif original:
            tensor = tensor.clone()  # buffers are written to by recalibration
        self.store[self.key] = tensor


def _copied_statistics(norm: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in norm.named_buffers(recurse=False)}


def _restore_statistics(norm: nn.Module, statistics: dict[str, Tensor]) -> None:
    for key, tensor in statistics.items():
        norm._buffers[key] = tensor.clone()
