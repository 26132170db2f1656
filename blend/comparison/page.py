"""The page of a comparison: one HTML file that asks for nothing else, with every group's matrices and clusters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from blend.blended.document import write_whole
from blend.comparison.figure import draw_comparison
from blend.comparison.text import answer, spread, treatment

_STEPS = 20
_PALETTES = {"r": ("RdBu_r", -1.0, 1.0), "o": ("YlGnBu", 0.0, 1.0)}
_STYLE = """\
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 100rem;
       padding: 0 1.5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; } .dim { color: #666; }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.results th, .results td { padding: .15rem .8rem; text-align: right; border-bottom: 1px solid #eee; }
.results th:first-child, .results td:first-child, .results td:last-child { text-align: left; }
.results .best { font-weight: 600; }
details { border: 1px solid #ddd; border-radius: 4px; margin: .4rem 0; padding: .3rem .8rem; }
summary { cursor: pointer; } summary b { margin-right: .8rem; }
.pair { display: flex; flex-wrap: wrap; gap: 2.5rem; }
.matrix { font-size: 11px; } .matrix caption { text-align: left; padding: .4rem 0; font-size: 13px; }
.matrix td { min-width: 2.2em; height: 2.2em; text-align: center; border: 1px solid #fff; }
.matrix tbody th { text-align: right; padding-right: .5em; font-weight: 400; }
.matrix thead th { writing-mode: vertical-rl; transform: rotate(180deg); font-weight: 400; text-align: left; }
"""


def save_comparison(report: dict[str, Any], path: Path) -> None:
    """Writes what `blend.comparison.compare` found as a page or a picture, by the file's suffix.

    Raises:
        InputError: If the file cannot be written.
    """
    is_page = path.suffix == ".html"
    write_whole(path, page(report).encode() if is_page else draw_comparison(report, path.suffix[1:]))


def page(report: dict[str, Any]) -> str:
    """The whole document: the answer, the figure, what each criterion keeps and costs, and then group by group."""
    title = f"Pruning criteria on {report['task']}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{_STYLE}{_colours()}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(sentence)}</p>" for sentence in answer(report)),
        f'<div class="wide" id="figure">{_figure(report)}</div>',
        '<h2 id="results">What each criterion keeps and costs</h2>',
        *_results(report),
        '<h2 id="groups">Group by group</h2>',
        '<p class="dim">Criteria stand beside those of their cluster, the medoid, which speaks for it, first.</p>',
        *(_group(name, group, report) for name, group in report["groups"].items()),
        *_notes(report),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _figure(report: dict[str, Any]) -> str:
    """The picture as an element of the page, where it needs no namespaces, and no word on who drew it."""
    text = draw_comparison(report, "svg").decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).strip()
    return text.replace("<svg", '<svg role="img" aria-label="rank agreement, overlap, accuracy and cost"', 1)


def _results(report: dict[str, Any]) -> Iterator[str]:
    """The table, the best first; what could not be pruned by last."""
    columns = ("criterion", "held-out", "behind the best", "95 %", "loss", "reduction", "seconds", "")
    yield f'<p class="dim">{report["reduction"]:.0%} fewer {escape(report["cost"])}, {escape(spread(report))}; '
    yield f"{treatment(report)}, not fine-tuned; {report['heldout_examples']} held-out examples.</p>"
    yield f'<div class="wide"><table class="results"><thead><tr>{_cells("th", columns)}</tr></thead><tbody>'
    best = (report["recommended"] or {}).get("best")
    for row in sorted(report["results"], key=_worth):
        style = ' class="best"' if row["name"] == best else ""
        yield f"<tr{style}>{_cells('td', _values(row))}</tr>"
    for name, label in (("random", "random masks (mean)"), ("unpruned", "unpruned")):
        found = report[name]
        values = (label, f"{found['heldout_metric']:.3f}", "", "", f"{found['loss']:.3f}", f"{found['reduction']:.3f}")
        yield f'<tr class="dim">{_cells("td", (*values, "", ""))}</tr>'
    yield "</tbody></table></div>"


def _worth(row: dict[str, Any]) -> float:
    return float("inf") if row["heldout_metric"] is None else -float(row["heldout_metric"])


def _values(row: dict[str, Any]) -> tuple[str, ...]:
    seconds = f"{row['seconds']:.3f}"
    if row["heldout_metric"] is None:
        return (row["name"], *("–" for _ in range(5)), seconds, row["note"])
    low, high = row["ci95"]
    metric, behind, loss, reduction = (
        f"{row[key]:.3f}" for key in ("heldout_metric", "behind_best", "loss", "reduction")
    )
    return (row["name"], metric, behind, f"{low:+.3f} … {high:+.3f}", loss, reduction, seconds, row["note"])


def _cells(kind: str, values: Sequence[str]) -> str:
    return "".join(f"<{kind}>{escape(value)}</{kind}>" for value in values)


def _group(name: str, group: dict[str, Any], report: dict[str, Any]) -> str:
    """One group: its clusters in the summary, its matrices inside."""
    clusters = "  |  ".join(", ".join(cluster["criteria"]) for cluster in group["clusters"])
    order = [criterion for cluster in group["clusters"] for criterion in cluster["criteria"]]
    where = [group["criteria"].index(criterion) for criterion in order]
    tail = f"overlap of the {report['tail_share']:.0%} of channels that would go"
    matrices = (
        _matrix("Spearman's ρ", order, [[group["spearman"][i][j] for j in where] for i in where], "r"),
        _matrix(tail, order, [[group["tail_overlap"][i][j] for j in where] for i in where], "o"),
    )
    inside = f'<div class="pair">{"".join(matrices)}</div>' if order else "<p>No criterion can rank it.</p>"
    return f"<details><summary><b>{escape(name)}</b>{escape(clusters)}</summary>{inside}</details>"


def _matrix(title: str, names: Sequence[str], values: Sequence[Sequence[float]], palette: str) -> str:
    """A heat map that can be read, copied and spoken: a table whose cells are coloured by class."""
    head = f"<caption>{escape(title)}</caption><thead><tr><td></td>{_cells('th', names)}</tr></thead>"
    rows = (
        f"<tr><th>{escape(name)}</th>{''.join(_coloured(value, palette) for value in row)}</tr>"
        for name, row in zip(names, values, strict=True)
    )
    return f'<div class="wide"><table class="matrix">{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _coloured(value: float, palette: str) -> str:
    _, low, high = _PALETTES[palette]
    step = round((value - low) / (high - low) * _STEPS)
    return f'<td class="{palette}{step}">{value:.2f}</td>'


def _colours() -> str:
    """A class for each step of each palette, with an ink that can be read on it."""
    import matplotlib

    rules = []
    for letter, (palette, _, _) in _PALETTES.items():
        for step in range(_STEPS + 1):
            red, green, blue, _ = matplotlib.colormaps[palette](step / _STEPS)
            ink = "#fff" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.55 else "#222"
            shade = "".join(f"{round(255 * part):02x}" for part in (red, green, blue))
            rules.append(f".{letter}{step} {{ background: #{shade}; color: {ink}; }}\n")
    return "".join(rules)


def _notes(report: dict[str, Any]) -> Iterator[str]:
    if report["notes"]:
        yield '<h2 id="notes">Notes</h2><ul>'
        for note in report["notes"]:
            yield f"<li>{escape(note['criterion'])} in {escape(note['group'])}: {escape(note['reason'])}</li>"
        yield "</ul>"
