"""What is gathered batch by batch in bounded memory; hooks that come off again; which rows a channel owns."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from criteria.errors import CriterionError
from criteria.graph import Member

MAP_BYTES = 2**30
"""What the maps of all layers may take together; beyond it, those of fewer images are held, but of one at least."""


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


class Reservoir:
    """A fair sample of a stream of examples, the same whatever its split in batches: Vitter's algorithm R.

    Args:
        size: how many examples it holds; shorter streams are held as a whole, in their order.
        seed: of the sample.
    """

    def __init__(self, size: int, seed: int) -> None:
        """Start empty."""
        self.size = size
        self._random = np.random.default_rng(seed)
        self._seen = 0

    def draw(self, examples: int) -> dict[int, int]:
        """The next examples' share of the sample: slot → row of the batch."""
        share: dict[int, int] = {}
        for row in range(examples):
            slot = self._seen if self._seen < self.size else int(self._random.integers(self._seen + 1))
            if slot < self.size:
                share[slot] = row
            self._seen += 1
        return share


class Slots:
    """Rows kept at the slots of a reservoir, in memory that grows with their number."""

    def __init__(self) -> None:
        """Start empty."""
        self._rows: Tensor | None = None
        self._used = 0

    def put(self, share: dict[int, int], rows: Tensor) -> None:
        """Write rows of shape (examples, features) to their slots, slot → row."""
        if not share:
            return
        self._used = max(self._used, max(share) + 1)
        held = rows.new_empty(0, *rows.shape[1:]) if self._rows is None else self._rows
        if len(held) < self._used:
            held = torch.cat([held, held.new_zeros(max(self._used, 2 * len(held)) - len(held), *held.shape[1:])])
        held[list(share)] = rows[list(share.values())]
        self._rows = held

    @property
    def value(self) -> Tensor | None:
        """What is held, (slots, features); None if nothing is."""
        return None if self._rows is None else self._rows[: self._used]


class Maps:
    """What layers read of the images at the slots of a reservoir; of fewer images where it takes over `MAP_BYTES`.

    The slots' order is random. Those that come first in it are held: a fair sample of a fair sample, the same whatever
    the split in batches.

    Args:
        slots: size of the reservoir.
        seed: of the order.
    """

    def __init__(self, slots: int, seed: int) -> None:
        """Start empty."""
        self._rank = np.random.default_rng([seed, 1]).permutation(slots).tolist()
        self._held: set[int] = set()
        self._bytes: dict[tuple[str, str], int] = {}
        self._maps: defaultdict[tuple[str, str], dict[int, Tensor]] = defaultdict(dict)

    def put(self, group: str, layer: str, slot: int, maps: Tensor) -> None:
        """Hold an image's maps of a group's channels in a layer's input, then no more images than there is room for."""
        self._maps[group, layer][slot] = maps
        self._bytes[group, layer] = maps.nbytes
        self._held.add(slot)
        room = max(1, MAP_BYTES // max(1, sum(self._bytes.values())))
        for surplus in sorted(self._held, key=self._rank.__getitem__)[room:]:
            self._held.remove(surplus)
            for by_slot in self._maps.values():
                by_slot.pop(surplus, None)

    def take(self, group: str, layer: str) -> Tensor | None:
        """What is held of a layer, (images, channels, ...), in the slots' order, for the last time; None if nothing is.

        Raises:
            CriterionError: maps of several sizes.
        """
        maps = self._maps.pop((group, layer), {})
        if len({tuple(sample.shape) for sample in maps.values()}) > 1:
            raise CriterionError(f"the maps read by {layer!r} must have one size to be stacked, got several")
        return torch.stack([maps[slot] for slot in sorted(maps)]) if maps else None


class ClassMoments:
    """Means by class and the mean square of a stream of rows, in float64; memory grows with the number of classes."""

    def __init__(self) -> None:
        """Start empty."""
        self._index: dict[int, int] = {}
        self._sums: Tensor | None = None
        self._counts = torch.zeros(0, dtype=torch.float64)
        self._squares = Mean()

    def add(self, rows: Tensor, classes: list[int]) -> None:
        """Add rows of shape (examples, features), one class for each."""
        rows = rows.double()
        index = torch.tensor([self._index.setdefault(name, len(self._index)) for name in classes], device=rows.device)
        sums = rows.new_zeros(len(self._index), rows.shape[1])
        if self._sums is not None:
            sums[: len(self._sums)] = self._sums
        self._sums = sums.index_add_(0, index, rows)
        counts = torch.bincount(index.cpu(), minlength=len(self._index)).double()
        counts[: len(self._counts)] += self._counts
        self._counts = counts
        self._squares.add(rows.square().mean(0), len(rows))

    @property
    def variances(self) -> tuple[Tensor, Tensor] | None:
        """Between-class and within-class variance of each feature; None if nothing was added."""
        if self._sums is None or self._squares.value is None:
            return None
        counts = self._counts.to(self._sums.device)
        share = (counts / counts.sum())[:, None]
        means = self._sums / counts[:, None]
        between = (share * (means - (share * means).sum(0)).square()).sum(0)
        return between, (self._squares.value - (share * means.square()).sum(0)).clamp(min=0)


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
