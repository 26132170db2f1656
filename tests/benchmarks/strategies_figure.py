"""The picture of what strategies and encodings find: one panel per task and reduction, one row each."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLOURS = ("#c7e9c0", "#74c476", "#00441b")


def draw(
    path: Path, tasks: Sequence[str], reductions: Sequence[str], variants: Sequence[str], budgets: Sequence[int],
    points: Callable[[str, str, str, int], Sequence[float]],
) -> None:  # fmt: skip
    """Draws gains on test data.

    Args:
        path: A file, whose suffix says how.
        tasks: One row of panels each.
        reductions: One column of panels each.
        variants: Named from top to bottom.
        budgets: Up to three numbers of candidates, rising.
        points: Of a task, a reduction, a variant and a budget, the gain on each network; none if that was not run.
    """
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        size = (3.4 * len(reductions) + 1.6, (0.22 * len(variants) + 0.8) * len(tasks) + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(tasks), len(reductions), squeeze=False, sharey=True, sharex="row")
        for row, task in zip(panels, tasks, strict=True):
            for axes, reduction in zip(row, reductions, strict=True):
                _draw_panel(axes, variants, budgets, lambda v, n, t=task, r=reduction: points(t, r, v, n))
                axes.set_title(f"{task}, {reduction} of the MACs removed", fontsize=9)
        panels[-1][0].legend(frameon=False, fontsize=7, loc="lower right", title="candidates", title_fontsize=7)
        figure.supxlabel("points over the strongest single criterion on test data: mean (large), networks", fontsize=9)
        figure.savefig(path, dpi=130)


def _draw_panel(
    axes: Any, variants: Sequence[str], budgets: Sequence[int], points: Callable[[str, int], Sequence[float]]
) -> None:
    for budget, colour in zip(budgets, _COLOURS, strict=False):
        found = {number: points(variant, budget) for number, variant in enumerate(variants)}
        found = {number: values for number, values in found.items() if values}
        for number, values in found.items():
            axes.plot(values, [number] * len(values), ".", color=colour, markersize=3)
        means = [sum(values) / len(values) for values in found.values()]
        axes.plot(means, list(found), "o", color=colour, markersize=6, label=f"{budget:,}")
    axes.set_yticks(range(len(variants)), variants)
    axes.tick_params(labelsize=8)
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(axis="y", linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)
