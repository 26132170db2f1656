"""The sweep's view of the layers that make channels: filters, BatchNorm, and derivatives of the loss."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from criteria.errors import CriterionError, CriterionValueError
from criteria.graph import ChannelGraph, ChannelGroup, Member
from criteria.streaming import Mean, hooks, rows, widened
from criteria.views import GroupStats

_GATES = frozenset({"gate_gradient", "example_gate_gradient"})
_FILTERS = frozenset({"weight_gradient", "hessian_diagonal"})


class Producers:
    """Derivatives with respect to filters and to gates on the producers' outputs, averaged over batches.

    Nothing of the network is differentiated itself: `state` has detached stand-ins to be called with instead.

    Args:
        model: the network.
        graph: its channel groups.
        needs: names from `NEEDS`.
        seed: of the Hessian's probes.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, needs: frozenset[str], seed: int) -> None:
        """Choose what to differentiate by."""
        self.active = bool(needs & (_GATES | _FILTERS))
        self._model, self._needs, self._seed = model, needs, seed
        self._members = [(group, member, *rows(member)) for group in graph.groups for member in group.producers]
        self._layers = {member.layer: member for _, member, *_ in self._members}
        self._probes = torch.Generator().manual_seed(seed)
        self._means: defaultdict[tuple[str, ...], Mean] = defaultdict(Mean)
        self._gates: dict[str, Tensor] = {}
        self._stand_ins = {id(parameter): parameter.detach() for parameter in model.parameters()}
        self._filters = {layer: self._differentiable(layer) for layer in self._layers} if needs & _FILTERS else {}

    def _differentiable(self, layer: str) -> Tensor:
        stand_in = self._stand_ins.get(id(_module(self._model, layer).weight))
        if stand_in is None:
            raise CriterionError(f"the weight of {layer!r} must be a parameter to have a gradient, got a computed one")
        return stand_in.requires_grad_()

    def state(self) -> dict[str, Tensor]:
        """Stand-ins for all parameters, and copies of all buffers, which a forward pass might write to."""
        parameters = {name: self._stand_ins[id(parameter)] for name, parameter in self._model.named_parameters()}
        return parameters | {name: buffer.clone() for name, buffer in self._model.named_buffers()}

    def hooked(self) -> AbstractContextManager[None]:
        """A context in which every producer's output, after its BatchNorm, is multiplied by its gate."""
        return hooks(self._hooks())

    def _hooks(self) -> Iterator[RemovableHandle]:
        for layer, member in self._layers.items() if self._needs & _GATES else ():
            yield _module(self._model, member.norm or layer).register_forward_hook(partial(self._gate, layer))

    def _gate(self, layer: str, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        gate = self._gates[layer]
        if len(output) != len(gate):
            rule = f"the output of {layer!r} must keep the batch's {len(gate)} examples apart"
            raise CriterionError(f"{rule} for a gate on each, got {len(output)} rows")
        ones = [1] * (output.ndim - 2)
        linear = isinstance(_module(self._model, layer), nn.Linear)
        shape = [len(gate), *ones, gate.shape[1]] if linear else [*gate.shape, *ones]
        return output * gate.view(shape).to(output.dtype)

    def begin(self, examples: int) -> None:
        """Make fresh gates for a batch: one for each example and output position of a producer."""
        for layer, member in self._layers.items() if self._needs & _GATES else ():
            like = widened(_module(self._model, layer).weight.detach()[:0])
            self._gates[layer] = like.new_ones(examples, len(member.channels)).requires_grad_()

    def add(self, loss: Tensor, examples: int) -> None:
        """Add a batch, given its mean loss.

        Raises:
            CriterionValueError: the loss is not a finite scalar.
        """
        if loss.ndim or not loss.isfinite():
            raise CriterionValueError(f"loss must be a finite scalar, got {loss.detach()}")
        second = "hessian_diagonal" in self._needs
        leaves = [*self._filters.values(), *self._gates.values()]
        gradients = _gradients([loss], leaves, create_graph=second)
        of_filters, of_gates = gradients[: len(self._filters)], gradients[len(self._filters) :]
        for layer, gradient in zip(self._filters, of_filters, strict=True):
            self._means["weight_gradient", layer].add(gradient, examples)
        for layer, diagonal in zip(self._filters, self._curvature(of_filters), strict=True) if second else ():
            self._means["hessian_diagonal", layer].add(diagonal, examples)
        self._add_gates(dict(zip(self._gates, of_gates, strict=True)), examples)

    def _add_gates(self, gradients: dict[str, Tensor], examples: int) -> None:
        for group, member, _, positions in self._members if gradients else ():
            of_channel = gradients[member.layer].detach()[:, positions].sum(-1)  # all of a channel's positions as one
            of_example = of_channel * examples  # L is the mean of the L_n
            self._means["gate", group.name, member.layer].add(of_channel.sum(0).square(), examples)
            self._means["example_gate", group.name, member.layer].add(of_example.square().mean(0), examples)

    def _curvature(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """One Rademacher probe v over all filters at once: v ⊙ Hv, whose expectation is the diagonal of H."""
        filters = list(self._filters.values())
        signs = [torch.randint(0, 2, f.shape, generator=self._probes).mul_(2).sub_(1) for f in filters]
        probes = [sign.to(f.device, f.dtype) for sign, f in zip(signs, filters, strict=True)]
        return [v * hv for v, hv in zip(probes, _gradients(gradients, filters, probes), strict=True)]

    def views(self, group: ChannelGroup) -> list[GroupStats]:
        """The group's views by the layers that make its channels, in the graph's order."""
        return [self._view(*found) for found in self._members if found[0] is group]

    def _view(self, group: ChannelGroup, member: Member, channels: Any, positions: Tensor) -> GroupStats:
        layer = _module(self._model, member.layer)
        norm = _module(self._model, member.norm) if member.norm else None
        scaled = norm is not None and norm.weight is not None and positions.shape[1] == 1

        def filters(values: Tensor | None) -> Tensor | None:
            return None if values is None else widened(_filters(layer, values)[positions].flatten(1))

        return GroupStats(
            group=group.name,
            layer=member.layer,
            size=group.size,
            channels=channels if len(channels) < group.size else None,
            seed=self._seed,
            weight=filters(layer.weight.detach()),
            gamma=widened(norm.weight.detach()[positions[:, 0]]) if norm is not None and scaled else None,
            beta=widened(norm.bias.detach()[positions[:, 0]]) if norm is not None and scaled else None,
            weight_gradient=filters(self._means["weight_gradient", member.layer].value),
            gate_gradient_squared=self._means["gate", group.name, member.layer].value,
            example_gate_gradient_squared=self._means["example_gate", group.name, member.layer].value,
            hessian_diagonal=filters(self._means["hessian_diagonal", member.layer].value),
        )


def _module(model: nn.Module, name: str) -> Any:
    """A submodule, whose attributes torch types too loosely to be used otherwise."""
    return model.get_submodule(name)


def _filters(layer: nn.Module, values: Tensor) -> Tensor:
    """Values laid out like a layer's weight as (output channels, fan_in)."""
    if isinstance(layer, _ConvTransposeNd):  # (in, out / groups, ...), the inputs group by group
        values = values.reshape(layer.groups, -1, *values.shape[1:]).transpose(1, 2).flatten(0, 1)
    return values.flatten(1)


def _gradients(
    outputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    directions: Sequence[Tensor] | None = None,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """Gradients of the outputs, weighted by directions, that are zero where nothing is reached."""
    reached = [index for index, output in enumerate(outputs) if output.requires_grad]
    if not reached or not leaves:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(
        [outputs[index] for index in reached],
        list(leaves),
        None if directions is None else [directions[index] for index in reached],
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
