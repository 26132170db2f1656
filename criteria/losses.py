"""Losses that need no labels: with them every gradient criterion runs on data alone."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from criteria.errors import CriterionValueError
from criteria.evaluating import evaluating


def squared_norm(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""Squared norm of the logits, mean over examples of :math:`\|y_n\|^2`: a filter matters if it moves the outputs.

    Args:
        outputs: shape (examples, ...).
        targets: not looked at.

    Returns:
        A scalar.
    """
    return outputs.flatten(1).square().sum(1).mean()


def divergence(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""Divergence from other logits, mean over examples of :math:`\mathrm{KL}(\sigma(t) \| \sigma(y))`, σ the softmax.

    Between a network and its own frozen outputs it is at its minimum: there its gradient is exactly 0, so that
    first-order criteria come out as degenerate, and the second-order ones (`obd`, `taylor_so`) say how fast it would
    grow. First-order criteria need a network that has already changed, or `squared_norm`.

    Args:
        outputs: logits, classes along the second axis.
        targets: logits of the same shape, as from `with_own_outputs`.

    Returns:
        A scalar; further axes than the classes' are summed up.
    """
    ours, theirs = F.log_softmax(outputs, 1), F.log_softmax(targets, 1)
    # The last two terms cancel, for both sum to 1; with them the derivative, exp(ours) - exp(theirs), is exactly 0
    # between equals, where rounding would otherwise leave noise to be ranked.
    terms = theirs.exp() * (theirs - ours) - theirs.exp() + ours.exp()
    return terms.flatten(1).sum(1).mean()


def with_own_outputs(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same inputs, with the outputs of a network in eval mode in the place of the labels.

    Args:
        model: the unpruned network; its mode and attributes are put back after each batch.
        batches: (inputs, targets), of which the targets are not looked at.

    Yields:
        (inputs, outputs), detached, on the network's device.
    """
    device = next(model.parameters()).device
    for inputs, _ in batches:
        with evaluating(model), torch.no_grad():
            outputs: Tensor = model(inputs.to(device))
        yield inputs, outputs.detach()


LABEL_FREE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"squared_norm": squared_norm, "divergence": divergence}
)
"""The losses that need no labels, by name."""


def label_free(
    name: str, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Callable[[Tensor, Tensor], Tensor], Iterable[tuple[Tensor, Tensor]]]:
    """A loss of `LABEL_FREE`, and the batches with what it compares the outputs with in the place of the labels.

    Args:
        name: of the loss.
        model: the unpruned network.
        batches: (inputs, targets), of which the targets are not looked at.

    Raises:
        CriterionValueError: there is no such loss.
    """
    if name not in LABEL_FREE:
        raise CriterionValueError(f"loss must be one of {', '.join(LABEL_FREE)}, got {name!r}")
    return LABEL_FREE[name], with_own_outputs(model, batches) if name == "divergence" else batches
