"""Criteria that look at the BatchNorm behind a layer."""

from torch import Tensor

from criteria.registry import register
from criteria.views import GroupStats


@register("bn_scale", family="batchnorm", needs={"batchnorm"}, reference="Liu et al., ICCV 2017, arXiv:1708.06519")
def bn_scale(stats: GroupStats) -> Tensor:
    r"""Size of the BatchNorm scale, :math:`|\gamma|`; of several scales their norm, :math:`\|\gamma\|_2`.

    A channel has several where it owns several positions of the layer's output, as behind a grouped convolution: they
    go together, and the norm is what a penalty on whole groups looks at.

    Args:
        stats: ``gamma`` of shape (channels, positions).

    Returns:
        Scores of shape (channels,), in the unit of the layer's output; higher means keep.

    Caution:
        Made for networks trained with an L1 penalty on the scales; without it they hardly tell filters apart. Blind to
        what the next layer does with the channel.
    """
    return stats.gamma.square().sum(1).sqrt()


@register(
    "bn_taylor",
    family="batchnorm",
    needs={"batchnorm", "gate_gradient"},
    reference="Molchanov et al., CVPR 2019, arXiv:1906.10771",
)
def bn_taylor(stats: GroupStats) -> Tensor:
    r"""Squared first-order loss change of a closed BatchNorm, :math:`(\gamma g_\gamma + \beta g_\beta)^2` per batch.

    It is squared per batch, then averaged. A gate z behind the BatchNorm multiplies both parameters, hence
    :math:`\gamma g_\gamma + \beta g_\beta = \partial L/\partial z`: where there is a BatchNorm this is `taylor_fo`.

    Args:
        stats: ``gate_gradient_squared`` of shape (channels,), and ``gamma`` and ``beta``, which have to be there.

    Returns:
        Scores of shape (channels,), in the unit of the loss squared; higher means keep.

    Caution:
        Small near a minimum of the loss, where gradients of batches cancel; needs BatchNorm behind the layer.
    """
    return stats.gate_gradient_squared
