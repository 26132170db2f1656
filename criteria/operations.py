"""What operations between layers do to the labels of channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from criteria.labels import STAYS, Ties, combined, compact, varying

Find = Callable[[Tensor], Tensor]
"""The compact labels of a tensor."""

VIEWS = {"view", "_unsafe_view", "_reshape_alias", "unflatten", "flatten", "reshape"}
MOVES = {"permute", "transpose", "t", "expand", "squeeze", "unsqueeze", "cat", "stack", "flip", "repeat"}
CUTS = {"slice", "select", "split", "split_with_sizes", "unbind", "index_select"}
REDUCTIONS = {
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "logsumexp", "linalg_vector_norm",
    "_softmax", "_log_softmax", "cumsum", "prod",
}  # fmt: skip
LIKE = {"zeros_like", "ones_like", "full_like", "empty_like"}
POINTWISE = {*LIKE, "hardswish", "log_sigmoid_forward", "_to_copy", "clone", "detach", "alias", "_prelu_kernel"}
SPATIAL = ("max_pool", "avg_pool", "upsample_", "reflection_pad", "replication_pad")
ORDER = "its reshaping or splitting does not keep channels apart"


class Operation:
    """One call of an operation, and the labels of what it returns.

    Made before the call, which may change its arguments.

    Args:
        ties: Where labels are tied and pinned.
        find: Gives the labels of a tensor.
        layer: The module in which it is called, for reasons.
        call: The operation with its arguments.
    """

    def __init__(self, ties: Ties, find: Find, layer: str, call: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> None:
        self.ties, self.find, self.layer = ties, find, layer
        self.function, self.args, self.kwargs = call
        self.name = self.function.overloadpacket.__name__
        self.inputs = [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]
        self.places = [_places(tensor) for tensor in self.inputs]

    def labels(self, outputs: Any) -> list[Tensor]:
        """Compact labels of each tensor that the operation returned."""
        made = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        if self.name.startswith("embedding"):
            return [_stays(tensor) for tensor in made]  # whose weight is too large to be followed for nothing
        if all(bool((self.find(tensor) == STAYS).all()) for tensor in self.inputs):
            return [_stays(tensor) for tensor in made]
        followed = self._follow(self.name.rstrip("_"), made)
        if self.function._schema.is_mutable:
            self._check_written(followed)
        return followed

    def _follow(self, name: str, made: list[Tensor]) -> list[Tensor]:
        if name in VIEWS:
            return [self._reshaped(made[0].shape)]
        if name in MOVES:
            return self._moved()
        if name in CUTS:
            return self._cut(name, made)
        if name in REDUCTIONS:
            return self._reduced(made)
        if name.lstrip("_").removeprefix("adaptive_").startswith(SPATIAL):
            return self._spatial(name, made)
        special = {"constant_pad_nd": self._padded, "pixel_shuffle": self._pixel_shuffled, "glu": self._gated}
        special["channel_shuffle"] = special["native_channel_shuffle"] = self._channel_shuffled
        if name in special:
            return [compact(special[name](self._expanded(self.inputs[0])))]
        if name in POINTWISE or torch.Tag.pointwise in self.function.tags:
            operands = [(self.find(tensor), tensor.shape) for tensor in self.inputs if tensor.ndim]
            if not operands:  # a single number, like a temperature
                return [_stays(tensor) for tensor in made]
            return [combined(self.ties, operands, self.layer)] * len(made)
        if name == "as_strided" and _places(made[0]) == self.places[0]:  # pooling to one number says so of maps
            return [self.find(self.inputs[0])]
        return self._mixed(made, f"mixes or reorders channels ({self.name})")

    def _mixed(self, made: Sequence[Tensor], reason: str) -> list[Tensor]:
        for tensor in self.inputs:
            self.ties.pin(self.find(tensor), self.layer, reason)
        return [_stays(tensor) for tensor in made]

    def _expanded(self, tensor: Tensor) -> Tensor:
        return self.find(tensor).expand(tensor.shape)

    def _moved(self) -> list[Tensor]:
        moved = self.function(*tree_map_only(Tensor, self._expanded, self.args), **self.kwargs)
        return [compact(leaf) for leaf in tree_leaves(moved)]

    def _reshaped(self, shape: Sequence[int]) -> Tensor:
        """Where channels come to lie along two dimensions, the outer one keeps its size: the rows go together."""
        labels = compact(self._expanded(self.inputs[0]).reshape(shape))
        if len(dims := varying(labels)) > 1:
            self._tie_rows(labels.movedim(dims[-1], -1).flatten(0, -2))
        return labels

    def _tie_rows(self, rows: Tensor) -> None:
        self.ties.tie(rows[:1], rows, self.layer, ORDER)

    def _cut(self, name: str, made: list[Tensor]) -> list[Tensor]:
        """Parts of equal size may stay so if they lose the same channels; other parts keep all of them."""
        source = self.inputs[0]
        dim = next((arg for arg in self.args[1 + name.startswith("split") :][:1] if isinstance(arg, int)), 0)
        dim = self.kwargs.get("dim", dim) % source.ndim
        whole = name == "slice" and made[0].shape == source.shape
        if dim in varying(self.find(source)) and not whole:
            sizes = {tensor.shape[dim] for tensor in made} if name.startswith("split") else set()
            if len(sizes) != 1:
                self.ties.pin(self.find(source), self.layer, "takes some of the channels by their position")
            else:
                self._tie_rows(self._expanded(source).movedim(dim, 0).reshape(len(made), -1))
        return self._moved()

    def _reduced(self, made: list[Tensor]) -> list[Tensor]:
        source = self.inputs[0]
        dims = self.args[2 if self.name == "linalg_vector_norm" else 1] if len(self.args) > 1 else None
        dims = self.kwargs.get("dim", dims)
        dims = [dims] if isinstance(dims, int) else dims or range(source.ndim)
        dims = {dim % source.ndim for dim in dims}
        labels = self.find(source)
        if dims & set(varying(labels)):
            return self._mixed(made, f"mixes channels ({self.name})")
        if made[0].ndim < source.ndim:
            labels = labels.reshape([size for dim, size in enumerate(labels.shape) if dim not in dims])
        return [labels] * len(made)

    def _spatial(self, name: str, made: list[Tensor]) -> list[Tensor]:
        labels = self.find(self.inputs[0])
        if any(dim >= labels.ndim - _rank(name) for dim in varying(labels)):
            return self._mixed(made, f"mixes channels ({name})")
        return [labels] * len(made)

    def _padded(self, labels: Tensor) -> Tensor:
        """Zeros that are padded to channels stay; padded to positions, they belong to the positions' channel."""
        dims = set(varying(compact(labels)))
        pads = [pad for i, pad in enumerate(self.args[1]) for pad in [pad if labels.ndim - 1 - i // 2 in dims else 0]]
        return torch.constant_pad_nd(compact(labels), pads, STAYS)

    def _pixel_shuffled(self, labels: Tensor) -> Tensor:
        shuffled = torch.pixel_shuffle(labels, self.args[1])
        channels = shuffled.movedim(-3, -1).flatten(0, -2)
        self._tie_rows(channels)
        return shuffled

    def _channel_shuffled(self, labels: Tensor) -> Tensor:
        self._tie_rows(labels.movedim(1, 0).reshape(self.args[1], -1))
        examples, channels, *rest = labels.shape
        groups = labels.reshape(examples, self.args[1], channels // self.args[1], *rest)
        return groups.transpose(1, 2).reshape(labels.shape)

    def _gated(self, labels: Tensor) -> Tensor:
        one, other = labels.chunk(2, self.args[1] if len(self.args) > 1 else -1)
        self.ties.tie(one, other, self.layer, ORDER)
        return one

    def _check_written(self, after: list[Tensor]) -> None:
        """What was written into may be a view of a larger tensor, whose labels are not followed."""
        before = self.find(self.inputs[0])
        if any(bool((new != before).any()) for new in after):
            self._mixed([], "is written into another tensor")


def _rank(name: str) -> int:
    """Number of spatial dimensions in the name of an operation, as in ``avg_pool2d``."""
    return next(rank for rank in (1, 2, 3) if f"{rank}d" in name)


def _places(tensor: Tensor) -> Any:
    """Where in memory the elements lie; the stride of a dimension of one element says nothing."""
    strides = [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
    return tensor.shape, strides, tensor.storage_offset()


def _stays(tensor: Tensor) -> Tensor:
    return torch.full([1] * tensor.ndim, STAYS)
