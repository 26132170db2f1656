"""Criteria that look at what the next layer gets to read of a channel."""

from typing import Annotated

import torch
from torch import Tensor

from criteria.claims import DEFAULT_CLAIMS
from criteria.errors import CriterionValueError
from criteria.registry import register
from criteria.scores import RESOLUTION
from criteria.specification import at_least
from criteria.views import GroupStats

_HELD = 2**22
"""Numbers in the Gram matrices that are held at a time."""


@register(
    "mean_activation",
    family="activation",
    needs={"activation"},
    reference="Molchanov et al., ICLR 2017, arXiv:1611.06440",
    claims=DEFAULT_CLAIMS - {"dead-last"},  # signed without a ReLU, and then less than nothing
)
def mean_activation(stats: GroupStats) -> Tensor:
    """Mean activation over images and positions.

    Args:
        stats: ``activation_mean`` of shape (channels,).

    Returns:
        Scores of shape (channels,), in the unit of the activation; higher means keep.

    Caution:
        Takes a constant output for an important one. Means little without a ReLU, where signs cancel.
    """
    return stats.activation_mean


@register(
    "apoz",
    family="activation",
    needs={"activation"},
    reference="Hu et al., 2016, arXiv:1607.03250",
    claims=DEFAULT_CLAIMS - {"distinct"},
)
def apoz(stats: GroupStats) -> Tensor:
    """Share of activations that are not zero: 1 minus the average percentage of zeros.

    Args:
        stats: ``activation_nonzero`` of shape (channels,).

    Returns:
        Scores of shape (channels,), between 0 and 1; higher means keep.

    Caution:
        Ties wherever activations are never zero: no ReLU, or a SiLU or GELU.
    """
    return stats.activation_nonzero


@register(
    "hrank",
    family="activation",
    needs={"maps"},
    reference="Lin et al., CVPR 2020, arXiv:2002.10179",
    claims=DEFAULT_CLAIMS - {"distinct"},
)
def hrank(stats: GroupStats) -> Tensor:
    """Mean matrix rank of a channel's maps.

    Args:
        stats: ``maps`` of shape (images, channels, H, W).

    Returns:
        Scores of shape (channels,), between 0 and min(H, W); higher means keep.

    Caution:
        Maps of a few pixels all have full rank: of no use in the last layers of a network. The dearest of its family.
        Looks at 32 images; at fewer where their maps would take more than a GiB.
    """
    ranks: Tensor = torch.linalg.matrix_rank(stats.maps)
    return ranks.to(stats.maps.dtype).mean(0)


@register(
    "entropy",
    family="activation",
    needs={"image_means"},
    reference="Luo and Wu, 2017, arXiv:1706.05791",
    claims=DEFAULT_CLAIMS - {"distinct"},  # of a count of images in bins
)
def entropy(stats: GroupStats, *, bins: Annotated[int, at_least(2)] = 20) -> Tensor:
    r"""Entropy of a channel's spatial means over images, :math:`-\sum_b p_b \ln p_b`.

    p is their histogram of equal bins between the channel's own least and largest mean, the upper edge included. The
    means are held for all images up to a bound, so that the range needs no guess; a channel that never changes has 0,
    as has one that changes by rounding alone (the means behind an InstanceNorm).

    Args:
        stats: ``image_means`` of shape (channels, images).
        bins: number of bins.

    Returns:
        Scores of shape (channels,), between 0 and ln(bins); higher means keep.

    Raises:
        CriterionValueError: fewer than 2 bins.

    Caution:
        Few images fill few bins, so that many channels tie; says how much a channel varies, not what for.
    """
    if bins < 2:
        raise CriterionValueError(f"bins must be at least 2, got {bins}")
    means = stats.image_means.double()
    low, high = means.amin(1, keepdim=True), means.amax(1, keepdim=True)
    constant = high - low <= RESOLUTION * torch.maximum(high.abs(), low.abs())
    place = ((means - low) / torch.where(constant, torch.inf, high - low) * bins).long().clamp(max=bins - 1)
    first = bins * torch.arange(len(means), device=means.device)[:, None]  # of each channel's bins, all in a row
    counts = torch.bincount((first + place).flatten(), minlength=bins * len(means)).view(-1, bins)
    entropies: Tensor = torch.special.entr(counts.double() / means.shape[1]).sum(1)
    return entropies


@register("chip", family="activation", needs={"maps"}, reference="Sui et al., NeurIPS 2021, arXiv:2110.13981")
def chip(stats: GroupStats) -> Tensor:
    r"""Loss of nuclear norm without a channel, :math:`\|A\|_* - \|A_{-i}\|_*`, averaged over images.

    A are an image's maps as rows of a matrix, :math:`A_{-i}` the same with row i zero. Singular values are had from
    the smaller Gram matrix in float64, which resolves them to 1e-8 of the largest.

    Args:
        stats: ``maps`` of shape (images, channels, H, W).

    Returns:
        Scores of shape (channels,), in the unit of the activation; higher means keep.

    Caution:
        Channels are compared by few maps; a channel without any variation is told from noise by its maps alone.
    """
    return torch.stack([_norm_losses(image) for image in stats.maps.flatten(2).double()]).mean(0)


def _norm_losses(maps: Tensor) -> Tensor:
    """For each row, the loss of nuclear norm without it, of as many rows at a time as there is room for."""
    gram = maps @ maps.T if len(maps) <= maps.shape[1] else maps.T @ maps
    without = _without_each if len(maps) <= maps.shape[1] else _outside_each
    many = max(1, _HELD // gram.numel())
    portions = [slice(first, first + many) for first in range(0, len(maps), many)]
    return _nuclear_norm(gram) - torch.cat([_nuclear_norm(without(gram, maps, portion)) for portion in portions])


def _without_each(gram: Tensor, maps: Tensor, portion: slice) -> Tensor:
    """For each row of the portion, the Gram matrix of the rows with this one zero."""
    kept = 1 - torch.eye(len(maps), dtype=maps.dtype, device=maps.device)[portion]
    return gram * kept[:, :, None] * kept[:, None, :]


def _outside_each(gram: Tensor, maps: Tensor, portion: slice) -> Tensor:
    """For each row of it the Gram matrix of the columns without this row, the smaller one where there are more rows."""
    rows = maps[portion]
    return gram - rows[:, :, None] * rows[:, None, :]


def _nuclear_norm(gram: Tensor) -> Tensor:
    """Sum of the singular values of matrices whose Gram matrices these are."""
    squares: Tensor = torch.linalg.eigvalsh(gram)
    return squares.clamp(min=0).sqrt().sum(-1)


@register(
    "discriminant",
    family="label-aware",
    needs={"classes"},
    reference="Liu et al., 2022 (evolved pruning functions); Fisher's ratio",
)
def discriminant(stats: GroupStats, *, damping: Annotated[float, at_least(0)] = 0.05) -> Tensor:
    r"""Between-class over within-class variance of a channel's spatial means, :math:`\sigma_b^2 / (\sigma_w^2 + 0.05)`.

    Classes count by their number of images.

    Args:
        stats: ``between_class_variance`` and ``within_class_variance`` of shape (channels,).
        damping: added to the denominator, in the unit of the activation squared.

    Returns:
        Scores of shape (channels,), without a unit if the damping has that of the variance; higher means keep.

    Caution:
        Needs classes; a channel that serves later layers without telling classes apart looks superfluous.
    """
    return stats.between_class_variance / (stats.within_class_variance + damping)
