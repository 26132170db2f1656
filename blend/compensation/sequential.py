"""Sequential compensation: each consumer in its turn is refitted to its original output, from what really reaches it.

The unpruned and the pruned network go through the calibration data side by side, every batch in a greenlet of its own
that halts at each consumer until the others have come that far; then the consumer is corrected, and all go on with it.
BatchNorms are recalibrated on the way if they are to be in the end.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from blend.compensation.consumer_inputs import blocks_of, readings, weight_of, with_statistics
from blend.compensation.correction import RIDGE, Compensation, Corrected, ridge_solution
from blend.progress import progress
from blend.pruning.halting import HaltingPass, halt, halting_passes
from blend.pruning.norms import batch_statistics, pooled
from blend.pruning.slicing import PrunedNetwork
from criteria.graph import ChannelGraph, Keep
from criteria.layers import BATCH_NORM
from criteria.moments import unfolded
from criteria.streaming import hooks, widened

_CHUNK = 2**24
"""Unfolded numbers held at a time."""


@torch.no_grad()
def sequential(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Keep,
    batches: Sequence[Tensor],
    absorbed: frozenset[str] = frozenset(),
    ridge: float = RIDGE,
    *,
    recalibrated: bool = False,
) -> tuple[Corrected, list[str]]:
    r"""Corrects every consumer of a candidate, one after the other in forward order.

    With x what a consumer reads in the network pruned and corrected so far, and y its output in the unpruned one, the
    correction of its weights W is :math:`(\Sigma_{yx} - W \Sigma_{xx}) (\Sigma_{xx} + \lambda I)^{-1}`; its bias takes
    the difference of the means.

    Args:
        model: The unpruned network.
        graph: Its channel graph.
        keep: The channels that stay.
        batches: Inputs, unlabelled, all of them in memory at every layer.
        absorbed: As for `Compensation`.
        ridge: λ over the mean variance of x.
        recalibrated: Whether BatchNorms will be recalibrated on these inputs: each is then at once, so that what comes
            after is refitted to what it is going to read. Otherwise they keep their statistics, as do those that a
            forward pass comes to several times.

    Returns:
        The corrected tensors, and notes on what could not be done in this way.

    Raises:
        RuntimeError: Which consumers are passed depends on the inputs.
    """
    found, notes = readings(model, graph, "sequential")
    start = Compensation(
        model, with_statistics(model, [one for one in found if one.by_channel], batches), absorbed, ridge
    )(keep)
    names = dict.fromkeys(one.layer for one in found if not one.by_channel)
    pruned = PrunedNetwork(model, graph)
    shell, kept = pruned.prune(keep, start.tensors), np.append(keep, True)
    outputs = {axis.tensor: torch.from_numpy(kept[axis.owner]) for axis in graph.axes if not axis.consumes}
    found_norms = {n: m for n, m in shell.named_modules() if isinstance(m, BATCH_NORM) and m.track_running_stats}
    norms: dict[str, Any] = _passed_once(shell, found_norms, batches[0]) if recalibrated else {}
    singular = list(start.singular)

    def correct(name: str, read: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        layer: Any = shell.get_submodule(name)
        lack, unique = _refit(layer, read, made, outputs.get(f"{name}.weight"), ridge)
        if layer.bias is not None:
            layer.bias.data = (layer.bias + lack).to(layer.bias)
        elif name not in absorbed:
            layer.bias = nn.Parameter(lack.to(layer.weight), requires_grad=False)
        singular.extend([] if unique else [name])
        shown.advance()

    with progress("refitting consumers", len(names)) as shown:
        _walk(copy.deepcopy(model).eval(), shell, set(names), batches, correct, norms)
    corrected = dict(start.tensors)
    for name in names:
        layer: Any = shell.get_submodule(name)
        corrected[f"{name}.weight"] = _expanded(f"{name}.weight", layer.weight, graph, kept)
        if layer.bias is not None:
            corrected[f"{name}.bias"] = _expanded(f"{name}.bias", layer.bias, graph, kept)
    return Corrected(corrected, tuple(singular)), notes


def _passed_once(network: nn.Module, norms: Mapping[str, Any], inputs: Tensor) -> dict[str, Any]:
    """The norms that a forward pass comes to once: statistics of all passes are not known at the first of several."""
    passes: Counter[str] = Counter()
    counted = ((norm, lambda *_, name=name: passes.update([name])) for name, norm in norms.items())
    counting = [norm.register_forward_pre_hook(count) for norm, count in counted]
    with hooks(counting), torch.no_grad():
        network(inputs)
    return {name: norm for name, norm in norms.items() if passes[name] == 1}


def _walk(
    original: nn.Module,
    pruned: nn.Module,
    names: set[str],
    batches: Sequence[Tensor],
    correct: Callable[[str, Sequence[Tensor], Sequence[Tensor]], None],
    norms: Mapping[str, Any],
) -> None:
    """Leads both networks from consumer to consumer; calls what corrects with what they read and what they made.

    A layer that is passed several times is corrected at its first pass. On its way, the pruned network also halts at
    the BatchNorms, which get the statistics of all batches together.
    """
    waiting = {*names, *norms}

    def halt_at(name: str, tensor: Tensor) -> None:
        if name in waiting:
            halt((name, tensor.detach()))

    def handles() -> Iterator[RemovableHandle]:
        for name in names:
            layer = original.get_submodule(name)
            yield layer.register_forward_hook(lambda _, args, made, name=name: halt_at(name, made))
        for name in waiting:
            yield pruned.get_submodule(name).register_forward_pre_hook(
                lambda _, args, kwargs, name=name: halt_at(name, args[0] if args else kwargs["input"]), with_kwargs=True
            )

    with (
        hooks(list(handles())),
        halting_passes(original, batches) as first,
        halting_passes(pruned, batches) as second,
    ):
        here, made = _next(first, batches)
        there, read = _next(second, batches)
        while there is not None:
            waiting.discard(there)
            if there in norms:
                _recalibrate(norms[there], read)
            elif there == here:
                correct(there, read, made)
                here, made = _next(first)
            else:
                raise RuntimeError(f"the pruned network must come to '{here}' as the unpruned one does, got '{there}'")
            there, read = _next(second)


def _next(
    runs: Sequence[HaltingPass], batches: Sequence[Tensor] | None = None
) -> tuple[str | None, list[Tensor]]:
    """Lets all runs go on to where they halt next: the layer's name and what they bring; None at the end."""
    values: Sequence[Tensor | None] = batches or [None] * len(runs)
    halts = [run.go_on(value) for run, value in zip(runs, values, strict=True)]
    if all(run.ended for run in runs):
        return None, []
    if any(run.ended for run in runs) or len({name for name, _ in halts}) > 1:
        raise RuntimeError("which layers a forward pass visits must not depend on the inputs")
    return halts[0][0], [tensor for _, tensor in halts]


def _recalibrate(norm: Any, read: Sequence[Tensor]) -> None:
    """Gives a BatchNorm the statistics of what reaches it; the variance is unbiased, as PyTorch keeps it."""
    mean, variance, count = pooled([batch_statistics(inputs) for inputs in read])
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance * (count / max(count - 1, 1)))


def _refit(
    layer: Any, read: Sequence[Tensor], made: Sequence[Tensor], outputs: Tensor | None, ridge: float
) -> tuple[Tensor, bool]:
    """Corrects a layer's weights in place; returns what its outputs lack on average, and whether this was unique.

    Args:
        layer: A convolution, not transposed, or a linear layer, sliced.
        read: What reaches it, batch by batch.
        made: What it made of that before, unsliced.
        outputs: Which of its outputs stay; None if all do.
        ridge: λ over the mean variance of x.
    """
    blocks = blocks_of(layer, layer.weight.double())
    moments = [_Moments() for _ in blocks]
    for x, y in _observations(layer, read, made, outputs):
        for one, part, target in zip(moments, x.chunk(len(blocks), 1), y.chunk(len(blocks), 1), strict=True):
            one.add(part, target)
    lacks, uniques = [], []
    for number, (one, block) in enumerate(zip(moments, blocks, strict=True)):
        mean_x, mean_y, inputs, crossing = one.centred()
        change, unique = ridge_solution(inputs, crossing - block.flatten(1) @ inputs, ridge)
        refitted = block.flatten(1) + change
        blocks[number] = refitted.view(block.shape)
        lacks.append(mean_y - refitted @ mean_x)
        uniques.append(unique)
    layer.weight.data = torch.empty_like(layer.weight).copy_(weight_of(layer, blocks, layer.weight.shape))
    lack = torch.cat(lacks)
    return (lack if layer.bias is None else lack - layer.bias.double()), all(uniques)


def _observations(
    layer: Any, read: Sequence[Tensor], made: Sequence[Tensor], outputs: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """All that a layer reads, and what it is to make of it, by parts: (n, inputs · taps) and (n, outputs)."""
    dim = -1 if isinstance(layer, nn.Linear) else 1
    taps = math.prod(getattr(layer, "kernel_size", (1,)))
    for inputs, truth in zip(read, made, strict=True):
        wanted = truth if outputs is None else truth.index_select(dim, outputs.nonzero().flatten())
        parts = math.ceil(inputs.numel() * taps / _CHUNK)
        for part, target in zip(inputs.tensor_split(parts), wanted.tensor_split(parts), strict=True):
            yield _rows(part if dim == -1 else unfolded(part, layer).flatten(1, 2), dim), _rows(target, dim)


class _Moments:
    """Running first and second moments of pairs (x, y), centred near their means to keep their digits."""

    def __init__(self) -> None:
        self.count = 0
        self.shift: tuple[Tensor, Tensor] | None = None
        self.sums: list[Any] = [0, 0, 0, 0]

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add observations, (n, inputs) and (n, outputs)."""
        x, y = widened(x), widened(y)
        self.shift = (x.mean(0), y.mean(0)) if self.shift is None else self.shift
        x, y = x - self.shift[0], y - self.shift[1]
        new = (x.sum(0, dtype=torch.float64), y.sum(0, dtype=torch.float64), (x.T @ x).double(), (y.T @ x).double())
        self.sums = [total + part for total, part in zip(self.sums, new, strict=True)]
        self.count += len(x)

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean of x, mean of y, covariance of x, covariance of y with x."""
        if self.shift is None:
            raise ValueError("moments must have observations, got none")
        x, y, xx, yx = (total / self.count for total in self.sums)
        return (
            x + self.shift[0].double(), y + self.shift[1].double(),
            xx - torch.outer(x, x), yx - torch.outer(y, x),
        )  # fmt: skip


def _rows(values: Tensor, dim: int) -> Tensor:
    return values.movedim(dim, -1).flatten(0, -2)


def _expanded(name: str, values: Tensor, graph: ChannelGraph, kept: Keep) -> Tensor:
    """A sliced tensor in the unpruned shape, zeros in the place of what is gone."""
    weight = f"{name.rpartition('.')[0]}.weight"
    if name in graph.shapes:
        axes = [(axis.dim, axis.owner) for axis in graph.axes if axis.tensor == name]
    else:  # an added bias, sliced as the outputs of its layer are
        axes = [(0, axis.owner) for axis in graph.axes if axis.tensor == weight and not axis.consumes]
    whole = values.detach()
    for dim, owner in axes:
        shape = [*whole.shape[:dim], len(owner), *whole.shape[dim + 1 :]]
        stays = torch.from_numpy(np.flatnonzero(kept[owner]))
        whole = whole.new_zeros(shape).index_copy_(dim, stays, whole)
    return whole
