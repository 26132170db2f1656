"""The problem that a search is about: a task, checked, with its channels, scores and clusters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

from blend.blended.formula import Blender
from blend.budget import ALLOCATIONS, CostModel, floors, keep_mask
from blend.compensation.consumer_inputs import Reading
from blend.compensation.correction import gathered
from blend.config import SearchConfig
from blend.errors import InputError
from blend.identity import weight_hash
from blend.objective.baselines import Baseline, Contest
from blend.objective.encoding import Clusters, Encoding, Genomes, encoding_for
from blend.objective.front import FrontEncoding
from blend.progress import say
from blend.scoring import (
    checked_graph,
    criteria_of,
    criterion_errors,
    loaded_task,
    matched_here,
    say_what_is_silent,
    scored_by,
    scored_separately,
)
from blend.task import Splits, Task, task_function
from criteria import ChannelGraph, ScoreTable, cluster


@dataclass(frozen=True)
class Problem:
    """A task, checked, with its channels, scores and clusters: all that is known before a search.

    Attributes:
        seconds: What scoring by each criterion took, where it was scored separately.
    """

    config: SearchConfig
    task: Task
    splits: Splits
    graph: ChannelGraph
    table: ScoreTable
    clusters: Clusters
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def blender(self) -> Blender:
        """Makes calibrated scores."""
        return Blender(self.table, self.config.normalisation)

    @cached_property
    def cost(self) -> CostModel:
        """Counts what the reduction is about."""
        return CostModel(self.graph, self.config.cost)

    @cached_property
    def floor(self) -> dict[str, int]:
        """Channels that stay in each group."""
        return floors(self.graph, self.config.floor)

    @cached_property
    def encoding(self) -> Encoding:
        """What the genes mean."""
        return encoding_for(self.config, self.clusters, self.blender)

    @cached_property
    def contest(self) -> Contest:
        """What the opponents have in common."""
        return Contest(
            self.graph, self.table, self.clusters, self.encoding, self.blender, self.cost, self.floor,
            self.config.reduction, ALLOCATIONS[::-1], self.config.seed,
        )  # fmt: skip

    @cached_property
    def baselines(self) -> list[Baseline]:
        """The opponents."""
        return self.contest.baselines()

    @cached_property
    def consumer_inputs(self) -> list[Reading]:
        """What compensation has to know of the inputs of consumers; says what it cannot compensate as asked.

        Raises:
            InputError: The statistics are not finite, or take too much memory.
        """
        config = self.config
        known, notes = gathered(
            self.task.model, self.graph, self.splits.calibration.inputs,
            config.compensate, config.recalibration_images, config.batch_size, config.device,
        )  # fmt: skip
        for note in notes:
            say(f"note: {note}")
        return known

    def check_reachable(self) -> None:
        """Refuses a reduction that the floors make impossible.

        Raises:
            InputError: Saying the largest possible one.
        """
        any_scores = self.blender.scores(self.encoding.decode([0.0] * len(self.encoding.space)))
        keep_mask(self.graph, any_scores, self.config.shown[-1], self.cost, self.floor)

    @cached_property
    def genomes(self) -> Genomes:
        """What is searched: the encoding, for a front with the reduction as one gene more."""
        range_ = self.config.reductions
        return self.encoding if range_ is None else FrontEncoding(self.encoding, *range_)

    @cached_property
    def shown(self) -> list[Problem]:
        """The same problem at every reduction at which it is to be compared."""
        return [self.at(reduction) for reduction in self.config.shown]

    @cached_property
    def seeds(self) -> list[Sequence[float]]:
        """The baselines that can be written as genomes, for a front at every reduction that is shown."""
        if self.config.reductions is None:
            return [b.genome for b in self.baselines if b.genome is not None]
        columns = ([(*b.genome, p.config.reduction) for b in p.baselines if b.genome is not None] for p in self.shown)
        rows = zip_longest(*columns)  # a short search sees the first of them only, but at every reduction
        return [genome for row in rows for genome in row if genome is not None]

    def at(self, reduction: float) -> Problem:
        """The same at another reduction."""
        same = reduction == self.config.reduction
        return self if same else replace(self, config=self.config.model_copy(update={"reduction": reduction}))

    @property
    def identity(self) -> dict[str, str]:
        """Hashes that tell whether a resumed run still has the network and the data that it began with."""
        return {
            "layout": self.graph.fingerprint,
            "weights": weight_hash(self.task.model),
            **{split.name: split.fingerprint() for split in self.splits},
        }


def prepare(
    config: SearchConfig,
    scores: Path | None = None,
    *,
    separately: bool = False,
    lenient: bool = False,
    check: Callable[[Task, Splits], None] = lambda *_: None,
) -> Problem:
    """Loads and checks a task, scores its channels by every criterion and clusters the criteria.

    Args:
        config: What was asked for.
        scores: A score table that was computed before; nothing is collected then.
        separately: Score by each criterion for itself, to see what it costs, and not by all in one sweep.
        lenient: Leave out, with a note, criteria and patterns of layers that do not apply: they come from the search on
            another network.
        check: Refuses a task that something will be done with that it is not fit for, before any work.

    Raises:
        InputError: If a criterion is unknown or does not apply, or the task cannot be pruned as it is.
    """
    task_function(config.task)  # its file may register criteria of its own
    with criterion_errors():
        criteria = criteria_of(config)
        task, splits = loaded_task(config)
        check(task, splits)
        if lenient:
            config = config.model_copy(update={"ignore": matched_here(task.model, config.ignore)})
        graph = checked_graph(task, config.ignore)
        seconds: dict[str, float] = {}
        if scores:
            table = ScoreTable.load(scores)
        elif separately:
            table, seconds = scored_separately(task, splits, graph, criteria, config)
        else:
            table = scored_by(task, splits, graph, criteria, config, lenient=lenient)
        clusters = {
            group.name: cluster(table, group.name, k=config.clusters, method=config.clustering, seed=config.seed)
            for group in graph.groups
            if table.usable(group.name)
        }
        say_what_is_silent(table, config)
    if not clusters:
        raise InputError("no criterion can rank the channels of any group: choose other criteria")
    return Problem(config, task, splits, graph, table, clusters, seconds)
