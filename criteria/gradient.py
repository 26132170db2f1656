"""Criteria that estimate from derivatives how much the loss would change without a filter."""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from criteria.registry import register
from criteria.specification import at_least
from criteria.views import GroupStats

_MOLCHANOV = "Molchanov et al., CVPR 2019, arXiv:1906.10771"


@register(
    "taylor_l1",
    family="gradient",
    needs={"weight", "weight_gradient"},
    reference=f"Huang et al., 2021, arXiv:2004.11627; {_MOLCHANOV}",
)
def taylor_l1(stats: GroupStats) -> Tensor:
    r"""First-order loss change summed over weights, :math:`\sum_w |w\,g_w|`, g averaged over batches first.

    Args:
        stats: ``weight`` and ``weight_gradient`` of shape (channels, fan_in).

    Returns:
        Scores of shape (channels,), in the unit of the loss; higher means keep.

    Caution:
        Near a minimum averaged gradients cancel out, and noise is left: give it a thousand examples or more.
    """
    return (stats.weight * stats.weight_gradient).abs().sum(1)


@register("taylor_l2", family="gradient", needs={"weight", "weight_gradient"}, reference=_MOLCHANOV)
def taylor_l2(stats: GroupStats) -> Tensor:
    r"""Squared first-order loss change summed over weights, :math:`\sum_w (w\,g_w)^2`, g averaged over batches first.

    Args:
        stats: ``weight`` and ``weight_gradient`` of shape (channels, fan_in).

    Returns:
        Scores of shape (channels,), in the unit of the loss squared; higher means keep.

    Caution:
        As for `taylor_l1`; a few large terms decide.
    """
    return (stats.weight * stats.weight_gradient).square().sum(1)


@register("taylor_fo", family="gradient", needs={"gate_gradient"}, reference=_MOLCHANOV)
def taylor_fo(stats: GroupStats) -> Tensor:
    r"""Squared first-order loss change of a closed gate, :math:`(\partial L/\partial z)^2` per batch, then averaged.

    Args:
        stats: ``gate_gradient_squared`` of shape (channels,).

    Returns:
        Scores of shape (channels,), in the unit of the loss squared; higher means keep.

    Caution:
        Depends on the batch size, as it is squared per batch: compare runs of the same size only.
    """
    return stats.gate_gradient_squared


@register(
    "fisher",
    family="gradient",
    needs={"example_gate_gradient"},
    reference="Theis et al., 2018, arXiv:1801.05787",
)
def fisher(stats: GroupStats) -> Tensor:
    r"""Second-order loss change by Fisher's information, :math:`\frac12 \mathrm{mean}_n (\partial L_n/\partial z)^2`.

    Args:
        stats: ``example_gate_gradient_squared`` of shape (channels,).

    Returns:
        Scores of shape (channels,), in the unit of the loss squared; higher means keep.

    Caution:
        Needs a loss that is a mean over examples, and layers that keep them apart, with no frames or views folded into
        the batch. On a network that fits its data perfectly all gradients vanish.
    """
    return stats.example_gate_gradient_squared / 2


@register("taylor_so", family="gradient", needs={"gate_curvature"}, reference=_MOLCHANOV)
def taylor_so(stats: GroupStats, *, probes: Annotated[int, at_least(1)] = 8) -> Tensor:
    r"""Squared second-order loss change of a closed gate, :math:`(-L_z + \frac12 L_{zz})^2` per batch, then averaged.

    :math:`L_{zz}` is Hutchinson's estimate with its own signs for each example: one probe of a batch of N examples is
    worth N, and costs about two backward passes. Its variance v remains as a bias of v/4.

    Args:
        stats: ``gate_change_squared`` of shape (channels,).
        probes: number of probes a batch.

    Returns:
        Scores of shape (channels,), in the unit of the loss squared; higher means keep.

    Caution:
        The second derivative is an estimate by random signs, and costs many backward passes.
    """
    return stats.gate_change_squared


@register(
    "taylor_output",
    family="gradient",
    needs={"activation_gradient"},
    reference="Molchanov et al., ICLR 2017, arXiv:1611.06440",
)
def taylor_output(stats: GroupStats) -> Tensor:
    r"""First-order loss change of emptied maps, mean over images of :math:`|\mathrm{mean}\, a\, g_a|`, then normalised.

    The inner mean is over positions, the norm is over the layer's channels; g is the whole gradient of what the next
    layer reads, other readers included.

    Args:
        stats: ``activation_gradient_magnitude`` of shape (channels,).

    Returns:
        Scores of shape (channels,), of length 1 in the Euclidean norm; higher means keep.

    Caution:
        Contributions of opposite sign cancel over positions; normalised by layer, it says nothing across layers.
    """
    return F.normalize(stats.activation_gradient_magnitude.double(), dim=0, eps=1e-300)


@register(
    "obd",
    family="gradient",
    needs={"weight", "hessian_diagonal"},
    reference="LeCun et al., Optimal Brain Damage, NeurIPS 1989; Hutchinson's estimator",
)
def obd(stats: GroupStats, *, probes: Annotated[int, at_least(1)] = 8) -> Tensor:
    r"""Second-order loss change by the Hessian's diagonal, :math:`\frac12 \sum_w w^2 H_{ww}`.

    The diagonal is Hutchinson's estimate, of 8 probes a batch by default: its noise falls with the root of probes
    times batches. Each probe costs about two backward passes.

    Args:
        stats: ``weight`` and ``hessian_diagonal`` of shape (channels, fan_in).
        probes: number of Rademacher probes a batch.

    Returns:
        Scores of shape (channels,), in the unit of the loss; higher means keep.

    Caution:
        A noisy estimate, of either sign: few batches rank at random. Assumes a minimum of the loss and a diagonal
        Hessian.
    """
    return (stats.weight.square() * stats.hessian_diagonal).sum(1) / 2
