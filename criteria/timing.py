"""How long things take, and the yardstick: one forward and backward pass."""

import time
from collections.abc import Callable

import torch

from criteria.specimens import Specimen


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def forward_backward_seconds(specimen: Specimen, repeats: int = 3) -> float:
    """Seconds of one forward and backward pass over a specimen's examples, the fastest of a few."""
    parameters = [parameter for parameter in specimen.model.parameters() if parameter.requires_grad]

    def sweep() -> None:
        for inputs, targets in specimen.batches():
            torch.autograd.grad(specimen.loss(specimen.model(inputs), targets), parameters)

    with torch.enable_grad():
        return min(seconds_of(sweep) for _ in range(repeats))
