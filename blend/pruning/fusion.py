"""Convolutions that add a shortcut and clamp the sum before they write their outputs, on CPUs.

Small networks spend a third of a forward pass on reading and writing maps for shortcuts and activations. Once BatchNorm
is folded, oneDNN does these along with the convolution. `torch.compile` has it do so, too, but compiles anew for each
width, which takes longer than judging a candidate.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node, Tracer

from blend.pruning.abreast import convolved
from blend.pruning.halting import may_halt
from blend.pruning.norms import Norm

Range = tuple[float, float]
_RELU: Range = (0.0, math.inf)
_ALL: Range = (-math.inf, math.inf)
_CLAMPS: Mapping[Any, Range] = {F.relu: _RELU, torch.relu: _RELU, "relu": _RELU, "relu_": _RELU, F.relu6: (0.0, 6.0)}
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_REFERENCES = ("call_module", "get_attr")


class FusedConv(nn.Module):
    """A convolution, its BatchNorm, and what follows: adding a shortcut, clamping to a range, or both.

    Args:
        conv: Nothing but the BatchNorm reads its output.
        norm: Nothing but what follows reads its output.
        clamp: The range; ReLU clamps to 0 and infinity.
    """

    def __init__(self, conv: nn.Module, norm: Norm, clamp: Range) -> None:
        super().__init__()
        self.conv: Any = conv
        self.norm, self.clamp = norm, clamp

    def forward(self, inputs: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Outputs of the whole chain; a shortcut has their shape."""
        if self.norm.folded and self.norm.finite and (shortcut is None or self._can_add(inputs)):
            return convolved(self.conv, self._at_once, inputs, *(() if shortcut is None else (shortcut,)))
        outputs: Tensor = self.norm(convolved(self.conv, self.conv, inputs))  # nobody else's, and may be written to
        if shortcut is not None:
            outputs += shortcut
        if self.clamp == _ALL:
            return outputs
        return _clamp_numbers(outputs, self.clamp) if may_halt() else outputs.clamp_(*self.clamp)

    def _can_add(self, inputs: Tensor) -> bool:
        """Whether oneDNN has a kernel for it; PyTorch's own detour, for others, knows no half precision."""
        unmistakable = inputs.ndim == 4 and min(inputs.shape[1:]) > 1  # else, other layouts have the same strides
        return self.conv.groups == 1 and unmistakable and inputs.is_contiguous(memory_format=torch.channels_last)

    def _at_once(self, inputs: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """By oneDNN, which makes zeros of what is not a number."""
        conv, convolve = self.conv, torch.ops.mkldnn._convolution_pointwise
        arguments = (conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups)
        clamp: tuple[Any, ...] = ("hardtanh", self.clamp, "")
        if self.clamp in (_RELU, _ALL):
            clamp = ("relu" if self.clamp == _RELU else None, (), "")
        if shortcut is None:
            return convolve(inputs, *arguments, *clamp)  # type: ignore[no-any-return]
        return convolve.binary(inputs, shortcut, *arguments, "add", 1.0, *clamp)  # type: ignore[no-any-return]


def _clamp_numbers(values: Tensor, clamp: Range) -> Tensor:
    """Clamps in place what is a number; BatchNorm's statistics show what is none.

    PyTorch's kernel for bfloat16 takes four times as long as the one for integers. As these, bits of numbers from 0 on
    are in the same order, and those of others are negative.
    """
    low, high = clamp
    if values.dtype is not torch.bfloat16 or low != 0:
        return values.clamp_(low, high)
    values.view(torch.int16).clamp_(0, int(torch.tensor(high, dtype=torch.bfloat16).view(torch.int16)))
    return values


def fused(network: nn.Module, folds: Collection[tuple[nn.Module, Norm]]) -> GraphModule:
    """A network as `torch.fx` traces it, made of the same layers, with as many fused convolutions as can be.

    Tracing loses what is no operation on tensors (contexts such as `torch.autocast`) and keeps numbers that the forward
    reads from its layers: compare outputs before use, also of a pruned network.

    Args:
        network: A network in evaluation mode.
        folds: Layers, and the BatchNorm that alone reads their output.

    Raises:
        TypeError: What is there cannot be run in another form.
        Exception: Of any kind, from a forward that `torch.fx` cannot trace.
    """
    traced = copy.deepcopy(network)  # its forward may leave something behind
    graph = _Tracer().trace(traced)
    parts = _parts(network, traced, [node.target for node in graph.nodes if node.op in _REFERENCES])
    pairs = [pair for pair in folds if _has_a_kernel(pair[0]) and all(map(_is_plain, pair))]
    for node in list(reversed(graph.nodes)):  # of two convolutions that are added up, the later one adds the other's
        chain = _chain(node, parts)
        if chain is not None and (conv := parts[chain.nodes[0].target], norm := parts[node.target]) in pairs:
            name = f"fused{len(parts)}"
            parts[name] = FusedConv(conv, norm, chain.clamp)
            with graph.inserting_before(chain.nodes[-1]):
                inputs = (chain.nodes[0].args[0], *chain.shortcut)
                chain.nodes[-1].replace_all_uses_with(graph.call_module(name, inputs))
            for done in reversed(chain.nodes):
                graph.erase_node(done)
    return GraphModule(parts, graph).eval()


class _Tracer(Tracer):
    """Takes as a whole what torch takes as a whole, and what has tensors of its own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        owned = (*m.parameters(recurse=False), *m.buffers(recurse=False))
        return isinstance(m, Norm) or bool(owned) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class _Chain:
    """What can be fused.

    Attributes:
        nodes: Convolution, BatchNorm, and what follows; nothing but the next one reads each.
        shortcut: What is added, if anything.
        clamp: What the outputs are clamped to.
    """

    nodes: Sequence[Node]
    shortcut: Sequence[Node]
    clamp: Range


def _chain(norm: Node, parts: Mapping[Any, Any]) -> _Chain | None:
    """The chain of a node that is a BatchNorm, if there is one."""
    conv = norm.args[0] if norm.op == "call_module" and isinstance(parts[norm.target], Norm) else None
    if not (isinstance(conv, Node) and conv.op == "call_module" and len(conv.args) == len(conv.users) == 1):
        return None
    nodes, shortcut = [conv, norm], []
    follower = _only_reader(norm)
    if follower is not None and (shortcut := _added(follower, norm)):
        nodes.append(follower)
        follower = _only_reader(follower)
    clamp = _clamp(follower, parts)
    if follower is not None and (clamp == _RELU or (clamp != _ALL and not shortcut)):  # sums take ReLU only
        nodes.append(follower)
    else:
        clamp = _ALL
    return _Chain(nodes, shortcut, clamp) if len(nodes) > 2 else None


def _only_reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added(node: Node, summand: Node) -> list[Node]:
    """What a node adds to a summand: one other node, or none if it does something else."""
    if node.op != "call_function" or node.target not in _ADDITIONS or node.kwargs or len(node.args) != 2:
        return []
    first, second = node.args
    if first is summand and second is not summand and isinstance(second, Node):
        return [second]
    if second is summand and isinstance(first, Node) and node.target is not operator.iadd:  # it changes the first
        return [first]
    return []


def _clamp(node: Node | None, parts: Mapping[Any, Any]) -> Range:
    """The range that a node clamps to: all numbers if it does something else."""
    if node is None or len(node.args) != 1:
        return _ALL
    if node.op != "call_module":
        return _CLAMPS.get(node.target, _ALL)
    module = parts[node.target]
    if type(module) is nn.ReLU and _is_plain(module):
        return _RELU
    if type(module) in (nn.ReLU6, nn.Hardtanh) and _is_plain(module):
        return module.min_val, module.max_val
    return _ALL


def _parts(network: nn.Module, traced: nn.Module, names: Collection[Any]) -> dict[Any, Any]:
    """The layers of a network by name, its own tensors, and the constants that were met when it was traced."""
    modules = dict(network.named_modules())
    own = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    if found := sorted(name for name in own & set(names) if "." in name):
        raise TypeError(f"{found[0]} is read without its layer, which may be given a bias")
    if hooked := [name for name, module in modules.items() if name not in names and not _is_plain(module)]:
        raise TypeError(f"hooks of {hooked[0] or 'the network'} would not be called")
    return {
        name: modules[name] if name in modules else attrgetter(name)(network if name in own else traced)
        for name in names
    }


def _is_plain(module: nn.Module) -> bool:
    """Whether calling a module does no more than its forward."""
    return not (module._forward_hooks or module._forward_pre_hooks)


def _has_a_kernel(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d | nn.Conv3d) or type(layer) not in (nn.Conv2d, nn.Conv3d):
        return False
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
