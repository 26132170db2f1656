"""Criteria that look at where a filter lies among the others of its layer."""

import torch
from torch import Tensor

from criteria.claims import DEFAULT_CLAIMS
from criteria.registry import register
from criteria.views import GroupStats


@register(
    "fpgm",
    family="geometry",
    needs={"weight"},
    reference="He et al., CVPR 2019, arXiv:1811.00250",
    claims=DEFAULT_CLAIMS - {"dead-last"} | {"duplicate-lower"},
)
def fpgm(stats: GroupStats) -> Tensor:
    r"""Summed distance to all filters of the layer, :math:`\sum_j \|W_i - W_j\|_2`: low near their geometric median.

    Args:
        stats: ``weight`` of shape (channels, fan_in).

    Returns:
        Scores of shape (channels,), in the unit of the weight; higher means keep.

    Caution:
        Says that a filter is like the others, not that it is weak: a dead filter is not sure to go first. Grows with
        the square of the number of channels.
    """
    weight = stats.weight.double()  # distances come out of a matrix product, whose cancellation float32 would feel
    return torch.cdist(weight, weight).sum(1)
