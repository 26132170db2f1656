"""Collecting statistics: one sweep over calibration batches serves all criteria.

The sweep leaves nothing behind: parameters and buffers reach the forward pass as detached stand-ins, gradients come
from `torch.autograd.grad`, and mode, attributes, hooks and random state are put back, also when the forward pass
raises.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from criteria.consumers import Consumers
from criteria.errors import CriterionValueError
from criteria.evaluating import called_with, evaluating
from criteria.graph import ChannelGraph
from criteria.producers import Producers
from criteria.views import NEEDS, GroupStats, bound_need

__all__ = ["NEEDS", "GroupStats", "Loss", "collect", "undisturbed"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) → mean loss over the batch, a scalar."""


@torch.inference_mode(mode=False)
def collect(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
    needs: Collection[str],
    *,
    seed: int = 0,
    map_images: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, tuple[GroupStats, ...]]:
    """Gather the statistics that criteria need, in one sweep and in eval mode.

    Weights and BatchNorm parameters are always in the result and take no forward pass; the synaptic flow takes one,
    which uses only the shape of the first batch; activations take a forward pass a batch, all else a backward pass,
    too, and second derivatives one more of about twice its cost for each probe. Statistics per example presume that
    the loss is a mean over examples, and that examples do not see one another, as in eval mode they do not.

    Args:
        model: the network; nothing of it differs afterwards.
        graph: its channel groups.
        batches: (inputs, targets), examples along the first axis; moved to the network's device.
        loss: (outputs, targets) → mean loss over the batch, a scalar.
        needs: names from `NEEDS`, or specifications with parameters, as ``hessian_diagonal:probes=4``; both at a time
            can be asked for. What is common to several needs is computed once.
        seed: of the samples of images, of the probes of second derivatives, and of torch's default generator during
            the sweep.
        map_images: how many images ``maps`` holds, drawn uniformly from the stream whatever its split in batches; fewer
            where the maps of all layers would take more than a GiB.
        on_batch: called after every batch with the number of batches done.

    Returns:
        For each group its views: producers, then consumers, in the graph's order.

    Raises:
        CriterionValueError: an unknown need, no batch, or a loss that is not a finite scalar.
        CriterionError: a layer on which a statistic cannot be measured.
    """
    if unknown := sorted({need for need in needs if need.partition(":")[0] not in NEEDS}):
        raise CriterionValueError(f"needs must be among {', '.join(NEEDS)}, got {', '.join(unknown)}")
    needs = frozenset(bound_need(need) for need in needs)
    if map_images < 1:
        raise CriterionValueError(f"map_images must be at least 1, got {map_images}")
    producers = Producers(model, graph, needs, seed)
    consumers = Consumers(model, graph, needs, seed, map_images)
    flows, sweeps = "flow_gradient" in needs, producers.active or consumers.active
    if flows or sweeps:
        with undisturbed(model, seed):
            stream = iter(batches)
            first = next(stream, None)
            if first is None:
                raise CriterionValueError("batches must hold at least one batch, got none")
            if flows:
                with undisturbed(model, seed):
                    producers.let_flow(first[0].to(_device(model)))
            with producers.hooked(), consumers.hooked():
                for done, batch in enumerate(chain([first], stream) if sweeps else (), 1):
                    _sweep(model, batch, loss, producers, consumers)
                    if on_batch is not None:
                        on_batch(done)
    return {group.name: (*producers.views(group), *consumers.views(group)) for group in graph.groups}


def _sweep(
    model: nn.Module, batch: tuple[Tensor, Tensor], loss: Loss, producers: Producers, consumers: Consumers
) -> None:
    """Run one batch through the network, and add it to the statistics."""
    inputs, targets = (tensor.to(_device(model)) for tensor in batch)
    producers.begin(len(inputs))
    consumers.begin(len(inputs), targets)
    with torch.set_grad_enabled(producers.active), producers.differentiable():
        outputs = called_with(model, producers.stand_ins(), inputs)
        if producers.active:
            producers.add(loss(outputs, targets), len(inputs))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """A context with the network in eval mode and torch's generators seeded, and both as before on leaving it.

    Args:
        model: the network; each module gets back the mode and the attributes it had.
        seed: of torch's default generator; those of the network's devices are only put back.
    """
    with torch.random.fork_rng(devices={parameter.device for parameter in model.parameters() if parameter.is_cuda}):
        torch.default_generator.manual_seed(seed)
        with evaluating(model):
            yield
