"""Splits: labelled data as two tensors, whatever form they came in, and whether two of them have examples in common."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from blend.errors import InputError, described
from blend.progress import say


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled examples in memory.

    Attributes:
        inputs: (n, ...) examples.
        targets: (n, ...) what the loss compares the outputs with; of shape (n, 0) where labels are not to be read.
        name: what messages call it: calibration, held-out or test.
    """

    inputs: Tensor
    targets: Tensor
    name: str

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.inputs)

    @property
    def labelled(self) -> bool:
        """Whether there are targets."""
        return self.targets.numel() > 0

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield views of up to ``size`` examples, in order."""
        yield from zip(torch.split(self.inputs, size), torch.split(self.targets, size), strict=True)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change with any byte, shape or type of the examples."""
        digest = hashlib.sha256()
        for tensor in (self.inputs, self.targets):
            digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(_bytes_by_example(tensor).data if tensor.numel() else b"")
        return digest.hexdigest()[:16]


Data: TypeAlias = Split | tuple[Tensor, Tensor] | Dataset[Any] | Iterable[Any]
"""Forms of a split: a pair of tensors (inputs, targets), a torch Dataset of such pairs, or an iterable of batches."""


def materialise(data: Data, name: str, *, labelled: bool = True) -> Split:
    """Bring any accepted form of labelled data into two tensors.

    With ``labelled`` false targets are not read, whatever they are, and inputs alone are accepted in the place of
    pairs.

    A pair of tensors on the CPU is not copied. Datasets and loaders are gone through once under a fixed random state,
    so that a shuffling loader gives the same order in every process, and the caller's random state stays as it was.

    Raises:
        InputError: the data are empty, are not pairs of tensors, differ in length, or hold NaN or infinity.
    """
    if not labelled and not _two_batches(data):
        data = _unlabelled((data.inputs, None) if isinstance(data, Split) else data)
    if isinstance(data, Split):
        inputs, targets = data.inputs, data.targets
    elif _is_pair(data) and (labelled or not _two_batches(data)):
        inputs, targets = data
    else:
        inputs, targets = _concatenated(data, name, labelled)
    inputs, targets = _plain(inputs), _plain(targets)
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
        raise InputError(
            f"the {name} split must have one target for each input, "
            f"got inputs of shape {tuple(inputs.shape)} and targets of shape {tuple(targets.shape)}"
        )
    if len(inputs) == 0:
        raise InputError(f"the {name} split must have at least one example, got none")
    for part, values in (("inputs", inputs), ("targets", targets)):
        bad = int((~values.isfinite()).reshape(len(inputs), -1).any(1).sum())
        if bad:
            raise InputError(
                f"the {part} of the {name} split must be finite, got NaN or infinity in {bad} of {len(inputs)} examples"
            )
    return Split(inputs, targets, name)


def _plain(tensor: Tensor) -> Tensor:
    """Its values on the CPU; a copy, if gradients could not be taken of what is computed from it."""
    tensor = tensor.detach().cpu()
    return tensor.clone() if tensor.is_inference() else tensor


def _is_pair(data: Any) -> TypeGuard[tuple[Tensor, Tensor]]:
    return isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)


def _two_batches(data: Any) -> bool:
    """Whether a list is one of two batches of inputs, and no pair of inputs and targets."""
    if not (isinstance(data, list) and _is_pair(data)):
        return False
    one, other = data
    return bool(one.dtype == other.dtype and one.shape[1:] == other.shape[1:])


def _unlabelled(pair: Any) -> Any:
    """Inputs and targets of no size, of a pair or of inputs alone, however wrapped; anything else as it is."""
    inputs = pair[0] if isinstance(pair, (tuple, list)) and len(pair) in (1, 2) else pair
    return (inputs, inputs.new_empty(len(inputs), 0)) if isinstance(inputs, Tensor) and inputs.ndim else pair


def _concatenated(data: Any, name: str, labelled: bool) -> tuple[Tensor, Tensor]:
    """Go through a dataset, or an iterable of batches, and put its batches together."""
    if not isinstance(data, Iterable) and not isinstance(data, Dataset):
        raise InputError(
            f"the {name} split must be a pair of tensors, a Dataset or an iterable of (inputs, targets) "
            f"batches, got {type(data).__name__}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            batches = list(DataLoader(data, batch_size=256) if isinstance(data, Dataset) else data)
        except Exception as error:
            raise InputError(f"the {name} split failed while it was read: {described(error)}") from error
    batches = batches if labelled else [_unlabelled(batch) for batch in batches]
    for index, batch in enumerate(batches):
        check_pair(batch, index, name, labelled=labelled)
    if not batches:
        raise InputError(f"the {name} split must have at least one example, got none")
    try:
        return torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])
    except RuntimeError as error:
        raise InputError(
            f"the batches of the {name} split must have equal shapes but for the first dimension: "
            f"{str(error).splitlines()[0]}"
        ) from error


def check_pair(batch: Any, index: int, name: str, *, labelled: bool = True) -> None:
    """Refuse a batch that is not a pair of tensors.

    Raises:
        InputError: saying what it is.
    """
    if not _is_pair(batch):
        is_two = isinstance(batch, (tuple, list)) and len(batch) == 2
        got = f"({', '.join(type(part).__name__ for part in batch)})" if is_two else type(batch).__name__
        wanted = "pairs (inputs, targets) of tensors" if labelled else "tensors of inputs, or pairs (inputs, targets)"
        raise InputError(f"the {name} split must give {wanted}, got {got} as batch {index}")


def check_disjoint(a: Split, b: Split) -> None:
    """Refuse two splits that share memory or more than 1 % of the smaller one's examples; say so when it is less.

    Where one has no labels, or labels of another kind (shares of classes, and not their numbers), examples are the same
    when their inputs are.

    Raises:
        InputError: the splits are not disjoint.
    """
    if _share_memory(a.inputs, b.inputs):
        raise InputError(f"the {a.name} and {b.name} splits must be disjoint, got inputs in the same memory")
    small, large = sorted((a, b), key=len)
    labelled = same_kind(a.targets, b.targets)
    known = set(example_hashes(large, labelled))
    common = sum(example in known for example in example_hashes(small, labelled))
    check_common(common, (a.name, len(a)), (b.name, len(b)))


def same_kind(a: Tensor, b: Tensor) -> bool:
    """Whether targets of examples can be compared: there are some, and as many numbers for each example."""
    return a[:1].numel() == b[:1].numel() > 0


def check_common(common: int, a: tuple[str, int], b: tuple[str, int]) -> None:
    """Refuse two splits, each a name and a size, with too many examples in common; say so when there are few.

    Raises:
        InputError: more than 1 % of the smaller one's examples are.
    """
    (small, size), (large, _) = sorted((a, b), key=lambda split: split[1])
    found = f"{common} of the {size} {small} examples are also in the {large} split"
    if common > 0.01 * size:
        raise InputError(f"the {a[0]} and {b[0]} splits must be disjoint, but {found}")
    if common:
        say(f"note: {found}")


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether an example of ``a`` and one of ``b`` overlap; disjoint or interleaved slices of one tensor don't."""
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    (starts, extent), (others, other_extent) = _byte_ranges(a), _byte_ranges(b)
    first = np.searchsorted(others, starts - other_extent, side="right")
    last = np.searchsorted(others, starts + extent, side="left")
    return bool((last > first).any())


def _byte_ranges(tensor: Tensor) -> tuple[np.ndarray[Any, np.dtype[np.int64]], int]:
    """Return where each example starts in memory, ascending, and how many bytes it spans."""
    inner = sum((size - 1) * stride for size, stride in zip(tensor.shape[1:], tensor.stride()[1:], strict=True)) + 1
    starts = tensor.data_ptr() + np.arange(len(tensor)) * tensor.stride(0) * tensor.element_size()
    return starts, inner * tensor.element_size()


def _bytes_by_example(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the bytes of a tensor (n, ...) as an array (n, bytes of one example)."""
    rows = tensor.cpu().contiguous().reshape(len(tensor), -1)
    array: np.ndarray[Any, np.dtype[np.uint8]] = rows.view(torch.uint8).numpy()
    return array


def example_hashes(split: Split, labelled: bool = True) -> list[bytes]:
    """Return one digest for each example, of its inputs and, if asked, of its target, in whatever type that is."""
    examples = (example.tobytes() for example in _bytes_by_example(split.inputs))
    targets = (_value(target) for target in split.targets.cpu()) if labelled else repeat(b"", len(split))
    pairs = zip(targets, examples, strict=True)
    return [hashlib.blake2b(target + example, digest_size=16).digest() for target, example in pairs]


def _value(target: Tensor) -> bytes:
    """Return the same for the same numbers of another type."""
    return (target if target.is_complex() else target.double()).numpy().tobytes()
