"""What the first layers of earlier candidates have made, kept for those that begin alike."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

_REMEMBERED = 20_000


class Snapshot:
    """A tensor as it is now, and whether it still is: what reads it may write to it.

    Args:
        tensor: What should be one.
    """

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
        self._version = _version(tensor)

    def is_intact(self) -> bool:
        """Whether nobody has written to it; False where there is no telling."""
        return self._version is not None and _version(self.tensor) == self._version


def _version(tensor: Any) -> int | None:
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else None


class PrefixCache:
    """Values made of tensors: the most recently used, as many as there is room for.

    Args:
        limit: Bytes that the tensors may take.

    Attributes:
        size: Bytes that they take.
        hits: How often a value was found.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = self.hits = 0
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._met: OrderedDict[Hashable, None] = OrderedDict()

    def meets_again(self, key: Hashable) -> bool:
        """Whether this is not the first time that it meets a key: what came once only may not be worth its room."""
        known = key in self._met
        self._met[key] = None
        self._met.move_to_end(key)
        if len(self._met) > _REMEMBERED:
            self._met.popitem(last=False)
        return known

    def get(self, key: Hashable) -> Any:
        """The value; None if there is none, or none any more."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if not kept.is_intact():
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        self.hits += 1
        return kept.value

    def put(self, key: Hashable, value: Any, tensors: Sequence[Snapshot]) -> None:
        """Keeps a value, as long as the tensors that it is made of are intact; those not used for longest make room."""
        kept = _Kept(value, tensors)
        if key in self._kept or not kept.is_intact() or kept.size > self.limit:
            return
        self._kept[key] = kept
        self.size += kept.size
        while self.size > self.limit:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Hashable) -> None:
        self.size -= self._kept.pop(key).size


class _Kept(NamedTuple):
    value: Any
    tensors: Sequence[Snapshot]

    @property
    def size(self) -> int:
        return sum(snapshot.tensor.untyped_storage().nbytes() for snapshot in self.tensors)

    def is_intact(self) -> bool:
        return all(snapshot.is_intact() for snapshot in self.tensors)
