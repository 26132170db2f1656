"""What a network is fine-tuned on: tensors in memory, or a Dataset or loader that is gone through anew each epoch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from blend.errors import InputError, described
from blend.progress import say
from blend.tasks.splits import (
    Data,
    Split,
    check_common,
    check_disjoint,
    check_pair,
    example_hashes,
    materialise,
    same_kind,
)

NAME = "training"
_READ_TWICE = 32
"""Examples by which it is told whether reading gives the same each time."""


class TrainingData(Protocol):
    """Labelled examples, epoch by epoch.

    Attributes:
        batches: In an epoch.
        fingerprint: 16 hexadecimal digits that change with the examples.
    """

    batches: int
    fingerprint: str

    def epoch(self, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yields an epoch's batches: inputs, targets and, where they are the same every time, which examples these are.

        To be gone through inside `seeded`: loaders draw from the global generators.
        """


class InMemory:
    """Two tensors, in an order of its own in every epoch, in batches that differ by one example at most.

    Args:
        split: The examples.
        batch_size: At most so many a batch.
    """

    def __init__(self, split: Split, batch_size: int) -> None:
        self.split = split
        self.batches = -(-len(split) // batch_size)
        self.fingerprint = split.fingerprint()

    def epoch(self, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """As in `TrainingData`."""
        for rows in _shuffled(len(self.split), self.batches, seed):
            yield self.split.inputs[rows], self.split.targets[rows], rows


class Streamed:
    """A Dataset, or an iterable of batches, of which one batch is held at a time.

    It is gone through once to begin with, to be counted and compared. Datasets are shuffled; loaders and other
    iterables come as they are, with their own batches and shuffling. What they draw from the generators of torch,
    NumPy and Python depends on the seed of the epoch alone; only workers that persist between epochs, and data with a
    generator of their own, escape that. Where the first examples differ when they are read again, this is said, and
    the fingerprint is of their number, shapes and types only. Examples that are augmented while they are read cannot
    be found to be those of another split.

    Args:
        data: To be gone through again and again.
        batch_size: For a Dataset.
        apart: Splits that must have nothing in common with it.

    Raises:
        InputError: It cannot be read, holds no pairs of finite tensors, or overlaps with another split.
    """

    def __init__(self, data: Dataset[Any] | Iterable[Any], batch_size: int, apart: Sequence[Split] = ()) -> None:
        self.data, self.batch_size = data, batch_size
        digest, forms, first = hashlib.sha256(), set(), list[bytes]()
        self.batches, examples = 0, 0
        known: list[tuple[bool, set[bytes]]] = []  # whether by labels, too, and hashes
        common: list[set[bytes]] = [set() for _ in apart]
        with seeded(0):
            for inputs, targets, _ in self.epoch(0):
                batch = materialise((inputs, targets), NAME)
                hashes = example_hashes(batch)
                if not known:
                    kinds = [same_kind(split.targets, targets) for split in apart]
                    known = [(kind, set(example_hashes(split, kind))) for kind, split in zip(kinds, apart, strict=True)]
                digest.update(b"".join(hashes))
                forms.add(f"{tuple(inputs.shape[1:])} {inputs.dtype} {tuple(targets.shape[1:])} {targets.dtype}")
                first += hashes[: _READ_TWICE - len(first)]
                examples, self.batches = examples + len(hashes), self.batches + 1
                for (labelled, theirs), found in zip(known, common, strict=True):
                    found |= theirs.intersection(hashes if labelled else example_hashes(batch, labelled=False))
        if not examples:
            raise InputError(f"the {NAME} split must have at least one example, got none")
        for split, found in zip(apart, common, strict=True):
            check_common(len(found), (NAME, examples), (split.name, len(split)))
        if self._first(len(first)) != first:
            say(
                f"note: the {NAME} data differ each time they are read, also with the same seed, so that a run that is "
                "interrupted and goes on does not end with the same bits as one that is not"
            )
            digest = hashlib.sha256(f"{examples} {sorted(forms)}".encode())
        self.fingerprint = digest.hexdigest()[:16]

    def _first(self, number: int) -> list[bytes]:
        """Hashes of so many examples, as they come when they are read from the beginning."""
        hashes: list[bytes] = []
        with seeded(0), closing(self.epoch(0)) as epoch:
            for inputs, targets, _ in epoch:
                hashes += example_hashes(materialise((inputs, targets), NAME))
                if len(hashes) >= number:
                    break
        return hashes[:number]

    def epoch(self, seed: int) -> Generator[tuple[Tensor, Tensor, Tensor | None], None, None]:
        """As in `TrainingData`."""
        with ExitStack() as stack:
            for generator in _generators(self.data):
                stack.callback(generator.set_state, generator.get_state())
                generator.manual_seed(seed)
            batches = enumerate(self._loader(seed))
            while True:
                try:
                    index, batch = next(batches)
                except StopIteration:
                    return
                except Exception as error:
                    raise InputError(f"the {NAME} split failed while it was read: {described(error)}") from error
                check_pair(batch, index, NAME)
                yield batch[0].cpu(), batch[1].cpu(), None

    def _loader(self, seed: int) -> Iterable[Any]:
        if not isinstance(self.data, Dataset):
            return self.data
        if isinstance(self.data, IterableDataset):
            return DataLoader(self.data, batch_size=self.batch_size)
        size = len(self.data)  # type: ignore[arg-type]
        order = _shuffled(size, -(-size // self.batch_size), seed) if size else []
        return DataLoader(self.data, batch_sampler=[rows.tolist() for rows in order])


def training_data(data: Data, batch_size: int, apart: Sequence[Split] = ()) -> TrainingData:
    """Training data of any form that a split may have.

    What is in memory stays there: a pair of tensors is not copied. A Dataset, a loader and anything else that can be
    gone through again is streamed. What can be gone through only once, and a list of batches, is brought into memory.

    Args:
        data: As in ``FineTuning.train``.
        batch_size: Examples a step; a loader's or list's own where these come in batches.
        apart: Splits that must have nothing in common with it.

    Raises:
        InputError: They do, or it is not what a split may be.
    """
    in_memory = isinstance(data, (Split, tuple, list, Iterator)) or not isinstance(data, (Dataset, Iterable))
    if not in_memory:
        return Streamed(data, batch_size, apart)  # type: ignore[arg-type]
    split = materialise(data, NAME)
    for other in apart:
        check_disjoint(split, other)
    return InMemory(split, batch_size)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Everything random draws from a seed inside; outside, torch, NumPy and Python find their states again."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _shuffled(size: int, batches: int, seed: int) -> Sequence[Tensor]:
    return torch.tensor_split(torch.randperm(size, generator=torch.Generator().manual_seed(seed)), batches)


def _generators(data: Any) -> list[torch.Generator]:
    """A loader's own generators, and those of its samplers."""
    batch_sampler = getattr(data, "batch_sampler", None)
    holders = (data, getattr(data, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = {id(g): g for h in holders if isinstance(g := getattr(h, "generator", None), torch.Generator)}
    return list(found.values())
