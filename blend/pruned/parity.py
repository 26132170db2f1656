"""Whether what was exported computes what PyTorch does, and what goes wrong on the way, named by its format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from blend.errors import BlendError, described
from blend.pruning import TOLERANCES

PARITY = 1e-4
"""Of what a file computes, relative to the largest output where that is above 1; where a precision allows no more, that
one's of `blend.pruning.TOLERANCES`."""


def difference(title: str, loaded: Callable[[Tensor], Tensor], network: nn.Module, inputs: Tensor) -> float:
    """The largest absolute difference between what was loaded and the network.

    Args:
        title: Of the format.
        loaded: What was loaded back.
        network: In evaluation mode.
        inputs: Those that it was exported with.

    Raises:
        BlendError: It is too large, or what was loaded does not run.
    """
    fewer = inputs[: max(1, len(inputs) - 1)]  # another size than it was exported with
    with torch.no_grad():
        expected = network(fewer)
        with exporting(title):
            found = loaded(fewer)
    same = found.shape == expected.shape
    largest = float((found.double() - expected.double()).abs().max()) if same else float("inf")
    if not largest <= tolerance(expected.dtype) * max(1.0, float(expected.abs().max())):
        raise BlendError(f"the network exported to {title} computes something else: outputs differ by {largest:.3g}")
    return largest


def tolerance(dtype: torch.dtype) -> float:
    """What outputs of a precision may differ by, relative to the largest one."""
    return max(PARITY, TOLERANCES.get(dtype, PARITY))


@contextmanager
def exporting(title: str) -> Iterator[None]:
    """Names the format in what goes wrong."""
    try:
        yield
    except Exception as error:  # the network's own forward is run, which may raise anything
        raise BlendError(f"the network cannot be exported to {title}: {described(error)[:300]}") from error
