"""Criteria that look at where a filter lies among the others of its layer."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from criteria.claims import DEFAULT_CLAIMS
from criteria.registry import register
from criteria.specification import at_least
from criteria.views import GroupStats

_ROUNDING = 1e-12
"""Of a cosine or a squared distance in shares of the norms, with much to spare.

How a processor adds up decides where it falls among equal filters, which it would rank.
"""


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
    norms = weight.norm(dim=1)
    distances = torch.cdist(weight, weight)
    equal = distances < _ROUNDING**0.5 * torch.maximum(norms[:, None], norms)
    return distances.masked_fill(equal, 0).sum(1)


@register(
    "fermat",
    family="geometry",
    needs={"weight"},
    reference="Huang et al., 2021, arXiv:2004.11627",
    claims=DEFAULT_CLAIMS - {"dead-last"},  # the point need not be at 0, and moves with what the duplicate replaces
)
def fermat(stats: GroupStats, *, iterations: Annotated[int, at_least(1)] = 1000) -> Tensor:
    r"""Distance to the layer's Fermat point, :math:`\|W_i - W^*\|_2,\ W^* = \arg\min_x \sum_j \|W_j - x\|_2`.

    Args:
        stats: ``weight`` of shape (channels, fan_in).
        iterations: of Weiszfeld's method at most; it ends when a step no longer shortens the sum.

    Returns:
        Scores of shape (channels,), in the unit of the weight; higher means keep.

    Caution:
        As for `fpgm`, with which it nearly always agrees: a filter far from the others need not matter.
    """
    weight = stats.weight.double()
    return (weight - fermat_point(weight, iterations)).square().sum(1).sqrt()


@register(
    "cosine",
    family="geometry",
    needs={"weight"},
    reference="Ghimire et al., 2023, arXiv:2506.20152",
    claims=DEFAULT_CLAIMS - {"dead-last"} | {"duplicate-lower"},  # directions only: nothing has no direction
)
def cosine(stats: GroupStats) -> Tensor:
    r"""Summed cosine distance to the other filters, :math:`\sum_{j \ne i} (1 - \cos(W_i, W_j))`.

    The cosine with a filter of zeros is taken as 0, so that an empty filter is no criterion's last here: it is unlike
    all others.

    Args:
        stats: ``weight`` of shape (channels, fan_in).

    Returns:
        Scores of shape (channels,), between 0 and 2 (channels - 1); higher means keep.

    Caution:
        Ignores how large a filter is: one that is zero has no direction and looks as unlike the others as can be.
    """
    return (1 - _cosines(stats.weight)).fill_diagonal_(0).sum(1)


@register(
    "whc",
    family="geometry",
    needs={"weight"},
    reference="Chen et al., 2023, arXiv:2302.08185",
    claims=DEFAULT_CLAIMS | {"duplicate-lower"},
)
def whc(stats: GroupStats) -> Tensor:
    r"""Norm times norm-weighted dissimilarity, :math:`\|W_i\| \sum_j \|W_j\| (1 - |\cos(W_i, W_j)|)`.

    Args:
        stats: ``weight`` of shape (channels, fan_in).

    Returns:
        Scores of shape (channels,), in the unit of the weight squared; higher means keep.

    Caution:
        As for the norms: the size of a filter before BatchNorm says little, and nothing across layers.
    """
    norms = stats.weight.double().square().sum(1).sqrt()
    return norms * ((1 - _cosines(stats.weight).abs()).fill_diagonal_(0) @ norms)


def _cosines(weight: Tensor) -> Tensor:
    """Cosines between all filters, float64; 0 with a filter of zeros, 1 or -1 where only rounding says otherwise."""
    directions = F.normalize(weight.double(), dim=1, eps=1e-300)
    cosines = directions @ directions.T
    parallel = cosines.abs() > 1 - _ROUNDING
    return torch.where(parallel, cosines.sign(), cosines)


def fermat_point(points: Tensor, iterations: int) -> Tensor:
    """The point with the least summed distance to all points, by Weiszfeld's method.

    Where that is one of the points, Weiszfeld's weights are infinite. Hence the best of the points is tried first: it
    is the solution if the others do not pull it away by more than its own multiplicity (Kuhn, 1973). Otherwise a step
    off it, along the pull (Vardi and Zhang, 2000), makes the sum less than at any of the points; the method only ever
    lessens it, and so never meets one again. Points on a line are solved by their median: of an even number, all places
    between the middle two are solutions, and the one halfway is taken, for it does not depend on the points' order.

    Args:
        points: shape (points, dimensions), float64.
        iterations: at most.
    """
    if (halfway := _median_on_a_line(points)) is not None:
        return halfway
    place = points[torch.cdist(points, points).sum(1).argmin()]
    length = points.new_tensor(torch.inf)
    for _ in range(iterations):
        distances = (points - place).norm(dim=1)
        if distances.sum() >= length:
            break
        length = distances.sum()
        inverse = torch.where(distances > 0, 1 / distances, 0)
        if not inverse.any():
            break
        pull, here = inverse @ (points - place), (distances == 0).sum()
        step = (1 - here / pull.norm()).clamp(min=0) if here else 1
        place = place + step * pull / inverse.sum()
    return place


def _median_on_a_line(points: Tensor) -> Tensor | None:
    """The median of points on one line, halfway between the middle two of an even number; None if they are on none."""
    offsets = points - points[0]
    farthest = offsets[offsets.norm(dim=1).argmax()]
    places = offsets @ farthest / farthest.square().sum().clamp(min=torch.finfo(points.dtype).tiny)
    if (offsets - torch.outer(places, farthest)).abs().max() > 1e-12 * points.abs().max():
        return None
    middle = places.argsort()[(len(points) - 1) // 2 : len(points) // 2 + 1]
    return points[middle].mean(0)
