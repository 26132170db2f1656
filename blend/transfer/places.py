"""Where an exported blend is tried: tasks and reductions as they are asked for, and what stays there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blend.blended import BlendedCriterion
from blend.budget import Scores, check_reduction, keep_mask
from blend.config import SearchConfig, parse_options, search_config
from blend.errors import InputError
from blend.problem import Problem, prepare
from blend.progress import say
from criteria.graph import Keep

FROZEN, RECOMPUTED = "frozen", "recomputed"

WAYS = (FROZEN, RECOMPUTED)


@dataclass(frozen=True)
class Place:
    """A task that a blend is tried on.

    Attributes:
        masks: For each way of using the blend and each reduction, what stays, or why it cannot be used so.
    """

    label: str
    problem: Problem
    masks: Mapping[tuple[str, float], Keep | str]


def parse_reductions(text: str) -> tuple[float, ...]:
    """The shares of a list with commas, each in (0, 1) and there once.

    Raises:
        InputError: Naming the first that is not.
    """
    found: list[float] = []
    for part in text.split(","):
        try:
            reduction = float(part)
        except ValueError:
            raise InputError(f"reductions must be numbers with commas between them, got '{part.strip()}'") from None
        check_reduction(reduction)
        if reduction in found:
            raise InputError(f"reductions must be different from one another, got {reduction:g} twice")
        found.append(reduction)
    return tuple(found)


def parse_task(text: str, common: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """A task's name and options out of ``NAME,KEY=VALUE,...``; its own options go before those of all.

    Raises:
        InputError: An option that is none, or twice.
    """
    name, *own = text.split(",")
    if not name:
        raise InputError(f"a task must begin with its name, got '{text}'")
    return name, {**common, **parse_options(own)}


def pool(file: BlendedCriterion) -> tuple[str, ...]:
    """All criteria that the blend was searched among, as far as they could rank anything."""
    singles = (row["name"] for row in file.metrics.get("baselines", ()) if row["kind"] == "single")
    in_clusters = (name for group in file.groups for cluster in group.clusters for name in cluster)
    speaking = (spokesman.criterion for group in file.groups for spokesman in group.candidates)
    return tuple(dict.fromkeys([*singles, *in_clusters, *speaking]))


def config_for(
    file: BlendedCriterion, task: str, options: dict[str, str], reduction: float, settings: Mapping[str, Any]
) -> SearchConfig:
    """What a search on the task would have been asked for, with all that the file says."""
    own = ("cost", "allocation", "normalisation", "floor", "calibration_loss", "compensate", "seed")
    same: dict[str, Any] = {name: getattr(file, name) for name in own}
    return search_config(
        task=task, options=options, reduction=reduction, criteria=pool(file), ignore=tuple(file.task.get("ignore", ())),
        **same | {name: value for name, value in settings.items() if value is not None},
    )  # fmt: skip


def check_different(configs: Sequence[SearchConfig]) -> None:
    """Refuses a task that is there twice.

    Raises:
        InputError: Naming it.
    """
    seen: list[tuple[str, dict[str, str]]] = []
    for config in configs:
        if (config.task, config.options) in seen:
            raise InputError(f"tasks must be different from one another, got '{_label(config)}' twice")
        seen.append((config.task, config.options))


def _label(config: SearchConfig) -> str:
    return ",".join([config.title, *(f"{key}={value}" for key, value in config.options.items())])


def prepared(file: BlendedCriterion, config: SearchConfig, reductions: Sequence[float]) -> Place:
    """A task with all that is known of it before anything is judged; says in which ways the blend cannot be used.

    Raises:
        InputError: The task cannot be pruned, a reduction cannot be reached, or the search has seen its test data.
    """
    label = _label(config)
    say(f"preparing {label}")
    try:
        problem = prepare(config, lenient=True)
        _check_test_data(file, problem)
        for reduction in reductions:
            problem.at(reduction).check_reachable()
    except InputError as error:
        raise InputError(f"{label}: {error}") from error
    masks = {(way, r): mask_or_reason(file, problem.at(r), way) for r in reductions for way in WAYS}
    for note in dict.fromkeys(f"not {way}: {why}" for (way, _), why in masks.items() if isinstance(why, str)):
        say(f"note: {label}: {note}")
    return Place(label, problem, masks)


def _check_test_data(file: BlendedCriterion, problem: Problem) -> None:
    """Refuses to report on a whole split that the search has looked at; of single examples the file knows nothing."""
    here = problem.identity["test"]
    for name, split in file.task.get("splits", {}).items():
        if name != "test" and split["hash"] == here:
            raise InputError(f"its test data are the {name} data of the search, which would flatter the blend")


def mask_or_reason(file: BlendedCriterion, problem: Problem, way: str) -> Keep | str:
    """What stays, or why the blend cannot be used so: that is a finding like any other.

    Args:
        file: The blend.
        problem: A task, at some reduction.
        way: One of `WAYS`.
    """
    try:
        scores = file.frozen_scores(problem.graph) if way == FROZEN else _recomputed(file, problem)
        return keep_mask(problem.graph, scores, problem.config.reduction, problem.cost, problem.floor)
    except InputError as error:
        return str(error)


def _recomputed(file: BlendedCriterion, problem: Problem) -> Scores:
    known = {group.name for group in file.groups}
    for name in problem.clusters:
        if name not in known:
            raise InputError(f"the blend has no formula for group '{name}' of this network")
    return file.recomputed_scores(problem.table)
