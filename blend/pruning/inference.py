"""Running pruned networks fast: BatchNorm statistics of all images at once, and BatchNorm folded into the layers.

Folding needs the statistics first, and exact statistics of a layer need all images to have come that far. So images go
through the network in batches that fit into the cache, each in a greenlet of its own, which halts at every BatchNorm
until the others have arrived.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blend.pruning.halting import HaltingPass, halt, halting_passes, may_halt
from blend.pruning.slicing import TOLERANCES, PrunedNetwork, recalibrate
from criteria.graph import ChannelGraph, Keep
from criteria.layers import BATCH_NORM, is_transposed

MAX_ACTIVATION_BYTES = 2**30
"""What the input of a BatchNorm may take for all images of a recalibration; above, batches are averaged one by one."""
_FEW_CHANNELS, _PLACES = 64, 16


class InferenceNetwork:
    """One network that can become any of its pruned versions, made ready for many forward passes without gradients.

    Layers whose output a BatchNorm reads, and nothing else, take it in; all other BatchNorms stay as they are. Whether
    a network stands this is tried out once, on the example; one that does not is run as it is.

    Args:
        model: The unpruned network; it is copied and not touched.
        graph: Its channel graph.
        example: Inputs, some tens at best.
        precision: What layers compute in; BatchNorm statistics and folding stay in the network's own. None for the
            network's own everywhere.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, example: Tensor, precision: torch.dtype | None = None
    ) -> None:
        self.network = PrunedNetwork(model, graph)
        self.precision: torch.dtype | None = None
        self._cast = _castable(self.network.shell)
        self._bytes_per_input = 0.0
        self._norms = _replace_norms(self.network.shell)
        self._folds = [(layer, norm, layer.bias) for layer, norm in _foldable(self.network.shell, graph, self._norms)]
        for _, norm, _ in self._folds:
            norm.alone = True
        if self._norms and not self._agrees(PrunedNetwork(model, graph), example):
            self.network = PrunedNetwork(model, graph)
            self._cast = _castable(self.network.shell)
            self._norms, self._folds = {}, []
        elif self._norms:
            self._bytes_per_input = max(norm.largest for norm in self._norms.values()) / len(example)
        self.precision = precision

    def prune(
        self, keep: Keep, images: Sequence[Tensor] = (), corrected: Mapping[str, Tensor] = MappingProxyType({})
    ) -> nn.Module:
        """Slices the network, re-estimates the statistics of its BatchNorms, and folds them.

        Args:
            keep: The channels that stay.
            images: Batches of inputs whose statistics, all taken together, become those of the BatchNorms; none to
                leave these as they are. In the precision of the layers, as all inputs of the network.
            corrected: As for :meth:`blend.pruning.slicing.PrunedNetwork.prune`.

        Returns:
            The pruned network in evaluation mode, valid until the next call.
        """
        for layer, norm, bias in self._folds:
            layer.bias, norm.folded = bias, False
        network = self.network.prune(keep, corrected)
        weights = [layer.weight.data for layer, _, _ in self._folds]
        if self.precision is not None:
            for parameter in (*self._cast, *self.network.added.values()):
                parameter.data = parameter.data.to(self.precision)
        if self._norms and sum(map(len, images)) * self._bytes_per_input <= MAX_ACTIVATION_BYTES:
            recalibrate_together(network, images, self._norms.values())
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

    def _agrees(self, reference: PrunedNetwork, example: Tensor) -> bool:
        """Whether statistics and outputs are those of the plain network in training mode on one large batch."""
        everything = np.ones(len(reference.graph), dtype=bool)
        with torch.no_grad():
            plain = reference.prune(everything)
            recalibrate(plain, [example])
            expected = plain(example)
            try:
                outputs = self.prune(everything, example.tensor_split(2) if len(example) > 1 else [example])(example)
            except (
                AttributeError,
                TypeError,
                RuntimeError,
            ):  # its forward reads attributes of a BatchNorm, or branches
                return False
        if outputs.shape != expected.shape:
            return False
        return bool((outputs - expected).abs().max() <= TOLERANCES[expected.dtype] * expected.abs().max())


@torch.no_grad()
def recalibrate_together(network: nn.Module, batches: Sequence[Tensor], norms: Iterable[Norm]) -> None:
    """Gives BatchNorms the statistics of all inputs as if they were one batch, up to rounding.

    This is what a forward pass in training mode with a momentum of 1 does to BatchNorm; nothing else of the network is
    in training mode. A BatchNorm that is passed several times gets the mean of its statistics. Without any batch,
    statistics stay as they are.

    Args:
        network: A network in evaluation mode, whose BatchNorms are :class:`Norm`.
        batches: Inputs, in whatever portions.
        norms: The BatchNorms.

    Raises:
        RuntimeError: Which BatchNorms are passed depends on the inputs.
    """
    with halting_passes(network, batches) as runs:
        halts = [run.go_on(batch) for run, batch in zip(runs, batches, strict=True)]
        while not all(run.ended for run in runs):
            halts = _go_on(runs, halts)
    for norm in norms:
        norm.settle()


def _go_on(runs: Sequence[HaltingPass], halts: Sequence[Halt]) -> list[Halt]:
    """Lets all runs pass the BatchNorm at which they halt, as far as the next one."""
    norm = halts[0][0]
    if any(run.ended or halt[0] is not norm for run, halt in zip(runs, halts, strict=True)):
        raise RuntimeError("which BatchNorms a forward pass visits must not depend on the inputs")
    statistics = pooled([statistic for _, statistic in halts])
    norm.visits.append(statistics)
    return [run.go_on(statistics) for run in runs]


Statistics = tuple[Tensor, Tensor, int]
"""Mean and variance (biased) of each channel, and the number of values that they are of."""


class Norm(nn.Module):
    """A BatchNorm in a network that is only run: it halts in a greenlet, and can be folded away.

    Args:
        norm: The BatchNorm, whose tensors stay its own.

    Attributes:
        alone: Whether nothing else reads its input, which it may overwrite then.
        folded: Whether the layer before does its work.
        visits: Statistics of the passes of a recalibration that goes on.
        largest: Bytes of the largest input that was halted with, all greenlets together.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm: Any = norm
        self.alone = self.folded = False
        self.visits: list[Statistics] = []
        self.largest = 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalises by the running statistics, in a greenlet by those of all greenlets; folded, nothing is left."""
        if self.folded:
            return inputs
        if not may_halt():
            outputs: Tensor = self.norm(inputs)
            return outputs
        mean, variance, count = halt((self, batch_statistics(inputs)))
        self.largest = max(self.largest, count * inputs.shape[1] * inputs.element_size())
        weight, bias = (None if p is None else p.to(mean.dtype) for p in (self.norm.weight, self.norm.bias))
        if self.alone and inputs.is_cpu:
            return _normalised_in_place(inputs, mean, variance, weight, bias, self.norm.eps)
        return F.batch_norm(inputs, mean, variance, weight, bias, eps=self.norm.eps)

    def settle(self) -> None:
        """Makes what was measured the running statistics; the variance is unbiased, as PyTorch keeps it."""
        if self.visits:
            means, variances, counts = zip(*self.visits, strict=True)
            unbiased = [v * (n / max(n - 1, 1)) for v, n in zip(variances, counts, strict=True)]
            self.norm.running_mean.copy_(torch.stack(means).mean(0))
            self.norm.running_var.copy_(torch.stack(unbiased).mean(0))
            self.visits = []

    def fold_into(self, layer: Any, weight: Tensor) -> None:
        """Lets the layer before do the normalising.

        Args:
            layer: A conv (not transposed) or linear layer; it gets new tensors in the precision that it has.
            weight: Its weight, maybe in a higher precision.
        """
        norm = self.norm
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean * scale
        shift = shift if norm.bias is None else shift + norm.bias
        shift = shift if layer.bias is None else torch.addcmul(shift, layer.bias.to(shift.dtype), scale)
        precision = layer.weight.dtype
        layer.weight.data = (weight * scale.view(-1, *[1] * (weight.ndim - 1))).to(precision)
        layer.bias = nn.Parameter(shift.to(precision), requires_grad=False)
        self.folded = True


Halt = tuple[Norm, Statistics]


def batch_statistics(values: Tensor) -> Statistics:
    """What BatchNorm would normalise values of shape (n, channels, ...) by; in single precision for values in half."""
    seen, places = _widened(values)
    single = torch.promote_types(values.dtype, torch.float32)
    running = (values.new_zeros(seen.shape[1], dtype=single) for _ in range(2))  # they only tell in what precision
    found = torch.ops.aten.batch_norm_update_stats(seen, *running, 0.0)
    if places > 1:
        means, variances = (part.view(places, -1) for part in found)
        found = _combined(means, variances, 1 / places)
    mean, variance = found
    return mean, variance, values.numel() // values.shape[1]


def _combined(means: Tensor, variances: Tensor, shares: Tensor | float) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, of those (samples, channels) of samples (Chan, Golub and LeVeque, 1983).

    Args:
        means: Of the samples.
        variances: Biased.
        shares: Of all values, of each sample; sum to 1.
    """
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0)


def _normalised_in_place(
    values: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    seen, places = _widened(values)
    of_each = (p if p is None else p.repeat(places) for p in (weight, bias, mean, variance))
    unused = (mean.new_empty(0), mean.new_empty(0))
    torch.ops.aten.native_batch_norm.out(
        seen, *of_each, False, 0.0, eps, out=seen, save_mean=unused[0], save_invstd=unused[1]
    )
    return values


def _widened(values: Tensor) -> tuple[Tensor, int]:
    """The same memory as a map of several times the channels, and how many times.

    The CPU's kernels go through the channels of one place after the other, and are up to four times as slow where these
    are few or do not fill a register. In channels last, several places can be taken for one.
    """
    channels, places = values.shape[1], math.gcd(values.numel() // values.shape[1], _PLACES)
    if channels > _FEW_CHANNELS or not values.is_contiguous(memory_format=torch.channels_last):
        return values, 1
    wide = places * channels
    return values.as_strided((values.numel() // wide, wide, 1, 1), (wide, 1, wide, wide)), places


def pooled(parts: Sequence[Statistics]) -> Statistics:
    """Mean and variance of several samples taken together."""
    if len(parts) == 1:
        return parts[0]
    means, variances = torch.stack([mean for mean, _, _ in parts]), torch.stack([var for _, var, _ in parts])
    counts = torch.tensor([count for _, _, count in parts], dtype=means.dtype, device=means.device)
    total = sum(count for _, _, count in parts)
    return *_combined(means, variances, (counts / total)[:, None]), total


def _replace_norms(network: nn.Module) -> dict[str, Norm]:
    """Puts a :class:`Norm` in the place of every BatchNorm with running statistics."""
    found = {name: m for name, m in network.named_modules() if isinstance(m, BATCH_NORM) and m.track_running_stats}
    norms = {name: Norm(module) for name, module in found.items() if name}
    for name, norm in norms.items():
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, norm)
    return norms


def _foldable(network: nn.Module, graph: ChannelGraph, norms: dict[str, Norm]) -> list[tuple[Any, Norm]]:
    pairs = {member.layer: norms[member.norm] for g in graph.groups for member in g.producers if member.norm in norms}
    layers = ((network.get_submodule(name), norm) for name, norm in pairs.items())
    return [(layer, norm) for layer, norm in layers if not is_transposed(layer)]


def _castable(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of all layers but BatchNorm."""
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORM)]
    whole = {id(parameter) for norm in norms for parameter in norm.parameters()}
    return [p for p in network.parameters() if id(p) not in whole and p.is_floating_point()]


def portions(images: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Images in batches that are as equal as can be; none if there are none."""
    return images.tensor_split(math.ceil(len(images) / batch_size)) if len(images) else ()
