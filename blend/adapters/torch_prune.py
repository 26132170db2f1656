"""A blended criterion in ``torch.nn.utils.prune``: whole channels are masked, and can be made permanent zeros."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from blend.blended import BlendedCriterion
from blend.errors import InputError
from criteria.graph import ChannelGraph, Keep


class BlendedStructured(prune.BasePruningMethod):
    """Masks the given positions of one dimension of a tensor.

    Args:
        keep: For each position, whether it stays.
        dim: The dimension.
    """

    PRUNING_TYPE = "structured"

    def __init__(self, keep: Keep, dim: int) -> None:
        self.keep, self.dim = torch.from_numpy(np.asarray(keep, dtype=bool)), dim

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The mask so far, without the positions that go.

        Raises:
            InputError: If the dimension is not as long as what is kept of it.
        """
        if t.shape[self.dim] != len(self.keep):
            raise InputError(
                f"keep must have {t.shape[self.dim]} values for dimension {self.dim}, got {len(self.keep)}; a tensor "
                "that was pruned along it before has to be made permanent first"
            )
        shape = [-1 if dim == self.dim else 1 for dim in range(t.ndim)]
        return default_mask * self.keep.to(default_mask.device).view(shape)


def mask(
    model: nn.Module, criterion: BlendedCriterion | str | Path, example_input: Tensor, reduction: float | None = None
) -> Keep:
    """Masks, in place, everything that a reduction removes: filters, their norms, and what reads their channels.

    The outputs are then those of the network without these channels. ``permanent`` makes them plain zeros.

    Args:
        model: The network.
        criterion: The blend, or the path of its file.
        example_input: For looking at the network.
        reduction: The share of cost that the channels stand for; the searched one by default.

    Returns:
        One truth value per channel of the network's graph.

    Raises:
        InputError: If the criterion belongs to another network, or the network is masked already.
    """
    if prune.is_pruned(model):
        raise InputError("the network is masked already; make that permanent first")
    blend = BlendedCriterion.of(criterion)
    graph = ChannelGraph.build(model, example_input, ignore=blend.task.get("ignore", ()))
    keep = blend.keep_mask(graph, reduction)
    blend.network.warn_of_other_weights(model)
    blend.warn_of_no_compensation()
    kept = np.append(keep, True)
    parameters = dict(_parameters(model))
    for axis in graph.axes:
        if axis.tensor in parameters and not kept[axis.owner].all():
            BlendedStructured.apply(*parameters[axis.tensor], kept[axis.owner], axis.dim)  # type: ignore[no-untyped-call]
    return keep


def permanent(model: nn.Module) -> None:
    """Makes all masks of a network plain zeros of its parameters."""
    for _, (module, name) in list(_parameters(model)):
        if isinstance(module, nn.Module) and f"{name}_mask" in dict(module.named_buffers(recurse=False)):
            prune.remove(module, name)  # type: ignore[no-untyped-call]


def _parameters(model: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """Name in the state dictionary → the module and its attribute, as before any masking."""
    for path, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            plain = name.removesuffix("_orig")
            yield f"{path}.{plain}" if path else plain, (module, plain)
