"""What every pruning step does to a network: compensation, recalibration, and a look at held-out data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from blend.compensation import Corrected, absorbed_means, compensation
from blend.consumer_inputs import compensation_images
from blend.inference import InferenceNetwork, portions
from blend.progress import say
from blend.pruning import PrunedNetwork, single_thread
from blend.sequential import sequential
from blend.task import Split, Task
from criteria.graph import Keep

if TYPE_CHECKING:
    from blend.pruned.choice import Chosen

EXAMPLES = 8  # on which what was written is held against what was meant


def compensated(chosen: Chosen, keep: Keep) -> Corrected:
    """The consumers' corrected tensors; says what could not be corrected as asked."""
    config, model, graph = chosen.config, chosen.task.model, chosen.graph
    batches = portions(
        compensation_images(chosen.splits.calibration.inputs, config.recalibration_images), config.batch_size
    )
    absorbed = absorbed_means(graph) if config.recalibration_images else frozenset()
    with single_thread(), torch.no_grad():
        if chosen.compensate == "sequential":
            corrected, notes = sequential(
                model, graph, keep, batches, absorbed, recalibrated=config.recalibration_images > 0
            )
        else:
            correct, notes = compensation(model, graph, batches, chosen.compensate, absorbed=absorbed)
            corrected = correct(keep)
    for note in notes:
        say(f"note: {note}")
    for name in corrected.singular:
        say(f"note: what is left for '{name}' to read determines no unique correction; the smallest one was taken")
    return corrected


def recalibrated(chosen: Chosen, keep: Keep, corrected: Corrected | None = None) -> nn.Module:
    """The pruned network, its BatchNorms with the statistics of all recalibration images taken as one batch."""
    config, model = chosen.config, chosen.task.model
    tensors = {} if corrected is None else corrected.tensors
    images = chosen.splits.calibration.inputs[: config.recalibration_images]
    with single_thread(), torch.no_grad():
        judged = InferenceNetwork(model, chosen.graph, chosen.splits.calibration.inputs[:EXAMPLES])
        judged.prune(keep, portions(images, config.batch_size), tensors)
        network = PrunedNetwork(model, chosen.graph).extract(keep, tensors)
        network.load_state_dict(judged.statistics(), strict=False)
    return network


def judged(network: nn.Module, task: Task, split: Split, batch_size: int) -> tuple[float, float]:
    """Mean loss and metric of a network on a split."""
    losses, values = 0.0, 0.0
    training = {module: module.training for module in network.modules()}
    with single_thread(), torch.no_grad():
        network.eval()
        for inputs, targets in split.batches(batch_size):
            outputs = network(inputs)
            losses += float(task.loss(outputs, targets)) * len(inputs)
            values += float(task.metric(outputs, targets).double().sum())
    for module, mode in training.items():
        module.training = mode
    return losses / len(split), values / len(split)
