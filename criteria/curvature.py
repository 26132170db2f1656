"""Derivatives by autograd that are zero where nothing is reached, and Hutchinson's estimate of a Hessian's diagonal."""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from criteria.errors import CriterionError, raise_if_out_of_memory


def gradients_of(
    outputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    directions: Sequence[Tensor] | None = None,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """Gradients of the outputs, weighted by directions; the graph stays, where one is created or comes with directions.

    Returns:
        For each leaf its gradient, zero if no output depends on it.

    Raises:
        CriterionError: An operation has none, or not in this way, such as reentrant checkpointing.
    """
    reached = [index for index, output in enumerate(outputs) if output.requires_grad]
    if not reached or not leaves:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    try:
        return torch.autograd.grad(
            [outputs[index] for index in reached],
            list(leaves),
            None if directions is None else [directions[index] for index in reached],
            create_graph=create_graph,
            retain_graph=create_graph or directions is not None,
            allow_unused=True,
            materialize_grads=True,
        )
    except RuntimeError as error:
        raise_if_out_of_memory(error)
        raise CriterionError(f"the network must have gradients by torch.autograd.grad, got: {error}") from error


def diagonals(
    gradients: Sequence[Tensor],
    leaves: Sequence[Tensor],
    draw: Callable[[], Sequence[Tensor]],
    counts: Collection[int],
) -> Iterator[tuple[int, list[Tensor]]]:
    r"""Hutchinson's estimate of the diagonal of H, the mean of :math:`v \odot Hv` over probes v of random signs.

    Args:
        gradients: first derivatives by the leaves, with their graph.
        leaves: by which H is the second derivative.
        draw: gives one probe, a tensor for each leaf.
        counts: after how many probes an estimate is wanted.

    Yields:
        Number of probes, in ascending order, and the estimate, a tensor for each leaf.
    """
    totals = [torch.zeros_like(leaf) for leaf in leaves]
    for done in range(1, max(counts, default=0) + 1):
        probe = draw()
        for total, v, hv in zip(totals, probe, gradients_of(gradients, leaves, probe), strict=True):
            total.add_(v * hv)
        if done in counts:
            yield done, [total / done for total in totals]


def signs(shape: Sequence[int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Random signs, the same on every device, of the type and on the device of ``like``."""
    return torch.randint(0, 2, tuple(shape), generator=generator).mul_(2).sub_(1).to(like.device, like.dtype)
