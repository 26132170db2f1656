"""One forward pass, watched: which labels the axes of all layers carry, in which order layers run, and how often.

Layers that are known are taken as a whole; all other operations are followed one by one, below the level of Python
code, so that it does not matter how a network's forward is written. What is not known makes its channels stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from criteria.errors import GraphError
from criteria.labels import STAYS, Ties, compact, varying
from criteria.layers import (
    BATCH_NORM,
    CHANNELWISE,
    WEIGHTED,
    block,
    channel_dim,
    channelwise_tensors,
    is_depthwise,
    is_known,
    is_transposed,
    width,
)  # fmt: skip
from criteria.operations import Operation


@dataclass
class Trace:
    """What a forward pass shows.

    Attributes:
        ties: Which labels go together, and which have to stay.
        order: Names of the layers as they ran; one that ran twice is in it twice.
        positions: For each conv and linear weight, how often every element is used for one example.
        uncounted: Of each module, multiplications of one example outside of known layers, such as of attention.
        made: For each conv and linear layer, the labels of its output channels.
        read: For each conv and linear layer, the labels of its input channels.
        axes: For each (tensor, dimension) of a layer that holds channels, their labels and whether it reads them.
        used: Labels of the parameters and buffers that are used outside of known layers, one for each element.
        norms: For each conv and linear layer, the one BatchNorm that reads its output, if nothing else does.
    """

    ties: Ties = field(default_factory=Ties)
    order: list[str] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    uncounted: dict[str, int] = field(default_factory=dict)
    made: dict[str, Tensor] = field(default_factory=dict)
    read: dict[str, Tensor] = field(default_factory=dict)
    axes: dict[tuple[str, int], tuple[Tensor, bool]] = field(default_factory=dict)
    used: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)


def trace(model: nn.Module, example_input: Tensor, ignored: Collection[str], whole: Mapping[str, str]) -> Trace:
    """Runs a network once and follows its channels. It is left with hooks, so give it a copy.

    Args:
        model: The network, in evaluation mode.
        example_input: A batch that it accepts.
        ignored: Names of modules whose output channels stay.
        whole: Name of each layer that cannot be sliced, and why.

    Raises:
        GraphError: If it does not return tensors.
    """
    follower = _Follower(model, ignored, whole, len(example_input))
    with torch.no_grad(), _unfused_attention(), follower:
        outputs = model(example_input)
    returned = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if not returned:
        raise GraphError(f"the network must return tensors, got {type(outputs).__name__}")
    for tensor in returned:
        follower.trace.ties.pin(follower.labels(tensor), "", None)
    readers = {layer: set(found) for layer, found in follower.readers.items()}
    follower.trace.norms = {
        layer: norm for layer, found in readers.items() if len(found) == 1 for norm in found if norm in follower.norms
    }
    return follower.trace


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """A context in which attention is the operations that it consists of, which can be followed and counted."""
    is_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every layer and every operation of a forward pass."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Never compiled; PyTorch would import its compiler, which takes a second, in order not to use it."""
        return False

    def __init__(self, model: nn.Module, ignored: Collection[str], whole: Mapping[str, str], examples: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self._examples = examples
        self.ignored, self.whole = ignored, whole
        self.readers: defaultdict[str, list[str]] = defaultdict(list)
        self.names = {module: name for name, module in model.named_modules()}
        self.norms = {name for module, name in self.names.items() if isinstance(module, BATCH_NORM)}
        self._state = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
        self._labels = WeakTensorKeyDictionary()
        self._makers = WeakTensorKeyDictionary()
        self._running: list[str] = []
        self._inside = 0
        for module in self.names:
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave, with_kwargs=True, prepend=True)

    def labels(self, tensor: Tensor) -> Tensor:
        """Compact labels of a tensor; a parameter or buffer gets one for each element when it is first used."""
        if tensor in self._labels:
            found: Tensor = self._labels[tensor]
            return found
        name = self._state.get(id(tensor))
        if name is None:
            return torch.full([1] * tensor.ndim, STAYS)
        self.trace.used[name] = self._labels[tensor] = self.trace.ties.fresh(tensor.numel()).view(tensor.shape)
        if name.rpartition(".")[0] in self.ignored:
            self.trace.ties.pin(self.trace.used[name], name, None)
        return self.trace.used[name]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Follows one operation, unless a known layer does it."""
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        layer = self._running[-1] if self._running else ""
        operation = Operation(self.trace.ties, self.labels, layer, (func, args, kwargs))
        outputs = func(*args, **kwargs)
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            macs = int(count(*args, **kwargs, out_val=outputs)) // 2 // self._examples
            self.trace.uncounted[layer] = self.trace.uncounted.get(layer, 0) + macs
        if operation.inputs:
            made = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
            for tensor, labels in zip(made, operation.labels(outputs), strict=True):
                self._labels[tensor] = labels
            self._note_readers(operation.inputs, f"{func} in {layer}")
        return outputs

    def _note_readers(self, tensors: list[Tensor], reader: str) -> None:
        for tensor in tensors:
            if tensor in self._makers:
                self.readers[self._makers[tensor]].append(reader)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._running.append(self.names[module])
        self._inside += is_known(module)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._running.pop()
        name, known = self.names[module], is_known(module)
        if known or not list(module.children()):
            self.trace.order.append(name)
        if known and self._inside == 1:
            self._known(name, module, (*args, *kwargs.values())[0], output)
        self._inside -= known  # now only: what is done with the labels is not to be followed itself

    def _known(self, name: str, module: nn.Module, source: Tensor, output: Tensor) -> None:
        """Follows a known layer, which is not part of another one."""
        if not isinstance(output, Tensor):
            raise GraphError(f"layer '{name}' must return one tensor, got {type(output).__name__}")
        self._note_readers([source], name)
        labels = self._layer(name, module, source, output)
        if name in self.ignored:
            self.trace.ties.pin(labels, name, None)
        self._labels[output] = compact(labels)
        if isinstance(module, WEIGHTED):
            self._makers[output] = name
            seen, side = (source, "in") if is_transposed(module) else (output, "out")
            # A transposed convolution scatters each input, where others gather each output.
            uses = seen.numel() // width(module, side) // self._examples
            weight = f"{name}.weight" if id(module.weight) in self._state else self._origin(name, module)
            self.trace.positions[weight] = self.trace.positions.get(weight, 0) + uses

    def _origin(self, name: str, module: Any) -> str:
        """The parameter with as many elements as a weight that is computed: it stands for what that one costs."""
        for own, parameter in module.named_parameters():
            if parameter.numel() == module.weight.numel():
                return f"{name}.{own}"
        raise GraphError(f"the weight of layer '{name}' must be a parameter or computed from one of its size")

    def _layer(self, name: str, module: nn.Module, source: Tensor, output: Tensor) -> Tensor:
        """Enters the axes of a known layer, and returns the labels of its output."""
        labels = self.labels(source)
        if isinstance(module, WEIGHTED):
            if _widths(module, source, output) != (width(module, "in"), width(module, "out")):
                self.trace.ties.pin(labels, name, "reads or makes other channels than its weight has")
                return torch.full([1] * output.ndim, STAYS)
            read = self._channels(name, labels, source, channel_dim(module))
            made = (self._depthwise if is_depthwise(module) else self._dense)(name, module, read)
            if name in self.whole:
                self.trace.ties.pin(torch.cat([read, made]), name, self.whole[name])
            dim = channel_dim(module) % output.ndim
            return made.view([-1 if axis == dim else 1 for axis in range(output.ndim)])
        if isinstance(module, CHANNELWISE):
            self._channelwise(name, module, self._channels(name, labels, source, channel_dim(module)))
        elif any(dim >= source.ndim - _normalised_dims(module) for dim in varying(labels)):
            self.trace.ties.pin(labels, name, f"mixes channels ({type(module).__name__})")
        return labels

    def _channels(self, name: str, labels: Tensor, source: Tensor, dim: int) -> Tensor:
        """One label for each channel that a layer reads; all that arrive at one channel go together."""
        dim %= source.ndim
        rows = labels.movedim(dim, -1).flatten(0, -2)
        if len(rows) > 1:
            self.trace.ties.tie(rows[:1], rows, name, "reads channels together with values that stay")
        return rows[0].expand(source.shape[dim])

    def _own(self, tensor: str, dim: int, labels: Tensor, reads: bool = False) -> None:
        """Enters an axis; a layer that is called again ties its channels of before with those of now."""
        before, _ = self.trace.axes.setdefault((tensor, dim), (labels, reads))
        self.trace.ties.tie(before, labels, tensor.rpartition(".")[0], "is also applied to channels that stay")

    def _carry(self, name: str, read: Tensor, made: Tensor) -> None:
        for known, labels in ((self.trace.read, read), (self.trace.made, made)):
            self.trace.ties.tie(known.setdefault(name, labels), labels, name, "is also applied to channels that stay")

    def _depthwise(self, name: str, module: Any, read: Tensor) -> Tensor:
        """Each channel keeps its own filters; the number of conv groups follows."""
        made = read.repeat_interleave(module.out_channels // module.groups)
        self._carry(name, read, made)
        self._own(f"{name}.weight", 0, read if is_transposed(module) else made)
        if module.bias is not None:
            self._own(f"{name}.bias", 0, made)
        return made

    def _dense(self, name: str, module: Any, read: Tensor) -> Tensor:
        """The number of conv groups stays: of each, the channels at the same place go together."""
        transposed, groups = is_transposed(module), getattr(module, "groups", 1)
        made = self.trace.made.get(name)
        made = self.trace.ties.fresh(width(module, "out")) if made is None else made
        axes = [read, made]
        for side in range(2):
            rows = axes[side].reshape(groups, -1)
            self.trace.ties.tie(rows[:1], rows, name, "has conv groups of which some read channels that stay")
            axes[side] = rows[0] if side == int(transposed) else axes[side]
        self._carry(name, read, made)
        self._own(f"{name}.weight", int(not transposed), axes[0], reads=True)
        self._own(f"{name}.weight", int(transposed), axes[1])
        if module.bias is not None:
            self._own(f"{name}.bias", 0, made)
        return made

    def _channelwise(self, name: str, module: Any, channels: Tensor) -> None:
        size = block(module)
        if isinstance(module, nn.GroupNorm) and not module.affine:
            self.trace.ties.pin(channels, name, "does not know its number of channels (GroupNorm with affine=False)")
        elif size == len(channels) > 1:
            self.trace.ties.pin(channels, name, f"mixes all channels ({type(module).__name__})")
        elif size > 1:
            rows = channels.view(-1, size)
            self.trace.ties.tie(rows[:, :1], rows, name, "normalises channels together with values that stay")
        for key in channelwise_tensors(module):
            self._own(f"{name}.{key}", 0, channels)


def _widths(module: nn.Module, source: Tensor, output: Tensor) -> tuple[int, int]:
    """Of what a layer was given and has made."""
    dim = channel_dim(module)
    return source.shape[dim % source.ndim], output.shape[dim % output.ndim]


def _normalised_dims(module: Any) -> int:
    return len(module.normalized_shape)
