"""What is written around torch-pruning to judge a candidate: copy, prune, recalibrate in training mode, evaluate."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from criteria import ChannelGraph
from criteria.graph import Keep


def pruned_copy(model: nn.Module, graph: ChannelGraph, keep: Keep, example: Tensor) -> nn.Module:
    """A copy of a network without the channels that are not kept."""
    copied = copy.deepcopy(model)
    dependencies = tp.DependencyGraph().build_dependency(copied, example, verbose=False)
    for group, part in graph.split(keep):
        module = copied.get_submodule(group.name)
        removed = np.flatnonzero(~part).tolist()
        if removed:
            prune = tp.prune_linear_out_channels if isinstance(module, nn.Linear) else tp.prune_conv_out_channels
            dependencies.get_pruning_group(module, prune, removed).prune()
    return copied


def judged_by_loop(
    network: nn.Module,
    calibration: Tensor,
    heldout: tuple[Tensor, Tensor],
    batch_size: int = 250,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> float:
    """The held-out loss of a pruned network after recalibration; as a user writes it unless told otherwise."""
    network = network.to(memory_format=memory_format)
    inputs, targets = heldout
    calibration, inputs = (images.to(memory_format=memory_format) for images in (calibration, inputs))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        network.train()
        passes(network, calibration.split(batch_size))
        network.eval()
        outputs = torch.cat([network(batch) for batch in inputs.split(batch_size)])
        return float(F.cross_entropy(outputs, targets))


def passes(network: nn.Module, batches: tuple[Tensor, ...]) -> None:
    """Forward passes whose result nobody wants."""
    with torch.no_grad():
        for batch in batches:
            network(batch)
