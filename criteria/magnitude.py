"""Criteria that look at the size of a filter's weights."""

from torch import Tensor

from criteria.registry import register
from criteria.views import GroupStats


@register("l1", family="magnitude", needs={"weight"}, reference="Li et al., ICLR 2017, arXiv:1608.08710")
def l1(stats: GroupStats) -> Tensor:
    r"""L1 norm of each filter, :math:`\sum_w |w|`.

    Args:
        stats: ``weight`` of shape (channels, fan_in).

    Returns:
        Scores of shape (channels,), in the unit of the weight; higher means keep.

    Caution:
        Sizes say nothing across layers: rank globally by a blend or a gradient criterion instead. A BatchNorm behind
        the layer undoes any scale of the filter.
    """
    return stats.weight.abs().sum(1)


@register("l2", family="magnitude", needs={"weight"}, reference="He et al. (SFP), IJCAI 2018, arXiv:1808.06866")
def l2(stats: GroupStats) -> Tensor:
    r"""L2 norm of each filter, :math:`\sqrt{\sum_w w^2}`.

    Args:
        stats: ``weight`` of shape (channels, fan_in).

    Returns:
        Scores of shape (channels,), in the unit of the weight; higher means keep.

    Caution:
        As for `l1`; one large weight outweighs many small ones.
    """
    return stats.weight.square().sum(1).sqrt()
