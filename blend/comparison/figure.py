"""The picture of a comparison: dendrogram, agreement, overlap of the tails, accuracy and cost, one row a criterion."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blend.comparison.compare import SAME
from blend.comparison.text import spread, treatment
from blend.errors import InputError

SUFFIXES = (".html", ".png", ".svg", ".pdf")
_ALONE = "#9aa0a6"
_SETS = ("#4c78a8", "#e07b39", "#59a14f", "#b07aa1", "#d1495b", "#76a5a0", "#a67c52", "#e2b93b")
_INK = "#222222"
_TREE, _BARS, _GAP, _TOP, _RIGHT = 1.15, 1.75, 0.3, 0.85, 0.3  # inches
_LEGIBLE = 0.22  # inches of a cell below which numbers in it are left out
_PLAIN: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.linewidth": 0.6, "axes.titlesize": 9, "axes.edgecolor": _INK,
    "svg.fonttype": "none", "svg.hashsalt": "blend", "pdf.fonttype": 42,
}  # fmt: skip


def check_figure(path: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Refuses a file that could not be drawn to, before the work is done.

    Raises:
        InputError: Saying why.
    """
    if path.suffix not in suffixes:
        raise InputError(f"figure must end in {', '.join(suffixes)}, got '{path}'")
    if not path.parent.is_dir():
        raise InputError(f"figure must lie in an existing folder, got '{path}'")
    if path.is_dir():
        raise InputError(f"figure must be a file, and '{path}' is a folder")


def draw_comparison(report: dict[str, Any], kind: str) -> bytes:
    """Draws what `blend.comparison.compare` found.

    Args:
        report: What was found.
        kind: The file's, such as ``svg``.

    Returns:
        The content of the file.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_PLAIN):
        page = _Page(report)
        figure = Figure(figsize=page.size)
        FigureCanvasAgg(figure)
        page.draw(figure)
        drawn = io.BytesIO()
        figure.savefig(drawn, format=kind, dpi=220, metadata={"Date": None} if kind == "svg" else None)
    return drawn.getvalue()


class _Page:
    """Five panels whose rows are the criteria in the dendrogram's order; measured in inches from the top left."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report
        self.names: list[str] = report["order"]
        self.count = len(self.names)
        self.cell = float(np.clip(5.2 / self.count, 0.2, 0.4))
        self.label = 0.065 * max(map(len, self.names)) + 0.1
        self.side = self.count * self.cell
        self.wide = max(self.side, 2.6)  # a matrix needs room for its title, however few rows it has
        self.left = 0.25 + _TREE + self.label
        self.bottom = self.label + 0.5
        bars = 2 * (_BARS + _GAP)
        self.size = (self.left + 2 * self.wide + _GAP + bars + _RIGHT, max(_TOP + self.side + self.bottom, 2.4))
        sets = [one["criteria"] for one in report["same"]]
        self.colour = {name: _SETS[i % len(_SETS)] for i, one in enumerate(sets) for name in one}

    def draw(self, figure: Any) -> None:
        """All panels, from left to right."""
        second = self.left + self.wide + _GAP
        third = second + self.wide + _GAP
        tree = self._axes(figure, 0.25, _TREE)
        self._draw_tree(tree)
        agreement = self._axes(figure, self.left, self.wide)
        title = "a   rank agreement (mean Spearman ρ)"
        self._draw_matrix(figure, agreement, self.left, self._matrix("mean_spearman"), title, ("RdBu_r", -1.0, 1.0))
        agreement.set_yticks(range(self.count), self.names)
        overlap = self._axes(figure, second, self.wide)
        title = f"b   overlap of the pruned {self.report['tail_share']:.0%}"
        self._draw_matrix(figure, overlap, second, self._matrix("mean_tail_overlap"), title, ("YlGnBu", 0.0, 1.0))
        overlap.set_yticks([])
        self._draw_accuracy(self._axes(figure, third, _BARS))
        self._draw_cost(self._axes(figure, third + _BARS + _GAP, _BARS))
        about = f"{self.report['task']}, {self.report['reduction']:.0%} fewer {_COST[self.report['cost']]}"
        place = {"x": 0.25 / self.size[0], "y": 1 - 0.12 / self.size[1], "ha": "left", "va": "top"}
        figure.suptitle(f"Pruning criteria on {about}", fontsize=11, fontweight="bold", **place)
        examples = f"{self.report['heldout_examples']} held-out examples"
        how = f"{spread(self.report)}; {treatment(self.report)}, not fine-tuned; {examples}"
        figure.text(place["x"], 1 - 0.34 / self.size[1], how, fontsize=7.5, color="#666666", va="top")
        for axes in (agreement, overlap):
            for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
                label.set_color(self.colour.get(label.get_text(), _INK))

    def _axes(self, figure: Any, x: float, width: float) -> Any:
        """A panel as high as the rows."""
        wide, high = self.size
        axes = figure.add_axes((x / wide, 1 - (_TOP + self.side) / high, width / wide, self.side / high))
        axes.set_ylim(self.count - 0.5, -0.5)
        axes.tick_params(length=0)
        return axes

    def _matrix(self, key: str) -> NDArray[np.float64]:
        where = [self.report["criteria"].index(name) for name in self.names]
        return np.array(self.report[key], dtype=np.float64)[np.ix_(where, where)]

    def _draw_tree(self, axes: Any) -> None:
        """Average linkage on 1 - ρ: leaves on the right, each beside its row."""
        place = {self.report["criteria"].index(name): (0.0, float(row)) for row, name in enumerate(self.names)}
        names = {leaf: {self.report["criteria"][leaf]} for leaf in place}
        for number, (a, b, distance, _) in enumerate(self.report["linkage"], start=self.count):
            (xa, ya), (xb, yb) = place[int(a)], place[int(b)]
            names[number] = names[int(a)] | names[int(b)]
            colours = {self.colour.get(name, _ALONE) for name in names[number]}
            colour = colours.pop() if len(colours) == 1 else _ALONE
            axes.plot([xa, distance, distance, xb], [ya, ya, yb, yb], color=colour, linewidth=1.3, clip_on=False)
            place[number] = (distance, (ya + yb) / 2)
        widest = max((merge[2] for merge in self.report["linkage"]), default=1.0)
        axes.set_xlim(max(widest, 1 - SAME) * 1.04, 0)
        axes.axvline(1 - SAME, color=_INK, linewidth=0.6, linestyle=(0, (2, 2)))
        ticks = [rho for rho in (1.0, 0.8, 0.5, 0.2, -0.1, -0.4) if 1 - rho <= widest * 1.04 or rho >= SAME]
        axes.set_xticks([1 - rho for rho in ticks], [f"{rho:g}" for rho in ticks])
        axes.set(yticks=[], xlabel="ρ where branches join")
        axes.spines[["top", "left", "right"]].set_visible(False)

    def _draw_matrix(
        self, figure: Any, axes: Any, x: float, matrix: NDArray[np.float64], title: str, scale: tuple[str, float, float]
    ) -> None:
        import matplotlib

        palette, low, high = scale
        colours = matplotlib.colormaps[palette]
        mesh = axes.imshow(matrix, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
        axes.set_xticks(range(self.count), self.names, rotation=90)
        axes.set_xticks(np.arange(1, self.count) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, self.count) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=0.7)
        axes.tick_params(which="minor", length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title, loc="left", pad=6)
        for (row, column), value in np.ndenumerate(matrix) if self.cell > _LEGIBLE else ():
            shown = "–" if np.isnan(value) else "1" if value > 0.995 else f"{value:.2f}".replace("0.", ".")
            red, green, blue, _ = colours((value - low) / (high - low))
            ink = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.55 else _INK
            size = {"fontsize": 17 * self.cell, "ha": "center", "va": "center", "color": ink}
            axes.text(column, row, shown, **size)
        wide, tall = self.size
        below = _TOP + self.side + self.label + 0.12
        bar = figure.add_axes((x / wide, 1 - (below + 0.09) / tall, 2.2 / wide, 0.09 / tall))
        middle = self.report["tail_share"] if low == 0 else 0.0  # what chance alone would give
        ticks = {low: f"{low:g}", middle: "chance", high: f"{high:g}"}
        figure.colorbar(mesh, cax=bar, orientation="horizontal").set_ticks(list(ticks), labels=list(ticks.values()))
        bar.tick_params(length=0, pad=2, labelsize=7)
        bar.spines[:].set_visible(False)
        mesh.colorbar.outline.set_visible(False)

    def _draw_accuracy(self, axes: Any) -> None:
        rows = {row["name"]: row for row in self.report["results"]}
        values = [rows[name]["heldout_metric"] for name in self.names]
        self._bars(axes, [value or 0.0 for value in values], ["–" if v is None else f"{v:.3f}" for v in values])
        unpruned, random = (self.report[key]["heldout_metric"] for key in ("unpruned", "random"))
        all_of_them = (0.0, unpruned, random, *(value for value in values if value is not None))
        axes.set_xlim(min(all_of_them) * 1.08, max(all_of_them) * 1.08)
        lines = {"random masks": (random, (0, (1, 1.5))), "unpruned": (unpruned, "solid")}
        for name, (value, style) in lines.items():
            axes.axvline(value, color=_INK, linewidth=0.9, linestyle=style)
            near = {"fontsize": 7, "rotation": 90, "ha": "center", "va": "top", "color": _INK}
            place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axes.annotate(name, (value, 0), (0, -15), **place, **near)
        axes.set_title("c   held-out metric", loc="left", pad=6)

    def _draw_cost(self, axes: Any) -> None:
        rows = {row["name"]: row["seconds"] for row in self.report["results"]}
        seconds = [max(rows[name], 1e-4) for name in self.names]
        axes.set_xscale("log")
        low, high = 10 ** np.floor(np.log10(min(seconds))), max(seconds)
        axes.set_xlim(low / 1.5, high * (high / low) ** 0.35 * 1.6)
        self._bars(axes, seconds, [_duration(value) for value in seconds])
        axes.minorticks_off()
        axes.set_title("d   time to score", loc="left", pad=6)

    def _bars(self, axes: Any, values: list[float], texts: list[str]) -> None:
        best = (self.report["recommended"] or {}).get("best")
        colours = [self.colour.get(name, _ALONE) for name in self.names]
        axes.barh(range(self.count), values, height=0.68, color=colours, zorder=2)
        for row, (value, text) in enumerate(zip(values, texts, strict=True)):
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
            weight = "bold" if self.names[row] == best else "normal"
            look = {"va": "center", "fontsize": 7, "fontweight": weight, "bbox": box, "zorder": 3}
            axes.annotate(text, (value, row), (3, 0), textcoords="offset points", **look)
        axes.set_yticks([])
        axes.spines[["top", "right"]].set_visible(False)


_COST = {"macs": "MACs", "params": "parameters"}


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.2g} ms" if seconds < 0.1 else f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"
