"""Whether an exported blend still wins elsewhere: at other reductions, on other weights, in other widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from blend.blended import BlendedCriterion
from blend.budget import ALLOCATIONS, Scores, check_reduction, keep_mask
from blend.config import SearchConfig, parse_options, search_config
from blend.errors import BlendError, InputError
from blend.evaluation import HeldoutEvaluation, Settings, TestEvaluation, Workspace, pack
from blend.evaluation.executors import open_executor
from blend.identity import weight_hash
from blend.objective.baselines import Baseline
from blend.pipeline.contenders import Contender, contender, tested, values_on_test
from blend.pipeline.evidence import margin
from blend.problem import Problem, prepare
from blend.progress import progress, say
from blend.task import task_function
from criteria.graph import Keep
from search.archive import Archive
from search.executor import Executor
from search.loop import evaluate_all

FROZEN, RECOMPUTED = "frozen", "recomputed"
WAYS = (FROZEN, RECOMPUTED)
CONTROL = "uniform-blend"


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


def transfer(
    path: Path, tasks: Sequence[str], reductions: Sequence[float] = (), *, options: Mapping[str, str] | None = None,
    **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Tries an exported blend on tasks and at reductions that it was not searched for.

    Each time it is used in two ways: by its frozen scores, which only a network of the same layout has, and by its
    formula on fresh scores of the network, for which that must have the same groups, of whatever widths. It is held
    against every single criterion of its pool under both allocations, with the same recalibration and compensation.

    Args:
        path: The criterion file.
        tasks: ``NAME,KEY=VALUE,...`` each.
        reductions: The file's own by default.
        options: For all tasks.
        settings: Other parameters of a search: ``seed`` (by default the file's), ``workers``, ``timeout``,
            ``batch_size`` and ``recalibration_images``.

    Returns:
        ``file``, ``searched``, ``cost``, ``allocation``, ``compensate``, ``criteria`` and ``tasks``: each with
        ``task``, ``options``, ``label``, ``network``, ``unpruned`` and ``results``, one a reduction: ``frozen``,
        ``recomputed`` and ``uniform_blend`` with held-out and test results, ``margin`` and ``verdict``, or with a
        ``reason``; ``singles``, the strongest on test data first; and ``failed``.

    Raises:
        InputError: Something given is wrong, or a reduction cannot be reached; nothing was judged then.
        BlendError: The unpruned network or all single criteria could not be judged.
    """
    file = BlendedCriterion.load(path)
    reductions = tuple(reductions) or (file.reduction,)
    configs = [_config(file, *parse_task(text, options or {}), reductions[0], settings) for text in tasks]
    _check_different(configs)
    for config in configs:
        task_function(config.task)
    with open_executor(configs[0]) as executor:
        places = [_place(file, config, reductions) for config in configs]
        results = [_tried(file, place, reductions, executor) for place in places]
    return {
        "file": path.name,
        "searched": {
            "task": file.task.get("name"), "options": file.task.get("options", {}), "seed": file.seed,
            "reduction": file.reduction, "margin": file.metrics.get("margin"),
        },
        "cost": file.cost,
        "allocation": file.allocation,
        "compensate": file.compensate,
        "criteria": list(pool(file)),
        "tasks": results,
    }  # fmt: skip


def _config(
    file: BlendedCriterion, task: str, options: dict[str, str], reduction: float, settings: Mapping[str, Any]
) -> SearchConfig:
    """What a search on the task would have been asked for, with all that the file says."""
    own = ("cost", "allocation", "normalisation", "floor", "calibration_loss", "compensate", "seed")
    same: dict[str, Any] = {name: getattr(file, name) for name in own}
    return search_config(
        task=task, options=options, reduction=reduction, criteria=pool(file), ignore=tuple(file.task.get("ignore", ())),
        **same | {name: value for name, value in settings.items() if value is not None},
    )  # fmt: skip


def _check_different(configs: Sequence[SearchConfig]) -> None:
    seen: list[tuple[str, dict[str, str]]] = []
    for config in configs:
        if (config.task, config.options) in seen:
            raise InputError(f"tasks must be different from one another, got '{_label(config)}' twice")
        seen.append((config.task, config.options))


def _label(config: SearchConfig) -> str:
    return ",".join([config.title, *(f"{key}={value}" for key, value in config.options.items())])


def _place(file: BlendedCriterion, config: SearchConfig, reductions: Sequence[float]) -> Place:
    label = _label(config)
    say(f"preparing {label}")
    problem = prepare(config)
    _check_test_data(file, problem, label)
    try:
        for reduction in reductions:
            problem.at(reduction).check_reachable()
    except InputError as error:
        raise InputError(f"{label}: {error}") from error
    masks = {(way, r): mask_or_reason(file, problem.at(r), way) for r in reductions for way in WAYS}
    for note in dict.fromkeys(f"not {way}: {why}" for (way, _), why in masks.items() if isinstance(why, str)):
        say(f"note: {label}: {note}")
    return Place(label, problem, masks)


def _check_test_data(file: BlendedCriterion, problem: Problem, label: str) -> None:
    """Refuses to report on data that the search has looked at."""
    here = problem.identity["test"]
    for name, split in file.task.get("splits", {}).items():
        if name != "test" and split["hash"] == here:
            raise InputError(f"{label}: its test data are the {name} data of the search, which would flatter the blend")


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


def _tried(file: BlendedCriterion, place: Place, reductions: Sequence[float], executor: Executor) -> dict[str, Any]:
    """Everything about one task."""
    problem = place.problem
    layout, weights = problem.identity["layout"], weight_hash(problem.task.model)
    same = "the searched one" if weights == file.network.weights else "other weights"
    rivals = {reduction: list(_rivals(file, place, reduction)) for reduction in reductions}
    whole = Baseline("unpruned", "unpruned", "", (np.ones(len(problem.graph), dtype=bool),))
    judged = _Judged(place, [whole, *(one for some in rivals.values() for one in some)], executor)
    ((unpruned,), _) = judged([whole])
    seed = problem.config.seed
    return {
        "task": problem.config.task,
        "options": problem.config.options,
        "label": place.label,
        "network": same if layout == file.network.layout else "another layout",
        "unpruned": {key: unpruned[key] for key in ("heldout_metric", "test_metric", "cost")},
        "results": [_result(place, reduction, *judged(some), seed) for reduction, some in rivals.items()],
    }


def _rivals(file: BlendedCriterion, place: Place, reduction: float) -> Iterator[Baseline]:
    """The blend in each way that it can be used in, every single criterion, and the control."""
    problem = place.problem.at(reduction)
    for way in WAYS:
        if not isinstance(keep := place.masks[way, reduction], str):
            yield Baseline(way, way, file.allocation, (keep,))
    yield from problem.contest.singles()
    yield from (problem.contest.uniform_blend(allocation) for allocation in ALLOCATIONS)


class _Judged:
    """What a place's contenders are worth: each different mask is judged once, on held-out and on test data."""

    def __init__(self, place: Place, everyone: Sequence[Baseline], executor: Executor) -> None:
        problem = place.problem
        config, phenotypes = problem.config, list(dict.fromkeys(pack(m) for one in everyone for m in one.masks))
        settings = Settings(config.cost, config.fitness, config.recalibration_images, config.batch_size)
        with TemporaryDirectory(prefix="blend-transfer-") as folder:
            workspace = Workspace(folder, config.task, token=folder)
            workspace.write(problem.task, problem.graph, problem.splits, settings, problem.consumer_inputs)
            with progress(f"{place.label}: held-out", len(phenotypes)) as bar:
                judged = evaluate_all(
                    HeldoutEvaluation(workspace), Archive(), executor, phenotypes, phase="transfer",
                    on_evaluation=lambda *_: bar.advance(),
                )  # fmt: skip
            self._heldout = {evaluation.phenotype: evaluation for evaluation in judged}
            good = [evaluation.phenotype for evaluation in judged if evaluation.error is None]
            self._test = values_on_test(TestEvaluation(workspace), good, executor, title=f"{place.label}: test")

    def __call__(self, some: Sequence[Baseline]) -> tuple[list[Contender], list[Contender]]:
        """Those with results, and those that failed, with the reason."""
        found, failed = [], []
        for one in some:
            evaluations = [self._heldout[pack(mask)] for mask in one.masks]
            errors = [evaluation.error for evaluation in evaluations if evaluation.error is not None]
            about = {"name": one.name, "kind": one.kind, "allocation": one.allocation}
            if errors and one.kind == "unpruned":
                raise BlendError(f"the unpruned network could not be judged: {errors[0]}")
            if errors:
                failed.append({**about, "reason": errors[0]})
            else:
                found.append(contender(**about, evaluations=evaluations, note=one.note))
        with_test, failed_on_test = tested(found, self._test)
        return with_test, failed + failed_on_test


def _result(
    place: Place, reduction: float, found: Sequence[Contender], failed: Sequence[Contender], seed: int
) -> dict[str, Any]:
    """One reduction of one task: who is worth what there, and by how much the blend wins or loses."""
    singles = [row for row in found if row["kind"] == "single"]
    if not singles:
        raise BlendError(f"{place.label}: no single criterion could be judged at reduction {reduction:g}")
    by_kind = {row["kind"]: row for row in sorted(found, key=lambda row: row["test_metric"])}
    reasons = {row["name"]: row["reason"] for row in failed}
    reasons |= {way: why for way in WAYS if isinstance(why := place.masks[way, reduction], str)}
    entries = {
        kind: _against(by_kind[kind], singles, seed) if kind in by_kind else {"reason": reasons[name]}
        for kind, name in ((FROZEN, FROZEN), (RECOMPUTED, RECOMPUTED), ("uniform_blend", CONTROL))
    }
    ranked = sorted(singles, key=lambda row: -row["test_metric"])
    return {"reduction": reduction, **entries, "singles": [_plain(row) for row in ranked], "failed": list(failed)}


def _against(row: Contender, singles: Sequence[Contender], seed: int) -> dict[str, Any]:
    found = margin(row, singles, seed)
    low, high = found["test_ci95"]
    verdict = "wins" if low > 0 else "loses" if high < 0 else "not told apart"
    return {**_plain(row), "margin": found, "verdict": verdict}


def _plain(row: Contender) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("examples", "kind")}
