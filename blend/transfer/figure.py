"""The picture of a transfer: by how much the blend wins or loses at each reduction, one panel a task."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from blend.blended.document import write_whole
from blend.transfer.text import KINDS, unit_of

SUFFIXES = (".png", ".svg", ".pdf")
_STYLES = {"frozen": ("#1b7837", "o-", 8), "recomputed": ("#4575b4", "s-", 4), "uniform_blend": ("#999999", "^--", 4)}
_PLAIN: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "blend", "pdf.fonttype": 42}
_ACROSS = 3  # panels in a row


def draw_transfer(report: dict[str, Any], path: Path) -> None:
    """Draws what `transfer` found: margins over the strongest single criterion, with their intervals.

    Args:
        report: What was found.
        path: A file, whose suffix says how.

    Raises:
        InputError: If the file cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = report["tasks"]
    across = min(_ACROSS, len(tasks))
    down = -(-len(tasks) // across)
    with matplotlib.rc_context(_PLAIN):
        figure = Figure(figsize=(4.2 * across + 0.6, 3.4 * down + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(down, across, squeeze=False, sharey=True).flat
        unit = unit_of(tasks)
        for axes, task in zip(panels, tasks, strict=False):
            _draw_task(axes, task, report["cost"], unit.factor)
        for axes in panels:
            axes.set_visible(False)
        figure.axes[0].legend(frameon=False, fontsize=8)
        gain = unit.name or "metric"
        figure.axes[0].set_ylabel(gain)
        figure.suptitle(f"{report['file']}: {gain} over the strongest single on test data (95 %)", fontsize=10)
        drawn, kind = io.BytesIO(), path.suffix[1:]
        figure.savefig(drawn, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    write_whole(path, drawn.getvalue())


def _draw_task(axes: Any, task: dict[str, Any], cost: str, factor: float) -> None:
    for kind, (colour, style, size) in _STYLES.items():  # where two lines are one, both can be seen
        points = [(r["reduction"], r[kind]["margin"]) for r in task["results"] if "margin" in r[kind]]
        points.sort(key=lambda point: point[0])
        middle = [factor * margin["test"] for _, margin in points]
        below = [m - factor * margin["test_ci95"][0] for m, (_, margin) in zip(middle, points, strict=True)]
        above = [factor * margin["test_ci95"][1] - m for m, (_, margin) in zip(middle, points, strict=True)]
        axes.errorbar(
            [reduction for reduction, _ in points], middle, yerr=(below, above), fmt=style, color=colour, capsize=3,
            markersize=size, linewidth=1.2, label=KINDS[kind],
        )  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel=f"share of {cost} removed")
    axes.set_title(f"{task['label']} ({task['network']})", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
