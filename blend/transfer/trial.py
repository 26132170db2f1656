"""Whether an exported blend still wins elsewhere: at other reductions, on other weights, in other widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from blend.blended import BlendedCriterion
from blend.budget import ALLOCATIONS
from blend.errors import BlendError
from blend.evaluation import HeldoutEvaluation, Settings, TestEvaluation, Workspace, pack
from blend.evaluation.executors import open_executor
from blend.identity import weight_hash
from blend.objective.baselines import Baseline
from blend.pipeline.contenders import Contender, contender, tested, values_on_test
from blend.pipeline.evidence import margin
from blend.progress import progress
from blend.task import task_function
from blend.transfer.places import (
    FROZEN,
    RECOMPUTED,
    WAYS,
    Place,
    check_different,
    config_for,
    parse_task,
    pool,
    prepared,
)
from search.archive import Archive
from search.errors import SearchError
from search.executor import Executor
from search.loop import evaluate_all

CONTROL = "uniform-blend"


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
        BlendError: The unpruned network or all single criteria could not be judged, or no worker can judge at all.
    """
    file = BlendedCriterion.load(path)
    reductions = tuple(reductions) or (file.reduction,)
    configs = [config_for(file, *parse_task(text, options or {}), reductions[0], settings) for text in tasks]
    check_different(configs)
    for config in configs:
        task_function(config.task)
    try:
        with open_executor(configs[0]) as executor:
            places = [prepared(file, config, reductions) for config in configs]
            results = [_tried(file, place, reductions, executor) for place in places]
    except SearchError as error:
        raise BlendError(str(error)) from error
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
        settings = Settings.of(config)
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
