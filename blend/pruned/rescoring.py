"""Scores of a network on the way, as small as it is then: a criterion's own, or a criterion file's formula on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blend.blended import BlendedCriterion
from blend.blended.remaining import heard, of_whole
from blend.budget import uniform
from blend.progress import say
from blend.pruned.choice import Chosen, Request
from blend.scoring import scored
from blend.task import Task
from criteria.graph import ChannelGraph

Fresh = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Rescoring:
    """Scores channels anew at every step.

    Calibrated scores say which share of a group is to go, and so do equal shares. They are about the group as it was in
    the beginning: what is left is ranked above what has gone, so that steps that change no ranking end at the same mask
    as a single one, but for what a step took that a single one would have given back. A single criterion's raw scores
    are ranked as they are.

    Attributes:
        chosen: What the criterion said of the unpruned network.
        request: What was asked for.
        file: The criterion file; None for a single criterion.
    """

    chosen: Chosen
    request: Request
    file: BlendedCriterion | None

    @classmethod
    def by(cls, chosen: Chosen, request: Request) -> Rescoring:
        """For a request.

        Raises:
            InputError: The file has no formula that could be applied to fresh scores.
        """
        if not request.by_file:
            return cls(chosen, request, None)
        file = BlendedCriterion.load(Path(request.criterion))
        file.check_formula()
        if any(group.corrections for group in file.groups):
            say("note: the corrections of single channels are left out, as scores are computed anew at every step")
        return cls(chosen, request, file)

    def scores(self, task: Task, graph: ChannelGraph, floor: Mapping[str, int]) -> Fresh:
        """Of all groups that can still give channels.

        Args:
            task: With the network as it is.
            graph: Its channel graph.
            floor: Channels that stay in each group.
        """
        able = [g.name for g in graph.groups if g.name in self.chosen.scores and g.size > floor[g.name]]
        config, offsets = self.chosen.config, dict.fromkeys(able, 0.0)
        if self.file is None:
            table = scored(task, self.chosen.splits, graph, config)
            (name,) = table.criteria
            fresh = {group: values for group in able if (values := table.get(name, group)) is not None}
            if config.allocation == "global":
                return fresh
            fresh = uniform(fresh)
        else:
            names = tuple(sorted({c.criterion for group in self.file.groups for c in group.candidates}))
            asked = config.model_copy(update={"criteria": names})
            table = scored(task, self.chosen.splits, graph, asked, lenient=True)
            groups = list(heard((group for group in self.file.groups if group.name in able), table))
            fresh = self.file.model_copy(update={"groups": tuple(groups)}).recomputed_scores(table)
            if self.request.allocation == "uniform":
                fresh = uniform(fresh)
            else:
                offsets = {group.name: group.offset for group in groups}
        sizes = {group.name: group.size for group in self.chosen.graph.groups}
        return {group: of_whole(values, offsets[group], sizes[group]) for group, values in fresh.items()}
