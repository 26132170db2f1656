"""Scores by a blend's formula on a network that another pruner is making smaller, computed anew at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from blend.blended import BlendedCriterion
from blend.blended.remaining import heard, of_whole
from blend.errors import InputError
from blend.scoring import criterion_errors, criterion_named
from criteria import ChannelGraph, score
from criteria.losses import label_free
from criteria.passes import PassCriterion
from criteria.remains import remaining_graph

Batches = Sequence[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


class FreshScores:
    """A blend's formula, to be applied to what is left of a network.

    Args:
        blend: With the formula.
        graph: The channel graph of the network before anything was removed.
        batches: Calibration data, (inputs, targets).
        loss: (outputs, targets) → mean loss of a batch; only for a blend that was searched with the task's loss.

    Raises:
        InputError: There is no formula, it belongs to a network of other layers, or a criterion is not registered or
            needs a metric.
    """

    def __init__(self, blend: BlendedCriterion, graph: ChannelGraph, batches: Batches, loss: Loss) -> None:
        _check(blend, graph)
        self._blend, self._graph, self._batches, self._loss = blend, graph, batches, loss

    def __call__(self, model: nn.Module, alive: Mapping[str, NDArray[np.bool_]]) -> dict[str, NDArray[np.float64]]:
        """Of all groups that can still be ranked: not those of a single channel.

        They are scores of the whole groups, in which what is left comes after what has gone: offsets and shares are
        those of the unpruned network, however many steps there are.

        Args:
            model: The network as it is.
            alive: Which channels of each group of the whole network it still has.

        Raises:
            InputError: A criterion applies to no group that is left.
        """
        keep = np.concatenate([alive[group.name] for group in self._graph.groups])
        left = remaining_graph(self._graph, keep, model)
        several = {group.name for group in left.groups if group.size > 1}
        able = [group for group in self._blend.groups if group.name in several]
        names = sorted({spokesman.criterion for group in able for spokesman in group.candidates})
        loss, calibration = self._loss, self._blend.calibration_loss
        batches: Iterable[tuple[Tensor, Tensor]] = self._batches
        if calibration != "task":
            loss, batches = label_free(calibration, model, batches)
        with criterion_errors():
            table = score(model, left, list(batches), loss, names, seed=self._blend.seed)
        groups = tuple(heard(able, table))
        fresh = self._blend.model_copy(update={"groups": groups}).recomputed_scores(table)
        sizes = {group.name: group.size for group in self._graph.groups}
        return {g.name: of_whole(fresh[g.name], g.offset, sizes[g.name]) for g in groups}


def _check(blend: BlendedCriterion, graph: ChannelGraph) -> None:
    """Refuses a formula that cannot be applied to a network; its layers may be of other widths."""
    blend.check_formula()
    groups = {group.name for group in graph.groups}
    for group in blend.groups:
        if group.name not in groups:
            raise InputError(f"the network has no group '{group.name}', which the blend has a formula for")
    for tensor in {**blend.network.shapes, **graph.shapes}:
        if (tensor in blend.network.shapes) != (tensor in graph.shapes):
            whose = "the criterion's" if tensor in blend.network.shapes else "this"
            raise InputError(f"the criterion belongs to another network: only {whose} has a tensor '{tensor}'")
    for name in sorted({spokesman.criterion for group in blend.groups for spokesman in group.candidates}):
        criterion = criterion_named(name)
        if isinstance(criterion, PassCriterion) and criterion.by_metric:
            raise InputError(f"criterion '{name}' needs a metric, which cannot be given here: use the frozen scores")
