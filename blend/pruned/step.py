"""What every pruning step does to a network: compensation, recalibration, and a look at held-out data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from blend.compensation.consumer_inputs import Grade, compensation_images, held_images
from blend.compensation.correction import Corrected, absorbed_means, compensation
from blend.compensation.sequential import sequential
from blend.progress import Progress, progress, say
from blend.pruning import PrunedNetwork, reproducibly
from blend.pruning.chain import portions
from blend.pruning.inference import InferenceNetwork
from blend.task import Split, Task
from criteria.evaluating import evaluating
from criteria.graph import ChannelGraph, Keep

EXAMPLES = 8  # on which what was written is held against what was meant


class Calibration(NamedTuple):
    """What pruned networks are mended by.

    Attributes:
        inputs: Of the calibration split, shape (n, ...).
        recalibration_images: So many of them re-estimate BatchNorm, as one batch; 0 leaves statistics as they are.
        batch_size: Images per forward pass.
    """

    inputs: Tensor
    recalibration_images: int = 256
    batch_size: int = 64


def compensated(model: nn.Module, graph: ChannelGraph, keep: Keep, calibration: Calibration, grade: Grade) -> Corrected:
    """The consumers' corrected tensors; says what could not be corrected as asked."""
    if grade == "none":
        return Corrected({})
    inputs, recalibration_images, batch_size = calibration
    images = compensation_images(inputs, recalibration_images)
    if grade == "sequential":
        images, left_out = held_images(model, images)
        for note in left_out:
            say(f"note: {note}")
    batches = portions(images, batch_size)
    absorbed = absorbed_means(graph) if recalibration_images else frozenset()
    with reproducibly(), torch.no_grad():
        if grade == "sequential":
            corrected, notes = sequential(model, graph, keep, batches, absorbed, recalibrated=recalibration_images > 0)
        else:
            with progress("reading what consumers read", len(images)) as shown:
                correct, notes = compensation(model, graph, counted(batches, shown), grade, absorbed=absorbed)
            with progress("correcting consumers", len(correct.known)) as shown:
                corrected = correct(keep, shown.advance)
    for note in notes:
        say(f"note: {note}")
    for name in corrected.singular:
        say(f"note: what is left for '{name}' to read determines no unique correction; the smallest one was taken")
    return corrected


def counted(batches: Iterable[Tensor], shown: Progress) -> Iterator[Tensor]:
    """The batches, each counted by its images when it is done with."""
    for batch in batches:
        yield batch
        shown.advance(len(batch))


def recalibrated(
    model: nn.Module, graph: ChannelGraph, keep: Keep, calibration: Calibration, corrected: Corrected | None = None
) -> nn.Module:
    """The pruned network, its BatchNorms with the statistics of all recalibration images taken as one batch."""
    tensors = {} if corrected is None else corrected.tensors
    images = calibration.inputs[: calibration.recalibration_images]
    with reproducibly(), torch.no_grad():
        network = InferenceNetwork(model, graph, calibration.inputs[:EXAMPLES], fuse=False)
        network.prune(keep, portions(images, calibration.batch_size), tensors)
        smaller = PrunedNetwork(model, graph).extract(keep, tensors)
        smaller.load_state_dict(network.statistics(), strict=False)
    return smaller


def judged(network: nn.Module, task: Task, split: Split, batch_size: int) -> tuple[float, float]:
    """Mean loss and metric of a network on a split."""
    losses, values = 0.0, 0.0
    device = next(network.parameters()).device
    with reproducibly(), evaluating(network), torch.no_grad():
        for inputs, targets in split.batches(batch_size):
            outputs = network(inputs.to(device)).cpu()
            losses += float(task.loss(outputs, targets)) * len(inputs)
            values += float(task.metric(outputs, targets).double().sum())
    return losses / len(split), values / len(split)
