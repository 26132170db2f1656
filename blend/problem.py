"""The problem that a search is about: a task, checked, with its channels, scores and clusters."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

from torch import Tensor

from blend.blended.formula import Blender
from blend.budget import ALLOCATIONS, CostModel, floors, keep_mask
from blend.config import SearchConfig
from blend.errors import InputError
from blend.identity import weight_hash
from blend.objective.baselines import Baseline, Contest
from blend.objective.encoding import Clusters, Encoding, Genomes, encoding_for
from blend.objective.front import FrontEncoding
from blend.progress import Progress, progress, say
from blend.pruning import check_slicing, single_thread
from blend.pruning.compensation import gathered
from blend.pruning.consumer_inputs import Reading
from blend.task import Splits, Task, check_task, load_task, task_function
from criteria import CRITERIA, ChannelGraph, Criterion, CriterionError, ScoreTable, cluster, score
from criteria.grouping import matching_layers
from criteria.losses import label_free
from criteria.passes import OnStep
from criteria.scores import merged


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
            config.compensate, config.recalibration_images, config.batch_size,
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
        rows = zip_longest(*columns)  # a short search sees the best of them only, but at every reduction
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


def prepare(config: SearchConfig, scores: Path | None = None, *, separately: bool = False) -> Problem:
    """Loads and checks a task, scores its channels by every criterion and clusters the criteria.

    Args:
        config: What was asked for.
        scores: A score table that was computed before; nothing is collected then.
        separately: Score by each criterion for itself, to see what it costs, and not by all in one sweep.

    Raises:
        InputError: If a criterion is unknown or does not apply, or the task cannot be pruned as it is.
    """
    task_function(config.task)  # its file may register criteria of its own
    with _criterion_errors():
        criteria = [CRITERIA.get(name) for name in config.criteria]
        _check_labels(criteria, config)
        task, splits = loaded_task(config)
        graph = checked_graph(task, config.ignore)
        seconds: dict[str, float] = {}
        if scores:
            table = ScoreTable.load(scores)
        elif separately:
            table, seconds = _score_separately(task, splits, graph, criteria, config)
        else:
            table = _score(task, splits, graph, criteria, config)
        clusters = {
            group.name: cluster(table, group.name, k=config.clusters, method=config.clustering, seed=config.seed)
            for group in graph.groups
            if table.usable(group.name)
        }
        _say_what_is_silent(table, config)
    if not clusters:
        raise InputError("no criterion can rank the channels of any group: choose other criteria")
    return Problem(config, task, splits, graph, table, clusters, seconds)


def loaded_task(config: SearchConfig) -> tuple[Task, Splits]:
    """Loads a task and checks it.

    Raises:
        InputError: As `blend.task.load_task` and `blend.task.check_task`.
    """
    task = load_task(config.task, config.options, config.seed)
    return task, check_task(task, config.calibration_loss)


def scored(task: Task, splits: Splits, graph: ChannelGraph, config: SearchConfig) -> ScoreTable:
    """The scores of a network's channels by every criterion of a configuration.

    Raises:
        InputError: A criterion is unknown, does not apply, or must not read labels and does.
    """
    with _criterion_errors():
        criteria = [CRITERIA.get(name) for name in config.criteria]
        _check_labels(criteria, config)
        return _score(task, splits, graph, criteria, config)


def checked_graph(task: Task, ignore: Sequence[str]) -> ChannelGraph:
    """A task's channel graph, proved to be right; says what is left alone.

    Raises:
        InputError: The network cannot be pruned as it is, or a pattern matches no layer.
    """
    with _criterion_errors():
        graph = ChannelGraph.build(task.model, task.example_input, (*task.ignore, *ignore))
    for left_alone in graph.notes:
        say(f"note: {left_alone}")
    check_slicing(task.model, graph, task.example_input)
    return graph


def ignored_groups(task: Task, graph: ChannelGraph, ignore: Sequence[str]) -> set[str]:
    """Names of the groups that have a layer among those that match a pattern.

    Raises:
        InputError: A pattern matches no layer.
    """
    with _criterion_errors():
        layers = matching_layers(task.model, ignore)
    return {group.name for group in graph.groups if any(member.layer in layers for member in group.producers)}


def all_criteria() -> list[Criterion]:
    """Every criterion of the registry, those of other packages included."""
    with _criterion_errors():
        return list(CRITERIA)


def criterion_named(specification: str) -> Criterion:
    """The criterion of a name, with parameters or without.

    Raises:
        InputError: There is none, with the nearest name.
    """
    with _criterion_errors():
        return CRITERIA.get(specification)


@contextmanager
def _criterion_errors() -> Iterator[None]:
    try:
        yield
    except CriterionError as error:
        raise InputError(str(error)) from error


def _score(
    task: Task, splits: Splits, graph: ChannelGraph, criteria: Sequence[Criterion], config: SearchConfig
) -> ScoreTable:
    batches: Iterable[tuple[Tensor, Tensor]] = splits.calibration.batches(config.batch_size)
    loss, name = task.loss, config.calibration_loss
    metric = task.metric if name == "task" else None
    # One thread, so that the scores are the same bits whatever the number of cores.
    with single_thread(), _bars() as on_step:
        if name != "task":
            loss, batches = label_free(name, task.model, batches)
        table = score(
            task.model, graph, list(batches), loss, criteria, metric=metric, seed=config.seed, on_step=on_step
        )
    for line in notes_in_words([asdict(note) for note in table.notes], len(table.groups)):
        say(line)
    return table


def notes_in_words(notes: Sequence[Mapping[str, str]], groups: int) -> Iterator[str]:
    """A line for each note of a table, and a single one for a criterion that has one in every group.

    Args:
        notes: as in a `ScoreTable`, as plain data.
        groups: how many there are.
    """
    by_criterion: dict[str, list[Mapping[str, str]]] = {}
    for note in notes:
        by_criterion.setdefault(note["criterion"], []).append(note)
    for criterion, mine in by_criterion.items():
        if len(mine) == groups > 1:
            yield f"note: {criterion} in all {groups} groups; in {mine[0]['group']}: {mine[0]['reason']}"
        else:
            yield from (f"note: {criterion} in {note['group']}: {note['reason']}" for note in mine)


def _check_labels(criteria: Sequence[Criterion], config: SearchConfig) -> None:
    """Refuses criteria that read labels where these are not to be read."""
    reading = [criterion.name for criterion in criteria if criterion.labelled]
    if reading and config.calibration_loss != "task":
        raise InputError(
            f"criteria must not read labels with calibration loss '{config.calibration_loss}', got "
            f"{', '.join(reading)}: leave {'it' if len(reading) == 1 else 'them'} out, or use calibration loss 'task'"
        )


def _say_what_is_silent(table: ScoreTable, config: SearchConfig) -> None:
    """Names the criteria that come to nothing because the divergence of a network from itself has no gradient."""
    heard = {criterion for group in table.groups for criterion in table.usable(group)}
    silent = [criterion for criterion in table.criteria if criterion not in heard]
    if silent and config.calibration_loss == "divergence":
        say(
            f"note: {', '.join(silent)} rank nothing with calibration loss 'divergence', whose gradient is 0 at the "
            f"network itself: second-order, learned and ablation criteria do, and all of them with 'squared_norm'"
        )


@contextmanager
def _bars() -> Iterator[OnStep]:
    """Shows a bar for the statistics, and one for each criterion that takes passes of its own."""
    with ExitStack() as stack:
        bars: dict[str, Progress] = {}

        def on_step(what: str, done: int, total: int) -> None:
            if what not in bars:
                stack.close()
                name = "collecting statistics" if what == "statistics" else f"scoring by {what}"
                bars[what] = stack.enter_context(progress(name, total))
            bars[what].advance(1)

        yield on_step


def _score_separately(
    task: Task, splits: Splits, graph: ChannelGraph, criteria: Sequence[Criterion], config: SearchConfig
) -> tuple[ScoreTable, dict[str, float]]:
    """The same table, and the seconds that each criterion took alone."""
    tables, seconds = [], {}
    for criterion in criteria:
        began = time.perf_counter()
        tables.append(_score(task, splits, graph, [criterion], config))
        seconds[criterion.name] = time.perf_counter() - began
    return merged(tables), seconds
