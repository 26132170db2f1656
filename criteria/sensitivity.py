"""Criteria made for networks at initialisation: how much the loss, its gradient or the flow hangs on a filter."""

from torch import Tensor

from criteria.registry import register
from criteria.views import GroupStats


@register(
    "snip",
    family="sensitivity",
    needs={"weight", "weight_gradient_magnitude"},
    reference="Lee et al., ICLR 2019, arXiv:1810.02340; RANP (Xu et al., 2020)",
)
def snip(stats: GroupStats) -> Tensor:
    r"""Connection sensitivity summed over weights, :math:`\sum_w |w\,g_w|`, the absolute value taken per batch.

    Args:
        stats: ``weight`` and ``weight_gradient_magnitude`` of shape (channels, fan_in).

    Returns:
        Scores of shape (channels,), in the unit of the loss; higher means keep.

    Caution:
        Made for networks before training: near a minimum of the loss its gradients are mostly noise.
    """
    return (stats.weight.abs() * stats.weight_gradient_magnitude).sum(1)


@register(
    "grasp",
    family="sensitivity",
    needs={"weight", "hessian_gradient"},
    reference="Wang et al., ICLR 2020, arXiv:2002.07376",
)
def grasp(stats: GroupStats, *, flipped: bool = False) -> Tensor:
    r"""Change of the gradient's squared norm without the weights, :math:`-\sum_w w\,(Hg)_w`, sign kept.

    To first order, it is half of the change. The product Hg is that of each batch, with respect to all filters, then
    averaged. Its authors remove what scores *highest*, since that raises the gradient's norm: ``flipped`` gives the
    negative, which keeps what they keep.

    Args:
        stats: ``weight`` and ``hessian_gradient`` of shape (channels, fan_in).
        flipped: whether to change the sign.

    Returns:
        Scores of shape (channels,), in the unit of the squared gradient; higher means keep.

    Caution:
        Made for networks before training; its sign is kept, so that helpful and harmful channels are far apart.
    """
    change = -(stats.weight * stats.hessian_gradient).sum(1)
    return -change if flipped else change


@register(
    "synflow",
    family="sensitivity",
    needs={"weight", "flow_gradient"},
    reference="Tanaka et al., NeurIPS 2020, arXiv:2006.05467",
)
def synflow(stats: GroupStats) -> Tensor:
    r"""Synaptic flow through a filter, :math:`\sum_w |w\,\partial R/\partial w|,\ R = 1^T \prod_l |W_l| 1`; no data.

    R is the output for one example of ones, without biases, every normalisation layer and every function that saturates
    passing on what it gets; where it is a gate that other flow is multiplied by, over its largest value.

    Args:
        stats: ``weight`` and ``flow_gradient`` of shape (channels, fan_in).

    Returns:
        Scores of shape (channels,), in the unit of R; higher means keep.

    Caution:
        Knows neither data nor BatchNorm; made for networks before training, against layers that collapse.
    """
    return (stats.weight.double() * stats.flow_gradient).abs().sum(1)
