"""Comparing criteria on one network, without a search: what each is worth, what it costs, and which say the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.cluster.hierarchy import fcluster

from blend.comparison.transform import Transform, group_costs
from blend.config import SearchConfig
from blend.errors import InputError
from blend.evaluation import Judge, Settings
from blend.objective.baselines import UNRANKED, Baseline
from blend.problem import Problem, prepare
from blend.progress import progress
from blend.task import Splits, Task
from criteria import redundancy
from criteria.clustering import agglomeration, mean_tail_overlap
from criteria.errors import CriterionValueError
from criteria.graph import Keep

SAME = 0.8
"""Criteria whose branches of the dendrogram join at this mean rank correlation or a higher one say the same."""

SURE = 1.96  # standard errors in a 95 % interval
RANDOM_MASKS = 10
"""So many tell how much masks of chance differ."""


@dataclass(frozen=True)
class Judged:
    """One contender on held-out data.

    Attributes:
        values: the metric of every example; the mean over masks where there are several.
        loss: mean loss.
        reduction: the share of the cost that is really gone.
        spread: standard deviation of the masks' mean metrics, where there are several.
    """

    values: NDArray[np.float64]
    loss: float
    reduction: float
    spread: float = 0.0

    def to_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return {"heldout_metric": float(self.values.mean()), "loss": self.loss, "reduction": self.reduction}


def compare(config: SearchConfig, transform: Transform = Transform()) -> dict[str, Any]:  # noqa: B008 — frozen
    """Score a task by every criterion, each for itself, and prune it by each.

    Args:
        config: Task, criteria, reduction, allocation, clustering and seed.
        transform: What happens to the scores before a global ranking.

    Returns:
        The redundancy report of `criteria.redundancy`, at the share of channels that the reduction takes, with
        ``order`` and ``linkage`` (the dendrogram), ``mean_tail_overlap``, ``results`` (per criterion: ``seconds``,
        ``heldout_metric``, ``loss``, ``reduction``, ``behind_best``, ``ci95``, ``note``), ``unpruned``, ``random``,
        ``same`` (sets of criteria) and ``recommended``. Random masks take the same share of every group.

    Raises:
        InputError: As for a search, or the transform does not fit the allocation or the network.
    """
    transform.check_allocation(config.allocation)
    problem = prepare(config, separately=True, check=_check_heldout)
    problem.check_reachable()
    transform.check_groups(problem.graph)
    chosen, reasons = _contenders(problem, transform)
    judged = _judged(problem, chosen)
    share = float(np.mean([np.mean(~mask) for baseline in chosen for mask in baseline.masks]))
    report = redundancy(problem.table, problem.clusters, share)
    report["mean_tail_overlap"] = _plain(mean_tail_overlap(problem.table, share)[1])
    tree, leaves = agglomeration(problem.table)
    results = _results(problem, chosen, judged, reasons)
    return {
        "task": config.title,
        "seed": config.seed,
        "reduction": config.reduction,
        "cost": config.cost,
        "allocation": config.allocation,
        "transform": transform.name,
        "calibration_loss": config.calibration_loss,
        "compensate": config.compensate,
        "heldout_examples": len(problem.splits.heldout) // problem.task.heldout_draws,
        **report,
        "linkage": tree.tolist(),
        "order": [problem.table.criteria[leaf] for leaf in leaves],
        "unpruned": judged["unpruned"].to_dict(),
        "random": judged["random-mask"].to_dict() | {"spread": judged["random-mask"].spread, "masks": RANDOM_MASKS},
        "results": results,
        "same": _same(report, tree.tolist()),
        "recommended": _recommended(results, judged),
    }


def _check_heldout(task: Task, splits: Splits) -> None:
    if len(splits.heldout) // task.heldout_draws < 2:
        raise InputError("heldout must have at least 2 examples to compare criteria on, got 1")


def _contenders(problem: Problem, transform: Transform) -> tuple[list[Baseline], dict[str, str]]:
    """The masks of every criterion that has some, those of chance, and why a criterion has none."""
    costs = group_costs(problem.graph, problem.cost)
    contest = replace(problem.contest, transform=lambda scores: transform(scores, costs))
    chosen, reasons = [], {}
    for name in problem.table.criteria:
        try:
            found = contest.single(name, problem.config.allocation)
        except CriterionValueError as error:
            reasons[name] = f"transform '{transform.name}' does not apply: {error}"
            continue
        if found is None:
            reasons[name] = UNRANKED[problem.config.allocation]
        else:
            chosen.append(found)
    return [*chosen, contest.random_masks(RANDOM_MASKS)], reasons


def _judged(problem: Problem, chosen: Sequence[Baseline]) -> dict[str, Judged]:
    """The unpruned network and every contender, after recalibration, on held-out data."""
    config, task = problem.config, problem.task
    settings = Settings.of(config)
    calibration, known = problem.splits.calibration.inputs, problem.consumer_inputs
    judge = Judge(task.model, problem.graph, task.loss, task.metric, calibration, settings, known)
    whole = Baseline("unpruned", "unpruned", "", (np.ones(len(problem.graph), dtype=bool),))
    contenders = [whole, *chosen]
    judged = {}
    with progress("pruning by each criterion", sum(len(contender.masks) for contender in contenders)) as bar:
        for contender in contenders:
            measured = []
            for mask in contender.masks:
                measured.append(_measured(judge, problem, mask))
                bar.advance(1, criterion=contender.name)
            losses, values, reductions = zip(*measured, strict=True)
            spread = float(np.std([some.mean() for some in values], ddof=1)) if len(values) > 1 else 0.0
            judged[contender.name] = Judged(
                np.mean(values, axis=0), float(np.mean(losses)), float(np.mean(reductions)), spread
            )
    return judged


def _measured(judge: Judge, problem: Problem, mask: Keep) -> tuple[float, NDArray[np.float64], float]:
    loss, values = judge.measure(mask, problem.splits.heldout)
    return loss, values.reshape(problem.task.heldout_draws, -1).mean(0), problem.cost.reduction(mask)


def _results(
    problem: Problem, chosen: Sequence[Baseline], judged: dict[str, Judged], reasons: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row a criterion, in the table's order; what could not be pruned by has None in the place of numbers."""
    notes = {baseline.name: baseline.note for baseline in chosen}
    ranked = [name for name in problem.table.criteria if name in judged]
    best = max(ranked, key=lambda name: judged[name].values.mean(), default=None)
    rows = []
    for name in problem.table.criteria:
        row: dict[str, Any] = {"name": name, "seconds": problem.seconds[name], "note": notes.get(name, "")}
        if name in judged and best is not None:
            behind, interval = _difference(judged[best], judged[name])
            row |= judged[name].to_dict() | {"behind_best": behind, "ci95": interval}
        else:
            row |= dict.fromkeys(("heldout_metric", "loss", "reduction", "behind_best", "ci95"))
            row["note"] = reasons[name]
        rows.append(row)
    return rows


def _difference(one: Judged, other: Judged) -> tuple[float, list[float]]:
    """By how much one is better, example by example, and the 95 % interval of that."""
    differences = one.values - other.values
    mean, error = float(differences.mean()), SURE * float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return mean, [mean - error, mean + error]


def _beats_random(best: Judged, random: Judged, contenders: int) -> bool:
    """Whether the best of some contenders would hardly be as good if all of them drew their masks at random.

    Examples are drawn, and random masks are: the best has to be above their mean by more than a t-interval of one more
    such mask allows, at 97.5 % for all contenders together (Bonferroni).
    """
    better, (low, high) = _difference(best, random)
    error = math.hypot((high - low) / (2 * SURE), random.spread * math.sqrt(1 + 1 / RANDOM_MASKS))
    return better > error * float(stats.t.ppf(1 - 0.025 / contenders, RANDOM_MASKS - 1))


def _recommended(results: Sequence[dict[str, Any]], judged: dict[str, Judged]) -> dict[str, Any] | None:
    """The most accurate criterion, those that the held-out data cannot tell from it, and the cheapest of them all."""
    ranked = sorted((row for row in results if row["heldout_metric"] is not None), key=lambda r: -r["heldout_metric"])
    if not ranked:
        return None
    best, *rest = ranked
    equals = [row for row in rest if row["ci95"][0] <= 0]
    cheapest = min((best, *equals), key=lambda row: row["seconds"])
    return {
        "best": best["name"],
        "not_told_apart": [row["name"] for row in equals],
        "cheapest": cheapest["name"],
        "beats_random": _beats_random(judged[best["name"]], judged["random-mask"], len(ranked)),
    }


def _same(report: dict[str, Any], tree: list[list[float]]) -> list[dict[str, Any]]:
    """The branches of the dendrogram that join at `SAME` or more, the largest first."""
    names = report["criteria"]
    labels = fcluster(np.array(tree), t=1 - SAME, criterion="distance").tolist() if tree else []
    branches = [[i for i, label in enumerate(labels) if label == one] for one in dict.fromkeys(labels)]
    rho, overlap = (np.array(report[key], dtype=np.float64) for key in ("mean_spearman", "mean_tail_overlap"))
    return [
        {
            "criteria": [names[member] for member in members],
            "lowest_rho": float(np.nanmin(rho[np.ix_(members, members)])),
            "lowest_tail_overlap": float(np.nanmin(overlap[np.ix_(members, members)])),
        }
        for members in sorted(branches, key=len, reverse=True)
        if len(members) > 1
    ]


def _plain(matrix: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]
