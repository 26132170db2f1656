"""BatchNorms that a pruned network is run with: re-estimated on all images as if they were one batch, and folded away.

Exact statistics of a layer need all images to have come that far. So images go through the network in batches, each in
a greenlet of its own, which halts at every BatchNorm until the others have arrived.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blend.pruning.halting import HaltingPass, halt, halting_passes, may_halt

_FEW_CHANNELS, _PLACES = 64, 16


@torch.no_grad()
def recalibrate_together(
    network: Callable[[Tensor], object], batches: Sequence[Tensor], norms: Collection[Norm]
) -> None:
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
    for norm in norms:
        norm.visits = []  # an error may have left some
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
    normalise = norm.visited([statistics for _, statistics in halts])
    return [run.go_on(normalise) for run in runs]


Statistics = tuple[Tensor, Tensor, int]
"""Mean and variance (biased) of each channel, and the number of values that they are of."""


class Norm(nn.Module):
    """A BatchNorm in a network that is only run: it halts in a greenlet, and can be folded away.

    Args:
        norm: The BatchNorm, whose tensors stay its own.

    Attributes:
        alone: Whether nothing else reads its input, which it may overwrite then.
        folded: Whether the layer before does its work.
        finite: Whether the tensors of that layer are finite, if it does.
        visits: Statistics of the passes of a recalibration that goes on.
        largest: Bytes of the largest input that was halted with, all greenlets together.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm: Any = norm
        self.alone = self.folded = self.finite = False
        self.visits: list[Statistics] = []
        self.largest = 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalises by the running statistics, in a greenlet by those of all greenlets; folded, nothing is left."""
        if self.folded:
            return inputs
        if not may_halt():
            outputs: Tensor = self.norm(inputs)
            return outputs
        normalise: Normalise = halt((self, batch_statistics(inputs)))
        self.largest = max(self.largest, normalise.count * inputs.shape[1] * inputs.element_size())
        return normalise.in_place(inputs) if self.alone and inputs.is_cpu else normalise(inputs)

    def visited(self, parts: Sequence[Statistics]) -> Normalise:
        """Takes the statistics of all greenlets' inputs; returns how these are to be normalised."""
        self.visits.append(pooled(parts))
        mean, variance, count = self.visits[-1]
        weight, bias = (None if p is None else p.to(mean.dtype) for p in (self.norm.weight, self.norm.bias))
        return Normalise(weight, bias, mean, variance, count, self.norm.eps)

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
        self.finite = all(bool(tensor.isfinite().all()) for tensor in (layer.weight, layer.bias))


Halt = tuple[Norm, Statistics]


@dataclass(frozen=True)
class Normalise:
    """What BatchNorm does to inputs in training mode, their statistics given.

    Attributes:
        weight: Of each channel, as all others.
        bias: Of each channel.
        mean: Of all inputs.
        variance: Of all inputs, biased.
        count: Number of values that these are of.
        eps: Added to the variance.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    variance: Tensor
    count: int
    eps: float
    _repeated: dict[int, list[Tensor | None]] = field(default_factory=dict)

    def __call__(self, inputs: Tensor) -> Tensor:
        """The normalised inputs."""
        return F.batch_norm(inputs, self.mean, self.variance, self.weight, self.bias, eps=self.eps)

    def in_place(self, inputs: Tensor) -> Tensor:
        """The same inputs, normalised; on a CPU."""
        seen, places = _widened(inputs)
        if places not in self._repeated:
            tensors = (self.weight, self.bias, self.mean, self.variance)
            self._repeated[places] = [None if tensor is None else tensor.repeat(places) for tensor in tensors]
        unused = (self.mean.new_empty(0), self.mean.new_empty(0))
        torch.ops.aten.native_batch_norm.out(
            seen, *self._repeated[places], False, 0.0, self.eps, out=seen, save_mean=unused[0], save_invstd=unused[1]
        )
        return inputs


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
