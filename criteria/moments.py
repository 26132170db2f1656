"""Second moments of what consumers read of a group's channels, streamed over calibration data."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from criteria.errors import CriterionError
from criteria.graph import ChannelGroup, Member
from criteria.layers import has_own_forward
from criteria.passes import Network, reading_groups
from criteria.streaming import hooks, rows, widened

MEMORY = 2**28
"""Bytes of moments gathered in one pass; groups that need more than is left wait for the next."""

WIDEST = 2**13
"""Inputs of one consumer at most: their moments are a square of this width in double precision, half a gigabyte."""

_CHUNK = 2**24
"""Unfolded numbers held at a time."""


@dataclass(frozen=True, eq=False)
class ConsumerMoments:
    """A consumer's share of a group: y = filters @ x, where each channel owns b consecutive elements of x.

    Attributes:
        channels: (C,), the group's channels that the layer reads, ascending.
        mean: (C·b,), mean of x.
        covariance: (C·b, C·b), covariance of x.
        filters: (outputs, C·b), the layer's weights. By channel (b = 1) every tap of the kernel makes outputs of its
            own.
    """

    channels: NDArray[np.int64]
    mean: Tensor
    covariance: Tensor
    filters: Tensor

    @property
    def block(self) -> int:
        """Elements of x a channel owns, b."""
        return len(self.mean) // len(self.channels)

    @property
    def second_moment(self) -> Tensor:
        """(C·b, C·b), mean of x xᵀ."""
        return self.covariance + torch.outer(self.mean, self.mean)


def consumer_moments(network: Network, patches: bool) -> Iterator[tuple[ChannelGroup, list[ConsumerMoments]]]:
    """The moments of each group's consumers, in as few passes over the batches as memory allows.

    By channel, x is the vector of the channels' values at one position, and moments are over images and positions:
    what the taps of a kernel see is taken for independent and alike. Features that a flattening made of one channel
    count as positions. By patch, x is all that an output position reads, padding included: exact for any kernel, and
    squared in the kernel's size. Transposed convolutions are always taken by channel. 1×1 convolutions and linear
    layers without a flattening are the same either way.

    Args:
        network: the network and its batches; depthwise consumers are left out, see `reading_groups`.
        patches: whether to unfold.

    Raises:
        CriterionError: patches of a layer are too large.
    """
    portions = list(_portions(network, patches))
    steps = len(portions) * len(network.batches)
    for number, portion in enumerate(portions):
        gathered = [watch for _, watches in portion for watch in watches]
        with hooks(watch.hooked() for watch in gathered), torch.no_grad():
            for done, (inputs, _) in enumerate(network.batches, 1):
                network.outputs(inputs)
                network.on_step(number * len(network.batches) + done, steps)
        for group, watches in portion:
            yield group, [watch.result() for watch in watches]


_Portion = list[tuple[ChannelGroup, list["Watch"]]]


def _portions(network: Network, patches: bool) -> Iterator[_Portion]:
    """Groups whose moments fit into memory together."""
    portion: _Portion = []
    used = 0
    for group, members in reading_groups(network.graph, network.model):
        watches = [Watch(network.model, member, patches) for member in members]
        size = sum(8 * watch.width**2 for watch in watches)
        if portion and used + size > MEMORY:
            yield portion
            portion, used = [], 0
        portion.append((group, watches))
        used += size
    if portion:
        yield portion


class Watch:
    """Sums up what a layer reads of some channels.

    Args:
        model: the network.
        member: the layer, and which channel each position of its input belongs to.
        patches: whether to unfold.

    Attributes:
        channels: (C,), the channels that it reads, ascending.
        positions: (C, P), the positions of the layer's input that each of them owns.
        width: elements of x.

    Raises:
        CriterionError: x is too wide.
    """

    def __init__(self, model: nn.Module, member: Member, patches: bool) -> None:
        layer: Any = model.get_submodule(member.layer)
        self.layer = layer
        self.channels, self.positions = rows(member)
        self.linear = isinstance(layer, nn.Linear)
        self.patches = patches and not getattr(layer, "transposed", False) and not has_own_forward(layer)
        taps = 1 if self.linear else math.prod(layer.kernel_size)
        self.width = len(self.channels) * (self.positions.shape[1] * taps if self.patches else 1)
        if self.width > WIDEST:
            rule = f"the inputs of {member.layer!r} must be at most {WIDEST} for their moments, got {self.width}"
            raise CriterionError(f"{rule}; take them by channel (patches=false) or leave the layer alone (ignore=)")
        self.count = 0
        self.shift: Tensor | None = None
        self.first: Any = 0
        self.second: Any = 0

    def hooked(self) -> Any:
        """Put the hook on."""
        return self.layer.register_forward_pre_hook(self._read, with_kwargs=True)

    def _read(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        read: Tensor = (args[0] if args else kwargs["input"]).detach()
        read = read.reshape(-1, read.shape[-1]) if self.linear else read
        of_one = read[:1].numel() * self.width // len(self.channels)
        for part in torch.split(read, max(1, _CHUNK // max(1, of_one))):
            self._add(widened(self._samples(part)))

    def _samples(self, read: Tensor) -> Tensor:
        """Observations of x, of shape (n, C·b)."""
        owned = self.positions.to(read.device)
        if self.patches and not self.linear:
            of_channel = unfolded(read[:, owned.flatten()], self.layer)  # (n, C·P, taps, *positions)
            return of_channel.flatten(1, 2).movedim(1, -1).reshape(-1, self.width)
        if self.patches:
            return read[:, owned.flatten()]
        return read[:, owned].movedim(1, -1).reshape(-1, self.width)

    def _add(self, samples: Tensor) -> None:
        if self.shift is None:  # products of centred values keep their digits in float32
            self.shift = samples.mean(0)
        samples = samples - self.shift
        self.count += len(samples)
        self.first = self.first + samples.sum(0, dtype=torch.float64)
        self.second = self.second + (samples.T @ samples).double()

    def result(self) -> ConsumerMoments:
        """Moments of all that was read."""
        return ConsumerMoments(self.channels, *self.moments(), self._filters())

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (C·b,) and covariance (C·b, C·b) of all that was read.

        Raises:
            CriterionError: The layer did not run.
        """
        if self.shift is None:
            raise CriterionError(f"the layer {self.layer} must run in a forward pass to have moments, it did not")
        first, second = (self.first / self.count).cpu(), (self.second / self.count).cpu()
        return first + self.shift.double().cpu(), second - torch.outer(first, first)

    def _filters(self) -> Tensor:
        owned = reading_filters(self.layer).double().cpu()[:, self.positions]  # (outputs, C, P, taps)
        return owned.flatten(1) if self.patches else owned.movedim(1, -1).flatten(0, -2)


def reading_filters(layer: Any) -> Tensor:
    """A layer's weight as (outputs, inputs, taps), with zeros where a grouped convolution doesn't look."""
    if isinstance(layer, nn.Linear):
        return widened(layer.weight.detach()).unsqueeze(2)
    blocks: Sequence[Tensor] = widened(layer.weight.detach()).flatten(2).chunk(layer.groups)
    blocks = [block.transpose(0, 1) for block in blocks] if layer.transposed else blocks
    outputs, inputs, taps = blocks[0].shape
    whole = blocks[0].new_zeros(outputs * layer.groups, inputs * layer.groups, taps)
    for number, block in enumerate(blocks):
        whole[number * outputs : (number + 1) * outputs, number * inputs : (number + 1) * inputs] = block
    return whole


def unfolded(read: Tensor, layer: Any) -> Tensor:
    """What each output position of a convolution of any dimension reads.

    Args:
        read: (n, channels, *sizes).
        layer: the convolution, not transposed.

    Returns:
        Shape (n, channels, taps, *output sizes), taps in the weight's order.
    """
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    read = F.pad(read, layer._reversed_padding_repeated_twice, mode=mode)
    dims = len(layer.kernel_size)
    for dim in range(dims):
        reach = layer.dilation[dim] * (layer.kernel_size[dim] - 1) + 1
        read = read.unfold(2 + dim, reach, layer.stride[dim])[..., :: layer.dilation[dim]]
    return read.flatten(2 + dims).movedim(-1, 2)
