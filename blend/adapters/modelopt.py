"""A blended criterion as the importance of NVIDIA ModelOpt's FastNAS, which searches how many channels layers keep.

ModelOpt sorts the channels of each group by importance once, and a narrower layer keeps the first ones: which channels
go is the blend's, how many is its own.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from blend.blended import BlendedCriterion
from blend.errors import InputError
from criteria.graph import ChannelGraph

WIDTHS = ("out_channels", "out_features")
STEP = 1000.0
"""Between two channels: more than all importances of ModelOpt's own, each at most 1, can add up to."""


class BlendedImportance:
    """The frozen scores of a blend, for a network that is about to be converted.

    Args:
        criterion: The blend, or the path of its file.
        model: The network, before ``modelopt.torch.nas.convert``.
        example_input: For looking at it.

    Raises:
        InputError: If the blend cannot be loaded or belongs to another network.
    """

    def __init__(self, criterion: BlendedCriterion | str | Path, model: nn.Module, example_input: Tensor) -> None:
        blend = BlendedCriterion.of(criterion)
        graph = ChannelGraph.build(model, example_input, ignore=blend.task.get("ignore", ()))
        self._scores = blend.frozen_scores(graph)
        blend.network.warn_of_other_weights(model)
        blend.warn_of_no_compensation()

    def register(self, model: nn.Module) -> tuple[str, ...]:
        """Lets the blend decide which channels go first.

        ModelOpt only takes further importances, which it normalises and adds to its own, norms of the filters that
        read the channels; the blend's are spread so far that they settle the order alone.

        Args:
            model: The converted network, before ``modelopt.torch.nas.search``.

        Returns:
            Names of the groups of channels that it may make narrower, all of which have the blend's order now.

        Raises:
            InputError: If the network is not converted, or nothing of it can be made narrower, or ModelOpt ties
                channels together that are apart in the blend.
        """
        found: dict[str, Any] = {}
        for name, scores in self._scores.items():
            width = _width(model.get_submodule(name.partition("#")[0]))  # a layer may begin several groups
            if not width.is_configurable or not width.is_sortable:
                continue
            if width.max != len(scores) or any(width is other for other in found.values()):
                raise InputError(f"ModelOpt ties the channels of '{name}' to others, from which the blend parts them")
            found[name] = width
        if not found:
            raise InputError("ModelOpt can make nothing of this network narrower; its rules may leave no choice")
        for name, width in found.items():
            width.register_importance(partial(_importance, self._scores[name]))
        return tuple(found)


def _width(layer: Any) -> Any:
    for name in WIDTHS:
        if hasattr(layer, "get_hparam") and hasattr(layer, name):
            return layer.get_hparam(name)
    raise InputError("the network must be converted by modelopt.torch.nas.convert before anything is registered")


def _importance(scores: NDArray[np.float64]) -> Tensor:
    """1 for the best channel, and for each that follows `STEP` less; the first of equals goes first."""
    behind = np.empty(len(scores))
    behind[np.argsort(scores, kind="stable")[::-1]] = np.arange(len(scores))
    return torch.from_numpy(1.0 - STEP * behind)
