"""One forward pass, watched: in which order layers run, how often weights are used, and who makes the output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from criteria.layers import WEIGHTED, width


@dataclass(frozen=True)
class ForwardPass:
    """What a forward pass shows.

    Attributes:
        order: Names of the layers as they ran; one that ran twice is in it twice.
        positions: For each conv and linear weight, how often every element is used for one example.
        output: Name of the layer that made the network's output, or None where an operation without a module did.
    """

    order: tuple[str, ...]
    positions: dict[str, int]
    output: str | None


def watch_forward(model: nn.Module, names: Mapping[nn.Module, str], example_input: Tensor) -> ForwardPass:
    """Runs a network on a batch of examples and notes what its innermost modules do."""
    order: list[str] = []
    positions: dict[str, int] = {}
    made: dict[str, Any] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Any) -> None:
        name = names[module]
        order.append(name)
        made[name] = output
        if isinstance(module, WEIGHTED):
            transposed = getattr(module, "transposed", False)  # scatters each input instead of gathering each output
            seen, side = ((*args, *kwargs.values())[0], "in") if transposed else (output, "out")
            uses = seen.numel() // width(module, side) // len(example_input)
            positions[f"{name}.weight"] = positions.get(f"{name}.weight", 0) + uses

    innermost = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in innermost]
    try:
        with torch.no_grad():
            outputs = model(example_input)
    finally:
        for hook in hooks:
            hook.remove()
    makes_output = next((name for name, tensor in made.items() if tensor is outputs), None)
    return ForwardPass(tuple(order), positions, makes_output)
