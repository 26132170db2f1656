"""Criteria that look at the BatchNorm behind a layer."""

from torch import Tensor

from criteria.registry import register
from criteria.views import GroupStats


@register("bn_scale", family="batchnorm", needs={"batchnorm"}, reference="Liu et al., ICCV 2017, arXiv:1708.06519")
def bn_scale(stats: GroupStats) -> Tensor:
    r"""Size of the BatchNorm scale, :math:`|\gamma|`.

    Args:
        stats: ``gamma`` of shape (channels,).

    Returns:
        Scores of shape (channels,), in the unit of the layer's output; higher means keep.

    Caution:
        Made for networks trained with an L1 penalty on the scales; without it they hardly tell filters apart. Blind to
        what the next layer does with the channel.
    """
    return stats.gamma.abs()
