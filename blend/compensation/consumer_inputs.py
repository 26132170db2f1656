"""What consumers read: which inputs belong to which channels, how weights become filters of them, statistics."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from blend.compensation.live_memory import live_bytes
from blend.errors import InputError
from criteria.graph import Axis, ChannelGraph, Indices, Keep, Member
from criteria.layers import has_own_forward, is_transposed, width
from criteria.moments import WIDEST, Watch
from criteria.streaming import hooks, rows

Grade = Literal["none", "channel", "patch", "sequential"]
USUAL = 256
"""Images that statistics are of where BatchNorm is not recalibrated on any."""
LARGEST = 2**31
"""Bytes of statistics at most, which every machine that judges candidates has to hold."""
HELD = 2**31
"""Bytes of activations that sequential compensation holds at once, if `LEAST_IMAGES` do not take more."""
LEAST_IMAGES = 32
"""Images that it takes anyway."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What the channels are to a consumer, or to one conv group of it; and their statistics, once they are known.

    Each of C channels owns P of the elements that a filter holds: the taps of a kernel, or the places of a map in front
    of a linear layer. By channel, one variable stands for them all and every place has a filter of its own; else there
    are C·P variables.

    Attributes:
        layer: Dotted name of the consumer.
        block: Which of its conv groups.
        by_channel: Whether places share their statistics.
        positions: (C, P), where the elements lie in a filter.
        owner: (C,), the channel of the graph that each one is, or -1 where it stays.
        source: (input positions,), which of the C each position of the layer's input is, or -1.
        mean: (C,) or (C·P,).
        covariance: The same squared.
    """

    layer: str
    block: int
    by_channel: bool
    positions: Indices
    owner: Indices
    source: Indices
    mean: Tensor | None = None
    covariance: Tensor | None = None

    @property
    def variables(self) -> int:
        """Length of the mean."""
        return len(self.positions) if self.by_channel else self.positions.size

    def filters(self, block: Tensor) -> Tensor:
        """A block of weights (outputs, inputs, taps) as (filters, variables)."""
        owned = block.flatten(1)[:, torch.from_numpy(self.positions)]
        return owned.movedim(1, -1).flatten(0, 1) if self.by_channel else owned.flatten(1)

    def weights(self, filters: Tensor, block: Tensor) -> Tensor:
        """Filters back as a block of weights, in the shape of another."""
        channels, places = self.positions.shape
        owned = filters.view(len(block), places, channels).movedim(-1, 1) if self.by_channel else filters
        whole = torch.empty_like(block.flatten(1), dtype=filters.dtype)
        whole[:, torch.from_numpy(self.positions.ravel())] = owned.reshape(len(block), -1)
        return whole.view(block.shape)

    def kept(self, keep: Keep) -> NDArray[np.bool_]:
        """(variables,), which of them stay."""
        channels = np.append(keep, True)[self.owner]  # owner -1 reads the last one
        return channels if self.by_channel else np.repeat(channels, self.positions.shape[1])


def readings(model: nn.Module, graph: ChannelGraph, grade: Grade) -> tuple[list[Reading], list[str]]:
    """Every consumer's channels, and what cannot be done as the grade wants it, in words.

    Depthwise convolutions have nothing to correct: each of their filters goes or stays with the one channel it reads.
    Transposed convolutions, and classes with a forward of their own, are always taken by channel. Layers with more than
    `criteria.moments.WIDEST` variables are left as they are.
    """
    found: list[Reading] = []
    notes: list[str] = []
    for axis in (axis for axis in graph.axes if axis.consumes):
        name = axis.tensor.rpartition(".")[0]
        layer: Any = model.get_submodule(name)
        if is_transposed(layer) and grade != "channel":
            notes.append(f"'{name}' is compensated by channel: transposed convolutions have no patches")
        elif has_own_forward(layer) and grade != "channel":
            notes.append(f"'{name}' is compensated by channel: what its own forward makes patches of is not known")
        by_channel = grade == "channel" or is_transposed(layer) or has_own_forward(layer)
        mine = [one for one in _of_layer(graph, axis, name, layer, by_channel) if (one.owner >= 0).any()]
        if widest := max((one.variables for one in mine if one.variables > WIDEST), default=0):
            notes.append(f"'{name}' is not compensated: it reads {widest} variables, more than {WIDEST}")
        else:
            found += mine
    sizes = [8 * one.variables**2 for one in found]
    if (size := max(sizes, default=0) if grade == "sequential" else sum(sizes)) > LARGEST:  # it takes layer by layer
        raise InputError(
            f"compensate must be 'channel' for this network, got '{grade}', whose statistics take "
            f"{size / 2**30:.1f} GiB (at most {LARGEST / 2**30:g})"
        )
    return found, notes


def _of_layer(graph: ChannelGraph, axis: Axis, name: str, layer: Any, by_channel: bool) -> Iterator[Reading]:
    if isinstance(layer, nn.Linear):
        source = _maps(graph, name) if by_channel else None
        source = np.arange(layer.in_features) if source is None else source
        positions = rows(Member(name, source))[1].numpy()
        yield Reading(name, 0, by_channel, positions, axis.owner[positions[:, 0]], source)
        return
    inputs, taps = width(layer, "in") // layer.groups, math.prod(layer.kernel_size)
    positions = np.arange(inputs * taps).reshape(inputs, taps)
    owners = axis.owner.reshape(-1, inputs)  # of a transposed convolution for each conv group, else the same for all
    for block in range(layer.groups):
        source = np.full(width(layer, "in"), -1)
        source[block * inputs : (block + 1) * inputs] = np.arange(inputs)
        yield Reading(name, block, by_channel, positions, owners[block % len(owners)], source)


def _maps(graph: ChannelGraph, layer: str) -> Indices | None:
    """Which channel each feature of a flattened map is of; None where a linear layer reads something else."""
    members = [member for group in graph.groups for member in group.consumers if member.layer == layer]
    return members[0].channels if len(members) == 1 and (members[0].channels >= 0).all() else None


def with_statistics(model: nn.Module, found: Sequence[Reading], batches: Iterable[Tensor]) -> list[Reading]:
    """The readings with the means and covariances of the inputs, over images and, by channel, positions.

    Args:
        model: The unpruned network; a copy of it runs.
        found: What to watch.
        batches: Inputs, unlabelled.

    Raises:
        InputError: What a layer reads is not finite.
    """
    copied = copy.deepcopy(model).eval()
    watches = [Watch(copied, Member(one.layer, one.source), not one.by_channel) for one in found]
    with hooks(watch.hooked() for watch in watches), torch.no_grad():
        for inputs in batches:
            copied(inputs.to(next(copied.parameters()).device))
    known = []
    for one, watch in zip(found, watches, strict=True):
        mean, covariance = watch.moments()
        if not covariance.isfinite().all():
            raise InputError(f"what '{one.layer}' reads must be finite for its statistics, got NaN or infinity")
        known.append(replace(one, mean=mean, covariance=covariance))
    return known


def blocks_of(layer: Any, weight: Tensor) -> list[Tensor]:
    """A weight as (outputs, inputs, taps), for each conv group."""
    if isinstance(layer, nn.Linear):
        return [weight.unsqueeze(2)]
    blocks = weight.flatten(2).chunk(layer.groups)
    return [block.transpose(0, 1) for block in blocks] if is_transposed(layer) else list(blocks)


def weight_of(layer: Any, blocks: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """Blocks back as the weight that they were of."""
    return torch.cat([block.transpose(0, 1) if is_transposed(layer) else block for block in blocks]).reshape(shape)


def compensation_images(calibration: Tensor, recalibration_images: int) -> Tensor:
    """The calibration inputs that statistics are of: those that BatchNorm is recalibrated on, or as many as usual."""
    return calibration[: recalibration_images or USUAL]


def held_images(model: nn.Module, images: Tensor) -> tuple[Tensor, list[str]]:
    """As many of the images as sequential compensation, which holds the activations of all of them, has memory for.

    Estimated on one of them: at every halt, each of the two networks holds no more than a pass does at its most.

    Args:
        model: The unpruned network; a copy of it runs.
        images: Those that were asked for.

    Returns:
        The first ones, and a note if some are left out.
    """
    each = 2 * live_bytes(model, images[:1])
    number = max(LEAST_IMAGES, HELD // max(1, each))
    if number >= len(images):
        return images, []
    return images[:number], [
        f"compensated from {number} of {len(images)} images: 'sequential' holds {each / 2**20:.3g} MiB of activations "
        f"for each at once, {len(images) * each / 2**30:.1f} GiB for all of them (at most {HELD / 2**30:g}, or "
        f"{LEAST_IMAGES} images)"
    ]


def statistics_only(known: Sequence[Reading]) -> list[tuple[Reading, NDArray[np.float64]]]:
    """Each reading without its statistics, and these as one array (1 + variables, variables), to be stored apart."""
    return [
        (replace(one, mean=None, covariance=None), torch.cat([one.mean[None], one.covariance]).numpy())
        for one in known
        if one.mean is not None and one.covariance is not None
    ]


def rejoined(parts: Iterable[tuple[Reading, Tensor]]) -> list[Reading]:
    """What :func:`statistics_only` took apart."""
    return [replace(one, mean=array[0], covariance=array[1:]) for one, array in parts]
