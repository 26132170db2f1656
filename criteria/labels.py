"""Labels of channels: which positions of which tensors go together, and which of them have to stay.

Every element of an activation carries the label of the channel that it belongs to, an integer. Operations move labels
around, and tie those of elements that they combine. Along dimensions in which labels do not vary, they are stored once
(size 1), so that the labels of a feature map are as small as its number of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

STAYS = 0
"""The label of positions that no channel owns."""


@dataclass(frozen=True)
class Pin:
    """Labels that have to stay.

    Attributes:
        labels: Which ones.
        layer: The layer that makes them stay.
        reason: Why; None where nobody has to be told.
    """

    labels: Tensor
    layer: str
    reason: str | None


class Ties:
    """All labels given out, which of them go together, and which have to stay."""

    def __init__(self) -> None:
        self.pins: list[Pin] = []
        self._count = STAYS + 1
        self._pairs: list[Tensor] = []

    def fresh(self, size: int) -> Tensor:
        """New labels, each different."""
        self._count += size
        return torch.arange(self._count - size, self._count)

    def tie(self, one: Tensor, other: Tensor, layer: str, reason: str) -> None:
        """Two tensors' labels go together, position by position; one that meets `STAYS` has to stay for a reason."""
        both = torch.stack(torch.broadcast_tensors(one, other), -1)  # type: ignore[no-untyped-call]
        pairs = torch.unique(both.reshape(-1, 2), dim=0)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        stays = (pairs == STAYS).any(1)
        self._pairs.append(pairs[~stays])
        self.pin(pairs[stays], layer, reason)

    def pin(self, labels: Tensor, layer: str, reason: str | None) -> None:
        """These labels have to stay."""
        labels = torch.unique(labels)
        if len(labels := labels[labels != STAYS]):
            self.pins.append(Pin(labels, layer, reason))

    def units(self) -> NDArray[np.int64]:
        """For each label, the number of the unit that it belongs to: labels that are tied, however indirectly."""
        first, second = torch.cat([*self._pairs, torch.zeros(0, 2, dtype=torch.int64)]).T.numpy()
        graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(self._count, self._count))
        return connected_components(graph, directed=False)[1].astype(np.int64)  # type: ignore[no-any-return]


def compact(labels: Tensor) -> Tensor:
    """Labels with size 1 in each dimension along which they do not vary."""
    for dim, size in enumerate(labels.shape):
        if size > 1 and bool((labels == labels.narrow(dim, 0, 1)).all()):
            labels = labels.narrow(dim, 0, 1)
    return labels


def varying(labels: Tensor) -> list[int]:
    """The dimensions along which compact labels vary."""
    return [dim for dim, size in enumerate(labels.shape) if size > 1]


def combined(ties: Ties, operands: Sequence[tuple[Tensor, Sequence[int]]], layer: str) -> Tensor:
    """Labels of a result whose elements are each computed from one element of every operand.

    A label that an operation spreads over several channels (a map multiplied to all of them) has to stay.

    Args:
        ties: Where combined labels are tied.
        operands: Compact labels, and the shape of the tensor they belong to.
        layer: Where it happens.
    """
    ndim = max(len(shape) for _, shape in operands)
    aligned = [
        (labels.view([1] * (ndim - labels.ndim) + list(labels.shape)), [1] * (ndim - len(shape)) + list(shape))
        for labels, shape in sorted(operands, key=lambda operand: -np.prod(operand[1], dtype=int))
    ]
    result, size = aligned[0]
    for labels, shape in aligned[1:]:
        spread = any(shape[dim] == 1 < size[dim] for dim in varying(result))
        spread_result = any(size[dim] == 1 < shape[dim] for dim in varying(labels))
        if spread:
            ties.pin(labels, layer, "is spread over several channels")
        if spread_result:
            ties.pin(result, layer, "is spread over several channels")
            result = torch.full_like(labels, STAYS) if spread else labels
        elif not spread:
            ties.tie(result, labels, layer, "is combined with values that stay")
            result = torch.where(result == STAYS, labels, result)
        size = [max(one, other) for one, other in zip(size, shape, strict=True)]
    return compact(result)
