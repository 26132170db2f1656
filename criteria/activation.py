"""Criteria that look at what the next layer gets to read of a channel."""

import torch
from torch import Tensor

from criteria.claims import DEFAULT_CLAIMS
from criteria.registry import register
from criteria.views import GroupStats


@register(
    "mean_activation",
    family="activation",
    needs={"activation"},
    reference="Molchanov et al., ICLR 2017, arXiv:1611.06440",
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
    """
    ranks: Tensor = torch.linalg.matrix_rank(stats.maps)
    return ranks.to(stats.maps.dtype).mean(0)
