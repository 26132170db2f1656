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


@register("lamp", family="magnitude", needs={"weight"}, reference="Lee et al., ICLR 2021, arXiv:2010.07611")
def lamp(stats: GroupStats) -> Tensor:
    r"""Share in the energy of the filters that are no smaller, :math:`\|W_i\|^2 / \sum_{j \ge i} \|W_j\|^2`.

    The sum is over j with :math:`\|W_j\| \ge \|W_i\|`. Within a layer it orders as `l2` does; it makes layers
    comparable in a global ranking. Equal filters score alike.

    Args:
        stats: ``weight`` of shape (channels, fan_in).

    Returns:
        Scores of shape (channels,), in (0, 1], the largest filter's 1; higher means keep.

    Caution:
        Inside a group the order of `l2`; made for single weights, where it compares layers of one kind.
    """
    energy = stats.weight.double().square().sum(1)
    at_least = energy[None, :] >= energy[:, None]
    return energy / (at_least * energy).sum(1)
