"""What a forward pass holds at once, seen by watching one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing import reductions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_StorageWeakRef: Any = reductions.StorageWeakRef  # without types


def live_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Bytes of all tensors that are alive at once, at the most, while a network reads inputs in evaluation mode.

    Its parameters and buffers and the inputs do not count.
    """
    copied = copy.deepcopy(model).eval()
    watch = _Watch([*copied.parameters(), *copied.buffers(), inputs])
    with torch.no_grad(), watch:
        copied(inputs)
    return watch.most


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the result of every operation, and which of the earlier ones are still needed."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Never compiled; PyTorch would import its compiler, which takes a second, in order not to use it."""
        return False

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {key for tensor in known if (key := _key(tensor)) is not None}
        self._alive: dict[int, tuple[Any, int]] = {}
        self.most: int = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (key := _key(tensor)) is not None and key not in self._known:
                storage = tensor.untyped_storage()
                self._alive[key] = (_StorageWeakRef(storage), storage.nbytes())
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return made


def _key(tensor: Tensor) -> int | None:
    """What views of the same memory have in common; None where a tensor is not plain memory."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None
