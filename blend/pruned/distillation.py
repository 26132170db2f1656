"""Distillation: how far a pruned network is from saying what the unpruned one says."""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blend.pruned.training_data import InMemory, TrainingData


def is_logits(outputs: Tensor, targets: Tensor) -> bool:
    """Whether outputs are (n, classes), as far as their shape tells, and targets that are class indices or shares.

    Args:
        outputs: Some.
        targets: All that there are: of a few, several classes each may look like shares.
    """
    if outputs.ndim != 2 or outputs.shape[1] == 1:
        return False
    if targets.is_floating_point():
        sums, same = targets.sum(-1), targets.shape[1:] == outputs.shape[1:]
        return same and bool((targets >= 0).all()) and sums.allclose(torch.ones_like(sums))
    return targets.ndim == 1


class Teacher:
    """What the unpruned network says of a batch, and how far another one is from saying the same.

    Of examples that are the same in every epoch it is remembered, as long as that takes less memory than they do.

    Args:
        network: The unpruned network; a copy of it runs.
        temperature: By which logits are divided.
        batch_size: Examples per forward pass of those that are remembered.
        logits: Whether outputs are class logits.
    """

    def __init__(self, network: nn.Module, temperature: float, batch_size: int, *, logits: bool = True) -> None:
        self.network = copy.deepcopy(network).eval()
        self.temperature, self.batch_size = temperature, batch_size
        self._known: Tensor | None = None
        self._logits = logits

    def outputs(self, inputs: Tensor, rows: Tensor | None, data: TrainingData) -> Tensor:
        """The teacher's outputs for a batch."""
        with torch.no_grad():
            if rows is None or not isinstance(data, InMemory):
                return cast("Tensor", self.network(inputs))
            if self._known is None:
                one = self.network(inputs[:1])
                if one.nbytes * len(inputs) > inputs.nbytes:
                    return cast("Tensor", self.network(inputs))
                parts = (part.to(inputs.device) for part, _ in data.split.batches(self.batch_size))
                self._known = torch.cat([self.network(part) for part in parts])
            return self._known[rows]

    def distance(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """Of the outputs from the teacher's: a divergence for class logits, else the mean squared error."""
        if not self._logits:
            return F.mse_loss(outputs, wanted)
        student, teacher = (F.log_softmax(logits / self.temperature, 1) for logits in (outputs, wanted))
        return self.temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
