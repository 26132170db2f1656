"""A task's channels, scored: task, network and criteria are checked, progress and notes are shown."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

import numpy as np
from torch import Tensor, nn

from blend.budget import CostModel
from blend.checking import check_task
from blend.config import SearchConfig
from blend.defaults import DEFAULT_CRITERIA
from blend.device import check_device, on_cpu, visiting
from blend.errors import InputError
from blend.progress import Progress, progress, say
from blend.pruning import check_slicing, reproducibly
from blend.task import Splits, Task, load_task
from criteria import CRITERIA, ChannelGraph, Criterion, CriterionError, ScoreTable, score
from criteria.grouping import matching_layers
from criteria.losses import label_free
from criteria.passes import OnStep
from criteria.scores import distinct_names, merged

MATTERS = 0.01
"""Of the MACs, from which share on it is said that they are not counted."""


def loaded_task(config: SearchConfig) -> tuple[Task, Splits]:
    """Loads a task and checks it.

    Raises:
        InputError: As `blend.device.check_device`, `blend.task.load_task` and `blend.checking.check_task`.
    """
    check_device(config.device)
    task = load_task(config.task, config.options, config.seed)
    return task, check_task(task, config.calibration_loss)


def scored(
    task: Task, splits: Splits, graph: ChannelGraph, config: SearchConfig, *, lenient: bool = False
) -> ScoreTable:
    """The scores of a network's channels by every criterion of a configuration.

    Args:
        task: The task.
        splits: Its data.
        graph: The network's channel graph.
        config: The configuration.
        lenient: As for `scored_by`.

    Raises:
        InputError: A criterion is unknown, does not apply, or must not read labels and does.
    """
    with criterion_errors():
        return scored_by(task, splits, graph, criteria_of(config), config, lenient=lenient)


def checked_graph(task: Task, ignore: Sequence[str]) -> ChannelGraph:
    """A task's channel graph, proved to be right; says what is left alone.

    Raises:
        InputError: The network cannot be pruned as it is, or a pattern matches no layer.
    """
    with criterion_errors():
        graph = ChannelGraph.build(task.model, task.example_input, (*task.ignore, *ignore))
    for left_alone in graph.notes:
        say(f"note: {left_alone}")
    say_what_is_not_counted(graph)
    check_slicing(task.model, graph, task.example_input)
    return graph


def say_what_is_not_counted(graph: ChannelGraph) -> None:
    """Warns of MACs that no reduction is of: those outside of conv and linear layers, if they matter."""
    outside = sum(graph.uncounted.values())
    share = outside / (outside + CostModel(graph).full)
    if share >= MATTERS:
        most = max(graph.uncounted, key=graph.uncounted.__getitem__) or "forward"
        say(
            f"note: {share:.0%} of the network's MACs are computed outside of conv and linear layers, most of them in "
            f"'{most}', and are not counted: a reduction is one of the rest"
        )


def matched_here(model: nn.Module, ignore: Sequence[str]) -> tuple[str, ...]:
    """Those of some patterns that match a layer of a network; says which do not."""
    found = []
    for pattern in ignore:
        try:
            matching_layers(model, [pattern])
        except CriterionError:
            say(f"note: no layer is called like '{pattern}' here, which is ignored in the network of the search")
        else:
            found.append(pattern)
    return tuple(found)


def ignored_groups(task: Task, graph: ChannelGraph, ignore: Sequence[str]) -> set[str]:
    """Names of the groups whose channels a layer, norm or scale puts out that is among those that match a pattern.

    Raises:
        InputError: A pattern matches no layer.
    """
    with criterion_errors():
        layers = matching_layers(task.model, ignore)
    stays = np.zeros(len(graph), dtype=bool)
    for axis in graph.axes:
        if not axis.consumes and axis.tensor.rpartition(".")[0] in layers:
            stays[axis.owner[axis.owner >= 0]] = True
    return {group.name for group, part in graph.split(stays) if part.any()}


def all_criteria() -> list[Criterion]:
    """Every criterion of the registry, those of other packages included."""
    with criterion_errors():
        return list(CRITERIA)


def criterion_named(specification: str) -> Criterion:
    """The criterion of a name, with parameters or without.

    Raises:
        InputError: There is none, with the nearest name.
    """
    with criterion_errors():
        return CRITERIA.get(specification)


def criteria_of(config: SearchConfig) -> list[Criterion]:
    """The criteria of a configuration.

    Raises:
        CriterionError: There is none of some name, or one is there twice.
        InputError: One reads labels that are not to be read.
    """
    criteria = [CRITERIA.get(name) for name in config.criteria]
    distinct_names(criteria)
    _check_labels(criteria, config)
    return criteria


@contextmanager
def criterion_errors() -> Iterator[None]:
    """What a criterion refuses is bad input, in its words."""
    try:
        yield
    except CriterionError as error:
        raise InputError(str(error)) from error


def scored_by(
    task: Task, splits: Splits, graph: ChannelGraph, criteria: Sequence[Criterion], config: SearchConfig,
    *, lenient: bool = False,
) -> ScoreTable:  # fmt: skip
    """The scores by some criteria, from one sweep; says what the table notes.

    Nobody has named the default criteria, and not every network has something for each of them.

    Args:
        task: The task.
        splits: Its data.
        graph: The network's channel graph.
        criteria: The criteria.
        config: How to score by them.
        lenient: Whether the others are nobody's choice, either.

    Raises:
        CriterionError: A criterion that was chosen does not apply.
    """
    batches: Iterable[tuple[Tensor, Tensor]] = splits.calibration.batches(config.batch_size)
    loss, name = on_cpu(task.loss), config.calibration_loss
    metric = on_cpu(task.metric) if name == "task" else None
    copied = copy.deepcopy(task.model)  # with what it keeps of a pass, graphs for gradients would stay
    with reproducibly(), visiting(copied, config.device) as network, _bars() as on_step:
        if name != "task":
            loss, batches = label_free(name, network, batches)
        table = score(
            network, graph, list(batches), loss, criteria,
            metric=metric, seed=config.seed, on_step=on_step,
            strict=not lenient and config.criteria != DEFAULT_CRITERIA,
        )  # fmt: skip
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


def say_what_is_silent(table: ScoreTable, config: SearchConfig) -> None:
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


def scored_separately(
    task: Task, splits: Splits, graph: ChannelGraph, criteria: Sequence[Criterion], config: SearchConfig
) -> tuple[ScoreTable, dict[str, float]]:
    """The same table, and the seconds that each criterion took alone."""
    tables, seconds = [], {}
    for criterion in criteria:
        began = time.perf_counter()
        tables.append(scored_by(task, splits, graph, [criterion], config))
        seconds[criterion.name] = time.perf_counter() - began
    return merged(tables), seconds
