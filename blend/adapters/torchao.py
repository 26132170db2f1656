"""A blended criterion in the structured sparsifier of torchao, which masks filters and then makes the network smaller.

It finds chains of layers in a network traced by ``torch.fx`` (a convolution, an activation, the next convolution) and
knows nothing of BatchNorm nor of coupling. So a chain is described here for each group of channels that has one; the
channels of all other groups stay, and the reduction is reached without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node, symbolic_trace
from torch.fx.proxy import TraceError
from torch.nn.utils import parametrize
from torchao.prototype.sparsity.pruner import BaseStructuredSparsifier
from torchao.prototype.sparsity.pruner.prune_functions import prune_conv2d, prune_linear

from blend.blended import BlendedCriterion
from blend.budget import CostModel, floors, keep_mask
from blend.errors import InputError, described
from criteria.graph import Axis, ChannelGraph, ChannelGroup
from criteria.layers import refit, unit_of

Pattern = tuple[Any, ...]
_SHRINK: dict[type[nn.Module], Callable[[nn.Module], None]] = {nn.Conv2d: prune_conv2d, nn.Linear: prune_linear}


class BlendedSparsifier(BaseStructuredSparsifier):
    """A sparsifier whose masks are those of a blend, by its frozen scores.

    ``prepare(model, sparsifier.layers)`` and ``step()`` mask, ``prune()`` returns the smaller network. Masks are of
    filters only: a BatchNorm behind one goes on putting out its shift for a masked channel, and that goes with
    ``prune()``. So recalibrate (`blend.recalibrate`) or train the smaller network.

    Args:
        criterion: The blend, or the path of its file.
        model: The network that is going to be pruned.
        example_input: For looking at it.
        reduction: The share of its cost to remove; the searched one by default.

    Attributes:
        keep: One truth value per channel of the network's graph.
        layers: The configuration for ``prepare``: the layers whose filters go.
        left_alone: Names of the groups of channels that it cannot prune.

    Raises:
        InputError: If the blend belongs to another network, that cannot be traced, or the reduction cannot be reached
            with the groups that can be pruned.
    """

    def __init__(
        self,
        criterion: BlendedCriterion | str | Path,
        model: nn.Module,
        example_input: Tensor,
        reduction: float | None = None,
    ) -> None:
        blend = BlendedCriterion.of(criterion)
        self._graph = graph = ChannelGraph.build(model, example_input, ignore=blend.task.get("ignore", ()))
        frozen = blend.frozen_scores(graph)
        blend.network.warn_of_other_weights(model)
        blend.warn_of_no_compensation()
        chains = dict(_chains(model, graph))
        self.left_alone = tuple(name for name in frozen if name not in chains)
        scores = {name: values for name, values in frozen.items() if name in chains}
        share, cost = blend.reduction if reduction is None else reduction, CostModel(graph, blend.cost)
        try:
            self.keep = keep_mask(graph, scores, share, cost, floors(graph, blend.floor))
        except InputError as error:
            raise InputError(
                f"{error}; {len(self.left_alone)} of {len(frozen)} groups have to be left alone, as torchao shrinks "
                "Conv2d and Linear layers only, one that makes channels and one that reads them"
            ) from error
        self._kept = {group.name: torch.from_numpy(part.copy()) for group, part in graph.split(self.keep)}
        cut = [name for name in chains if not self._kept[name].all()]
        self._names: dict[Any, str] = {}
        self.layers = [{"tensor_fqn": f"{name}.weight"} for name in cut]
        super().__init__({}, patterns={chains[name]: self._shrink for name in cut})

    def prepare(self, model: nn.Module, config: list[dict[str, Any]] | None = None) -> None:
        """Attaches masks that keep everything; those of ``layers`` by default."""
        self._names = {module: name for name, module in model.named_modules()}
        super().prepare(model, self.layers if config is None else config)

    def update_mask(self, module: nn.Module, tensor_name: str, tensor_fqn: str, **_: Any) -> None:
        """What stays of a layer's filters."""
        mask = _parametrizations(module, tensor_name)[0].mask
        mask.data = self._kept[tensor_fqn.rpartition(".")[0]].to(mask.device)

    def _shrink(self, *block: Any) -> None:
        """Removes the masked filters of a block's first layer, and their channels from all that follows in it."""
        first, *rest = block
        group = self._names[first]
        _SHRINK[parametrize.type_before_parametrizations(first)](first)
        for module in (part for part in rest if isinstance(part, nn.Module)):
            unit = unit_of(module)
            for axis in self._axes(group, self._names[module]):
                self._slice(module, axis)
            refit(module, unit)

    def _axes(self, group: str, layer: str) -> Iterator[Axis]:
        """Where a layer holds the channels of a group."""
        where = self._graph.slices[group]
        for axis in self._graph.axes:
            mine = (axis.owner >= where.start) & (axis.owner < where.stop)
            if axis.tensor.rpartition(".")[0] == layer and mine.any():
                yield axis

    def _slice(self, module: nn.Module, axis: Axis) -> None:
        name, owner = axis.tensor.rpartition(".")[2], module
        if parametrize.is_parametrized(module, name):  # it is the first of the next block
            name, owner = "original", _parametrizations(module, name)
        tensor = getattr(owner, name)
        positions = torch.from_numpy(np.flatnonzero(np.append(self.keep, True)[axis.owner])).to(tensor.device)
        sliced = tensor.detach().index_select(axis.dim, positions)
        setattr(owner, name, nn.Parameter(sliced, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else sliced)


def _parametrizations(module: nn.Module, tensor: str) -> Any:
    found: Any = module.parametrizations
    return found[tensor]


def _chains(model: nn.Module, graph: ChannelGraph) -> Iterator[tuple[str, Pattern]]:
    """For each group that is made by one layer and read by one other, what lies on the way, as torchao matches it.

    Raises:
        InputError: The network cannot be traced.
    """
    try:
        nodes = list(symbolic_trace(model).graph.nodes)
    except (TraceError, TypeError, RuntimeError) as error:
        raise InputError(f"torchao prunes what torch.fx can trace, and not this network: {described(error)}") from error
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    modules = dict(model.named_modules())
    for group in graph.groups:
        if len(group.producers) != 1 or len(group.consumers) != 1 or not _is_plain(modules, group):
            continue
        first, last = group.producers[0].layer, group.consumers[0].layer
        start = next((node for node in nodes if node.target == first), None)  # none inside what torch.fx does not enter
        way = [] if start is None else _way(start, last)
        if way and all(calls[node.target] == 1 for node in way if node.op == "call_module"):
            yield group.name, tuple(type(modules[n.target]) if n.op == "call_module" else n.target for n in way)


def _is_plain(modules: Mapping[str, nn.Module], group: ChannelGroup) -> bool:
    """Whether both layers are of a kind that torchao shrinks, and hold nothing but the group's channels."""
    ends = [modules[member.layer] for member in (*group.producers, *group.consumers)]
    kinds = all(type(layer) in _SHRINK and getattr(layer, "groups", 1) == 1 for layer in ends)
    alone = (group.consumers[0].channels >= 0).all()
    return kinds and bool(alone) and np.array_equal(group.producers[0].channels, np.arange(group.size))


def _way(first: Node, last: str) -> list[Node]:
    """All calls from one layer to another, if nothing branches off nor joins between them; else none."""
    way = [first]
    while way[-1].target != last:
        users = list(way[-1].users)
        if len(users) != 1 or len(users[0].all_input_nodes) != 1 or users[0].op == "output":
            return []
        way.append(users[0])
    return way
