"""The picture of a result: how the search went, and how everything compares on test data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from blend.report.front import front_rows
from blend.runs import CONTROL, POLISH, SEARCH, Run
from search.archive import Archive

_BLEND, _RANDOM, _SINGLE, _OTHER = "#1b7837", "#999999", "#4575b4", "#8c8c8c"
BARS = 14


def draw_result(run: Run, path: Path) -> None:
    """Draws a finished run: best held-out metric against evaluations, and the strongest contenders on test data.

    Of a front: held-out metric against reduction, and what is exported on test data.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    if (rows := front_rows(run)) is None:
        _draw_course(left, run)
        _draw_comparison(right, run.get("result"))
    else:
        _draw_fronts(left, run)
        _draw_front_on_test(right, rows, run.get("result"))
    less = " to ".join(f"{share:.0%}" for share in run.config.reductions or (run.config.reduction,))
    figure.suptitle(f"{run.config.title}, {less} less {run.config.cost}, after recalibration")
    figure.savefig(path, dpi=130)


def _draw_fronts(axes: Any, run: Run) -> None:
    """All candidates, and of the search and the control those that nothing dominates."""
    archive = Archive(run.evaluations())
    for phase, label, colour in ((CONTROL, "random search", _RANDOM), (SEARCH, "search (nsga2)", _BLEND)):
        judged = [e.details for e in archive.history(phase) if e.error is None]
        front = [e.details for e in archive.front("cost", phase)]
        for some, style in ((judged, {"s": 4, "alpha": 0.4, "linewidths": 0}), (front, {"s": 14})):
            axes.scatter([d["reduction"] for d in some], [d["metric"] for d in some], color=colour, **style)
        axes.plot([d["reduction"] for d in front], [d["metric"] for d in front], color=colour, label=label)
    for point in run.get("front"):
        singles = [row for row in point["baselines"] if row["kind"] == "single"]
        if singles:
            best = max(singles, key=lambda row: row["heldout_metric"])
            axes.plot(best["reduction"], best["heldout_metric"], "D", color=_SINGLE)
    axes.plot([], [], "D", color=_SINGLE, label="best single criterion")
    unpruned = run.get("result")["unpruned"]["heldout_metric"]
    axes.axhline(unpruned, color="black", linestyle=":", linewidth=1, label="unpruned")
    axes.set(xlabel=f"share of {run.config.cost} removed", ylabel="held-out metric", title="the front")
    axes.legend(frameon=False, loc="best")


def _draw_front_on_test(axes: Any, rows: list[dict[str, Any]], result: dict[str, Any]) -> None:
    """What is exported, against the strongest single criterion and the control at the same reductions."""
    axes.plot(
        [row["achieved_reduction"] for row in rows], [row["test_metric"] for row in rows], "o-", color=_BLEND,
        label="blend",
    )  # fmt: skip
    for key, label, colour in (("single", "strongest single there", _SINGLE), ("random_search", "random", _RANDOM)):
        some = [row[key] for row in rows if row[key] is not None]
        where = [row["reduction"] for row in some]
        axes.plot(where, [row["test_metric"] for row in some], "D--", color=colour, label=label)
    axes.axhline(result["unpruned"]["test_metric"], color="black", linestyle=":", linewidth=1, label="unpruned")
    axes.set(xlabel="share removed", title="test metric of what is exported")
    axes.legend(frameon=False, loc="best")


def _draw_course(axes: Any, run: Run) -> None:
    result = run.get("result")
    searched = f"search ({run.config.strategy})"
    for phases, label, colour in (((CONTROL,), "random search", _RANDOM), ((SEARCH, POLISH), searched, _BLEND)):
        history = [e for phase in phases for e in run.evaluations() if e.phase == phase]
        if history:
            leader = np.maximum.accumulate([e.fitness for e in history])
            metric = {e.fitness: e.details["metric"] for e in history if e.error is None}
            axes.step(range(1, len(history) + 1), [metric.get(f) for f in leader], color=colour, label=label)
    if run.config.polish:
        polished_from = sum(e.phase == SEARCH for e in run.evaluations())
        axes.axvline(polished_from, color=_BLEND, linestyle=":", linewidth=1, label="polished from here")
    singles = [row["heldout_metric"] for row in result["baselines"] if row["kind"] == "single"]
    if singles:
        axes.axhline(max(singles), color=_SINGLE, linestyle="--", linewidth=1, label="best single criterion")
    axes.axhline(result["unpruned"]["heldout_metric"], color="black", linestyle=":", linewidth=1, label="unpruned")
    axes.set(xlabel="evaluations", ylabel="held-out metric of the best so far", title="search")
    axes.legend(frameon=False, loc="best")


def _draw_comparison(axes: Any, result: dict[str, Any]) -> None:
    colours = {"blend": _BLEND, "single": _SINGLE}
    rows = sorted([result["best"], *result["baselines"]], key=lambda row: row["test_metric"])[-BARS:]
    names = [f"{row['name']} · {row['allocation']}" for row in rows]
    axes.barh(names, [row["test_metric"] for row in rows], color=[colours.get(row["kind"], _OTHER) for row in rows])
    for place, row in enumerate(rows):
        inside = {"ha": "right", "va": "center", "fontsize": 8, "color": "white"}
        axes.text(row["test_metric"], place, f"{row['test_metric']:.3f} ", **inside)
    unpruned = result["unpruned"]["test_metric"]
    axes.axvline(unpruned, color="black", linestyle=":", linewidth=1)
    axes.text(unpruned, -1.0, "unpruned ", ha="right", va="center", fontsize=8)
    axes.set_ylim(-1.5, len(rows) - 0.4)
    axes.set(title=f"test metric, the best {len(rows)} of {1 + len(result['baselines'])}")
    axes.spines[["top", "right"]].set_visible(False)
