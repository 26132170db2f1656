"""The sweep's view of the layers that make channels: filters, BatchNorm, and derivatives of the loss."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from criteria.curvature import diagonals, gradients_of, signs
from criteria.errors import CriterionError, CriterionValueError
from criteria.flow import flow_gradients
from criteria.graph import ChannelGraph, ChannelGroup, Member
from criteria.streaming import Mean, hooks, rows, widened
from criteria.views import GroupStats, need_parameter

_GATES = frozenset({"gate_gradient", "example_gate_gradient", "gate_curvature", "activation_gradient"})
_SECOND = frozenset({"hessian_diagonal", "hessian_gradient", "gate_curvature"})
_FILTERS = frozenset({"weight_gradient", "weight_gradient_magnitude", "hessian_diagonal", "hessian_gradient"})


class Producers:
    """Derivatives with respect to filters and to gates on the producers' outputs, averaged over batches.

    Nothing of the network is differentiated itself: `stand_ins` are detached, to be called with instead.

    Args:
        model: the network.
        graph: its channel groups.
        needs: names from `NEEDS`.
        seed: of the Hessian's probes.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, needs: frozenset[str], seed: int) -> None:
        """Choose what to differentiate by."""
        self._needs = frozenset(need.partition(":")[0] for need in needs)
        self.active = bool(self._needs & (_GATES | _FILTERS))
        self._model, self._seed, self._done = model, seed, 0
        self._probes = {need: need_parameter(needs, need, "probes") for need in ("hessian_diagonal", "gate_curvature")}
        self._members = [(group, member, *rows(member)) for group in graph.groups for member in group.producers]
        self._layers = {member.layer: member for _, member, *_ in self._members}
        self._means: defaultdict[tuple[str, ...], Mean] = defaultdict(Mean)
        self._gates: dict[str, Tensor] = {}
        self._folded: set[str] = set()
        self._flow: dict[str, Tensor] = {}
        self._stand_ins = {id(parameter): parameter.detach() for parameter in model.parameters()}
        differentiated = self._layers if self._needs & _FILTERS else {}
        self._filters = {layer: self._differentiable(layer) for layer in differentiated}

    def _differentiable(self, layer: str) -> Tensor:
        stand_in = self._stand_ins.get(id(_module(self._model, layer).weight))
        if stand_in is None:
            raise CriterionError(f"the weight of {layer!r} must be a parameter to have a gradient, got a computed one")
        return stand_in.requires_grad_()

    def stand_ins(self) -> dict[int, Tensor]:
        """Those for all parameters, and copies of all buffers, which a forward pass might write to, by their ids."""
        return self._stand_ins | {id(buffer): buffer.clone() for buffer in self._model.buffers()}

    def let_flow(self, inputs: Tensor) -> None:
        """Measure the synaptic flow, for which a batch's shape is all that matters."""
        self._flow = flow_gradients(self._model, list(self._layers), inputs)

    def differentiable(self) -> AbstractContextManager[None]:
        """A context for the forward pass, in which attention has second derivatives: its fused kernels have none."""
        return sdpa_kernel(SDPBackend.MATH) if self._needs & _SECOND else nullcontext()

    def hooked(self) -> AbstractContextManager[None]:
        """A context in which every producer's output, after its BatchNorm, is multiplied by its gate."""
        return hooks(self._hooks())

    def _hooks(self) -> Iterator[RemovableHandle]:
        for layer, member in self._layers.items() if self._needs & _GATES else ():
            yield _module(self._model, member.norm or layer).register_forward_hook(partial(self._gate, layer))

    def _gate(self, layer: str, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """The output times its gates; the first of them is on all of it where it does not keep the examples apart.

        Frames folded into the batch meet again: a gate of its own on each would miss what they do to one another.
        """
        gate = self._gates[layer]
        if len(output) != len(gate):
            self._folded.add(layer)
            gate = gate[:1]
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
        leaves = [*self._filters.values(), *self._gates.values()]
        gradients = gradients_of([loss], leaves, create_graph=bool(self._needs & _SECOND))
        of_filters, of_gates = gradients[: len(self._filters)], gradients[len(self._filters) :]
        self._add_filters(of_filters, examples)
        self._add_gates(dict(zip(self._gates, of_gates, strict=True)), examples)
        if self._needs & {"hessian_diagonal"}:
            self._add_diagonals(of_filters, examples)
        if self._needs & {"gate_curvature"}:
            self._add_gate_curvature(of_gates, examples)
        self._done += 1

    def _add_filters(self, gradients: Sequence[Tensor], examples: int) -> None:
        """First derivatives by filters, and what becomes of them one step along themselves."""
        products: Sequence[Tensor] = ()
        if "hessian_gradient" in self._needs:
            along = [gradient.detach() for gradient in gradients]
            products = gradients_of(gradients, list(self._filters.values()), along)
        for layer, gradient in zip(self._filters, gradients, strict=True):
            if "weight_gradient" in self._needs:
                self._means["weight_gradient", layer].add(gradient, examples)
            if "weight_gradient_magnitude" in self._needs:
                self._means["weight_gradient_magnitude", layer].add(gradient.detach().abs(), examples)
        for layer, product in zip(self._filters, products, strict=True) if products else ():
            self._means["hessian_gradient", layer].add(product, examples)

    def _add_gates(self, gradients: dict[str, Tensor], examples: int) -> None:
        asked = self._needs & {"gate_gradient", "example_gate_gradient"}
        for group, member, _, positions in self._members if asked else ():
            of_channel = gradients[member.layer].detach()[:, positions].sum(-1)  # all of a channel's positions as one
            of_example = of_channel * examples  # L is the mean of the L_n
            self._means["gate", group.name, member.layer].add(of_channel.sum(0).square(), examples)
            self._means["example_gate", group.name, member.layer].add(of_example.square().mean(0), examples)

    def _add_diagonals(self, gradients: Sequence[Tensor], examples: int) -> None:
        """Probes over all filters at once: independent of other probes, and of what else is collected."""
        filters, generator = list(self._filters.values()), self._generator(0)
        wanted = self._probes["hessian_diagonal"]

        def draw() -> list[Tensor]:
            return [signs(f.shape, generator, f) for f in filters]

        for probes, estimate in diagonals(gradients, filters, draw, set(wanted.values())):
            for need in (need for need, count in wanted.items() if count == probes):
                for layer, diagonal in zip(self._filters, estimate, strict=True):
                    self._means[need, layer].add(diagonal, examples)

    def _add_gate_curvature(self, gradients: Sequence[Tensor], examples: int) -> None:
        """Probes with a sign for each example and channel, as examples do not see one another: N examples, N probes."""
        generator, wanted = self._generator(1), self._probes["gate_curvature"]

        def draw() -> list[Tensor]:
            probe = {layer: torch.zeros_like(gate) for layer, gate in self._gates.items()}
            for _, member, channels, positions in self._members:
                gate = probe[member.layer]
                sign = signs((examples, len(channels)), generator, gate)
                gate[:, positions] = sign[:, :, None].expand(-1, -1, positions.shape[1])
            return list(probe.values())

        slopes = dict(zip(self._gates, gradients, strict=True))
        for probes, estimate in diagonals(gradients, list(self._gates.values()), draw, set(wanted.values())):
            of_layer = dict(zip(self._gates, estimate, strict=True))
            for need in (need for need, count in wanted.items() if count == probes):
                for group, member, _, positions in self._members:
                    slope, bend = (v[member.layer].detach()[:, positions].sum((0, 2)) for v in (slopes, of_layer))
                    self._means[need, group.name, member.layer].add((bend / 2 - slope).square(), examples)

    def _generator(self, stream: int) -> torch.Generator:
        """Random numbers of this batch, whatever was drawn before."""
        state = np.random.SeedSequence([abs(self._seed), stream, self._done]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))

    def views(self, group: ChannelGroup) -> list[GroupStats]:
        """The group's views by the layers that make its channels, in the graph's order."""
        return [self._view(*found) for found in self._members if found[0] is group]

    def _view(self, group: ChannelGroup, member: Member, channels: Any, positions: Tensor) -> GroupStats:
        layer = _module(self._model, member.layer)
        norm = _module(self._model, member.norm) if member.norm else None
        scaled = norm is not None and norm.weight is not None

        def filters(values: Tensor | None) -> Tensor | None:
            return None if values is None else widened(_filters(layer, values)[positions].flatten(1))

        def mean(*key: str) -> Tensor | None:
            return self._means[key].value

        of_example = mean("example_gate", group.name, member.layer)
        probed: dict[str, Mapping[str, Tensor]] = {}
        for need in self._probes["hessian_diagonal"]:
            if (diagonal := filters(mean(need, member.layer))) is not None:
                probed[need] = {"hessian_diagonal": diagonal}
        for need in self._probes["gate_curvature"]:
            if (change := mean(need, group.name, member.layer)) is not None:
                probed[need] = {"gate_change_squared": change}
        return GroupStats(
            group=group.name,
            layer=member.layer,
            size=group.size,
            channels=channels if len(channels) < group.size else None,
            seed=self._seed,
            weight=filters(layer.weight.detach()),
            gamma=widened(norm.weight.detach()[positions]) if norm is not None and scaled else None,
            beta=widened(norm.bias.detach()[positions]) if norm is not None and scaled else None,
            weight_gradient=filters(mean("weight_gradient", member.layer)),
            weight_gradient_magnitude=filters(mean("weight_gradient_magnitude", member.layer)),
            gate_gradient_squared=mean("gate", group.name, member.layer),
            example_gate_gradient_squared=None if member.layer in self._folded else of_example,
            hessian_gradient=filters(mean("hessian_gradient", member.layer)),
            flow_gradient=filters(self._flow.get(member.layer)),
            hessian_diagonal=probed.pop("hessian_diagonal", {}).get("hessian_diagonal"),
            gate_change_squared=probed.pop("gate_curvature", {}).get("gate_change_squared"),
            variants=probed,
        )


def _module(model: nn.Module, name: str) -> Any:
    """A submodule, whose attributes torch types too loosely to be used otherwise."""
    return model.get_submodule(name)


def _filters(layer: nn.Module, values: Tensor) -> Tensor:
    """Values laid out like a layer's weight as (output channels, fan_in)."""
    if isinstance(layer, _ConvTransposeNd):  # (in, out / groups, ...), the inputs group by group
        values = values.reshape(layer.groups, -1, *values.shape[1:]).transpose(1, 2).flatten(0, 1)
    return values.flatten(1)
