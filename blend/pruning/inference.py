"""Running pruned networks fast: BatchNorm statistics of all images at once, and convolutions that do all the rest."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from io import StringIO
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blend.pruning.chain import Chain, chained
from blend.pruning.fusion import FusedConv, fused
from blend.pruning.norms import Norm
from blend.pruning.prefixes import PrefixCache
from blend.pruning.slicing import FORWARD_ERRORS, TOLERANCES, PrunedNetwork, recalibrate
from criteria.errors import raise_if_out_of_memory
from criteria.graph import ChannelGraph, Keep
from criteria.layers import BATCH_NORM, is_transposed

MAX_ACTIVATION_BYTES = 2**30
"""What the input of a BatchNorm may take for all images of a recalibration; above, batches are averaged one by one."""


class InferenceNetwork:
    """One network that can become any of its pruned versions, made ready for many forward passes without gradients.

    Layers whose output a BatchNorm reads, and nothing else, take it in; all other BatchNorms stay as they are. On a
    CPU, convolutions take in shortcuts and activations behind them, too. Whether a network stands either is tried out
    once, on the example; one that does not is run as it is.

    Args:
        model: The unpruned network; it is copied and not touched.
        graph: Its channel graph.
        example: Inputs, some tens at best.
        precision: What layers compute in; BatchNorm statistics and folding stay in the network's own. None for the
            network's own everywhere.
        fuse: Whether to try out fused convolutions and parts; they pay where more than a few networks are run.
        cache: Keeps what the first layers have made, on a CPU and where the network can be traced. All that
            :meth:`prune` is given but the channels must be the same each time then, or depend on the channels that a
            tensor holds alone.

    Attributes:
        bytes_per_image: What the largest input of a BatchNorm takes for one image; 0 if that is not known.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, example: Tensor, precision: torch.dtype | None = None,
        *, fuse: bool = True, cache: PrefixCache | None = None,
    ) -> None:  # fmt: skip
        self.network = PrunedNetwork(model, graph)
        self.precision: torch.dtype | None = None
        self._cast = _castable(self.network.shell)
        self.bytes_per_image = 0.0
        self._norms = _replace_norms(self.network.shell)
        self._folds = [(layer, norm, layer.bias) for layer, norm in _foldable(self.network.shell, graph, self._norms)]
        self._plain = self._fused = Chain([self.network.shell])
        for _, norm, _ in self._folds:
            norm.alone = True
        if self._norms:
            expected = _plain_outputs(PrunedNetwork(model, graph), example)
            if self._agrees(expected, example) or _agrees_in_double(model, graph, example):
                self.bytes_per_image = max(norm.largest for norm in self._norms.values()) / len(example)
            else:
                self.network = PrunedNetwork(model, graph)
                self._plain = self._fused = Chain([self.network.shell])
                self._cast = _castable(self.network.shell)
                self._norms, self._folds, fuse = {}, [], False
        if fuse and example.is_cpu:
            self._fuse(example, precision, cache)
        self.precision = precision

    def prune(
        self, keep: Keep, images: Sequence[Tensor] = (), corrected: Mapping[str, Tensor] = MappingProxyType({}),
        *, fuse: bool = True,
    ) -> Chain:  # fmt: skip
        """Slices the network, re-estimates the statistics of its BatchNorms, and folds them.

        Args:
            keep: The channels that stay.
            images: Batches of inputs whose statistics, all taken together, become those of the BatchNorms; none to
                leave these as they are. In the precision of the layers, as all inputs of the network.
            corrected: As for :meth:`blend.pruning.slicing.PrunedNetwork.prune`.
            fuse: Whether convolutions may do what follows them: they take for 0 what is not a number.

        Returns:
            The pruned network in evaluation mode, valid until the next call.
        """
        for layer, norm, bias in self._folds:
            layer.bias, norm.folded = bias, False
        network = self._fused if fuse else self._plain
        self.network.prune(keep, corrected)
        weights = [layer.weight.data for layer, _, _ in self._folds]
        if self.precision is not None:
            for parameter in (*self._cast, *self.network.added.values()):
                parameter.data = parameter.data.to(self.precision)
        network.begin(keep)
        if self._norms and sum(map(len, images)) * self.bytes_per_image <= MAX_ACTIVATION_BYTES:
            network.recalibrate(images)
        else:
            recalibrate(network, images)
        for (layer, norm, _), weight in zip(self._folds, weights, strict=True):
            norm.fold_into(layer, weight)
        return network

    def statistics(self) -> dict[str, Tensor]:
        """Copies of the means and variances of all BatchNorms as :meth:`prune` has left them, by name of the tensor."""
        shell = self.network.shell
        norms = {name: wrapped.norm for name, wrapped in self._norms.items()} or {
            name: module for name, module in shell.named_modules() if isinstance(module, BATCH_NORM)
        }
        return {
            f"{name}.{key}": tensor.clone()
            for name, norm in norms.items()
            for key, tensor in norm.named_buffers(recurse=False)
            if key in ("running_mean", "running_var")
        }

    def _fuse(self, example: Tensor, precision: torch.dtype | None, cache: PrefixCache | None) -> None:
        """Has convolutions do what follows them, too, and cuts the network into parts, where it stands that.

        That is tried out on pruned networks, as what is traced holds sizes that the forward reads from its layers:
        those of the unpruned one.
        """
        groups = self.network.graph.groups
        masks = [np.concatenate([_first(group.size, share) for group in groups]) for share in (0.5, 0.25)]
        plain = [self._outputs(example, mask) for mask in masks]
        self.network.prune(np.ones_like(masks[0]))
        try:
            with redirect_stderr(StringIO()):  # in which torch.fx says more about an error
                traced = fused(self.network.shell, [(layer, norm) for layer, norm, _ in self._folds])
                self._fused = chained(traced, self.network.shell, self.network.graph)
                # Whatever the cache is, the bits are to be the same.
                pays = len(self._fused.parts) > 1 or any(isinstance(layer, FusedConv) for layer in traced.modules())
                stands_it = pays and all(
                    outputs is not None and self._agrees(outputs, example, mask)
                    for outputs, mask in zip(plain, masks, strict=True)
                )
                if stands_it:
                    self._portion(example)
                self.precision = precision
                cast = precision is not None and example.is_floating_point()
                stands_it &= self._outputs(example.to(precision) if cast else example) is not None
        except Exception as error:  # noqa: BLE001 - a forward may raise anything when traced, and is run as it is then
            raise_if_out_of_memory(error)
            stands_it = False
        if stands_it:
            self._fused.cache = cache
        else:
            self._fused = self._plain

    def _portion(self, example: Tensor) -> None:
        """Has images go through the parts of the unpruned network in portions, where they stand that."""
        if len(example) < 2 or example.dtype not in (torch.float32, torch.float64):
            return  # there would be no telling
        try:
            with torch.no_grad():
                self.prune(np.ones(len(self.network.graph), dtype=bool), [example]).portion(example)
        except FORWARD_ERRORS as error:  # a size is written down somewhere
            raise_if_out_of_memory(error)

    def _agrees(self, expected: Tensor, example: Tensor, keep: Keep | None = None) -> bool:
        """Whether outputs are those expected; of the unpruned network, unless a mask is given."""
        outputs = self._outputs(example, keep)
        if outputs is None or outputs.shape != expected.shape or outputs.dtype != expected.dtype:
            return False
        return bool((outputs - expected).abs().max() <= TOLERANCES[expected.dtype] * expected.abs().max())

    def _outputs(self, example: Tensor, keep: Keep | None = None) -> Tensor | None:
        """Those of a network recalibrated on the example; None if it does not run."""
        keep = np.ones(len(self.network.graph), dtype=bool) if keep is None else keep
        batches = example.tensor_split(2) if len(example) > 1 else [example]
        try:
            with torch.no_grad():
                outputs: Tensor = self.prune(keep, batches)(example)
        except FORWARD_ERRORS as error:  # its forward reads attributes of a BatchNorm, or branches
            raise_if_out_of_memory(error)
            return None
        return outputs


def _first(size: int, share: float) -> Keep:
    """Keeps a share of a group's channels and one more, but never all if there are two."""
    return np.arange(size) < max(1, min(int(size * share) + 1, size - 1))


def _plain_outputs(network: PrunedNetwork, example: Tensor) -> Tensor:
    """Of the unpruned network, after a pass in training mode on one large batch."""
    with torch.no_grad():
        plain = network.prune(np.ones(len(network.graph), dtype=bool))
        recalibrate(plain, [example])
        outputs: Tensor = plain(example)
    return outputs


def _agrees_in_double(model: nn.Module, graph: ChannelGraph, example: Tensor) -> bool:
    """Whether its outputs would be those expected but for rounding, which deep networks make much of."""
    if next(model.parameters()).dtype is torch.float64 or not example.is_floating_point():
        return False
    try:
        network = InferenceNetwork(copy.deepcopy(model).double(), graph, example.double(), fuse=False)
    except FORWARD_ERRORS as error:  # something in it has a type of its own, or the device knows no doubles
        raise_if_out_of_memory(error)
        return False
    return bool(network._norms)


def _replace_norms(network: nn.Module) -> dict[str, Norm]:
    """Puts a :class:`Norm` in the place of every BatchNorm with running statistics; by the first name of each."""
    found = {name: m for name, m in network.named_modules() if isinstance(m, BATCH_NORM) and m.track_running_stats}
    norms = {name: Norm(module) for name, module in found.items() if name}
    wrapped = {norm.norm: norm for norm in norms.values()}
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module in wrapped:
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, wrapped[module])
    return norms


def _foldable(network: nn.Module, graph: ChannelGraph, norms: dict[str, Norm]) -> list[tuple[Any, Norm]]:
    pairs = {member.layer: norms[member.norm] for g in graph.groups for member in g.producers if member.norm in norms}
    layers = ((network.get_submodule(name), norm) for name, norm in pairs.items())
    return [(layer, norm) for layer, norm in layers if not is_transposed(layer)]


def _castable(network: nn.Module) -> list[Tensor]:
    """The parameters of all layers but BatchNorm, and constants that a user's modules keep as buffers."""
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORM)]
    whole = {id(parameter) for norm in norms for parameter in norm.parameters()}
    others = [m for m in network.modules() if not type(m).__module__.startswith("torch.") and not isinstance(m, Norm)]
    buffers = [buffer for module in others if module not in norms for buffer in module.buffers(recurse=False)]
    tensors = [p for p in network.parameters() if id(p) not in whole] + buffers
    return [tensor for tensor in tensors if tensor.is_floating_point()]

