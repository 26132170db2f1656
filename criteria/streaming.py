"""What both sides of the sweep share: running means, hooks that come off again, and which rows a channel owns."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from criteria.errors import CriterionError
from criteria.graph import Member


class Mean:
    """A running mean, weighted by a number of examples, in float32 or better."""

    def __init__(self) -> None:
        """Start with nothing added."""
        self._total: Tensor | None = None
        self._weight = 0

    def add(self, value: Tensor, weight: int) -> None:
        """Add a value that is itself a mean over ``weight`` examples."""
        value = widened(value.detach())
        self._total = torch.zeros_like(value) if self._total is None else self._total
        self._total.add_(value, alpha=weight)
        self._weight += weight

    @property
    def value(self) -> Tensor | None:
        """The mean so far; None if nothing was added."""
        return None if self._total is None else self._total / self._weight


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take the hooks off again on leaving, also when one of them cannot be put on."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def rows(member: Member) -> tuple[NDArray[np.int64], Tensor]:
    """The group's channels that a member carries, ascending, and the positions of its axis that each one owns.

    Returns:
        Channels of shape (C,) and positions of shape (C, positions per channel).

    Raises:
        CriterionError: some channels own more positions than others.
    """
    held = np.flatnonzero(member.channels >= 0)
    channels, counts = np.unique(member.channels[held], return_counts=True)
    if len(set(counts.tolist())) != 1:
        raise CriterionError(f"the channels must own equally many positions of {member.layer!r}, got {counts.tolist()}")
    order = np.argsort(member.channels[held], kind="stable")
    return channels, torch.from_numpy(held[order].reshape(len(channels), -1))
