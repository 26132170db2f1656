"""A comparison in words: tables for a terminal, and the sentences that answer what one came for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from blend.comparison.compare import SAME
from blend.progress import console
from blend.scoring import notes_in_words

_COST = {"macs": "MACs", "params": "parameters"}


def print_comparison(report: dict[str, Any]) -> None:
    """Everything that a comparison found, the answer last."""
    shown = console()
    clusters = Table(title="clusters of each group (the medoid, which speaks for the others, first)", box=None)
    clusters.add_column("group")
    clusters.add_column("clusters", overflow="fold")
    for name, group in report["groups"].items():
        clusters.add_row(name, "  |  ".join(", ".join(c["criteria"]) for c in group["clusters"]))
    for table in (clusters, _agreement(report), _worth(report)):
        shown.print(table)
        shown.print()
    for line in notes_in_words(report["notes"], len(report["groups"])):
        shown.print(line, soft_wrap=True)
    for row in report["results"]:
        if row["heldout_metric"] is None:
            shown.print(f"note: {row['name']}: {row['note']}", soft_wrap=True)
    for sentence in answer(report):
        shown.print(sentence, soft_wrap=True)


def answer(report: dict[str, Any]) -> Iterator[str]:
    """Which importance to use, and which ones are the same, each in a plain sentence."""
    yield _which(report)
    yield _alike(report)


def spread(report: dict[str, Any]) -> str:
    """How the reduction was spread over the layers."""
    if report["allocation"] == "uniform":
        return "every layer giving the same share"
    how = "" if report["transform"] == "none" else f" of {report['transform']} scores"
    return f"one ranking{how} over all layers"


def treatment(report: dict[str, Any]) -> str:
    """What has been done to the pruned networks."""
    grade = report["compensate"]
    return "recalibrated" if grade == "none" else f"compensated by {grade} and recalibrated"


def _agreement(report: dict[str, Any]) -> Table:
    """Above the diagonal ρ, below it the overlap, in the order of the dendrogram."""
    share = f"{report['tail_share']:.0%}"
    title = f"above the diagonal: mean Spearman ρ; below: overlap of the {share} of channels that would go"
    table = Table(title=title, box=None, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("")
    order = [report["criteria"].index(name) for name in report["order"]]
    for number in range(1, len(order) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for row, i in enumerate(order):
        rho, overlap = report["mean_spearman"][i], report["mean_tail_overlap"][i]
        cells = [_shaded(rho[j]) if column > row else _dim(overlap[j]) for column, j in enumerate(order)]
        cells[row] = Text("·")
        table.add_row(str(row + 1), report["criteria"][i], *cells)
    return table


def _worth(report: dict[str, Any]) -> Table:
    """What each criterion keeps and costs, the best first."""
    fewer = f"{report['reduction']:.0%} fewer {_COST[report['cost']]}"
    title = f"pruned by each: {fewer}, {spread(report)}, {treatment(report)}"
    table = Table(title=title, box=None)
    for column in ("criterion", "held-out", "behind the best (95 %)", "loss", "seconds", ""):
        table.add_column(column, justify="left" if column in ("criterion", "") else "right")
    nothing = float("-inf")
    for row in sorted(report["results"], key=lambda r: -(nothing if (m := r["heldout_metric"]) is None else m)):
        if row["heldout_metric"] is None:
            table.add_row(row["name"], "–", "–", "–", f"{row['seconds']:.2f}", "see note")
            continue
        low, high = row["ci95"]
        behind = f"{row['behind_best']:.3f} ({low:+.3f} … {high:+.3f})" if row["behind_best"] or high > low else "best"
        seconds = f"{row['seconds']:.2f}"
        table.add_row(row["name"], f"{row['heldout_metric']:.3f}", behind, f"{row['loss']:.3f}", seconds, row["note"])
    table.add_section()
    for name in ("random", "unpruned"):
        label = {"random": "random masks (mean)", "unpruned": "unpruned"}[name]
        found = report[name]
        table.add_row(label, f"{found['heldout_metric']:.3f}", "", f"{found['loss']:.3f}", "", "", style="dim")
    return table


def _which(report: dict[str, Any]) -> str:
    chosen = report["recommended"]
    if chosen is None:
        reasons = list(dict.fromkeys(row["note"] for row in report["results"]))
        return f"No criterion can be pruned by here: {'; '.join(reasons)}."
    rows = {row["name"]: row for row in report["results"]}
    best, equals = chosen["best"], chosen["not_told_apart"]
    scale = (
        f"{rows[best]['heldout_metric']:.3f} held-out after recalibration, unpruned "
        f"{report['unpruned']['heldout_metric']:.3f}, random masks {report['random']['heldout_metric']:.3f}"
    )
    if not chosen["beats_random"]:
        return f"None of them helps here: not even the best, {best}, beats random masks for sure ({scale})."
    also = ""
    if equals:
        also = f"; {report['heldout_examples']} examples cannot tell it from {_listed(equals)}"
        if rows[chosen["cheapest"]]["seconds"] < rows[best]["seconds"] / 2:
            also += f", of which {chosen['cheapest']} is the cheapest ({rows[chosen['cheapest']]['seconds']:.2g} s)"
    fewer = f"{report['reduction']:.0%} fewer {_COST[report['cost']]}"
    how = "" if report["allocation"] == "uniform" else f", {spread(report)}"
    return f"Use {best} on this network for {fewer}{how} ({scale}){also}."


def _alike(report: dict[str, Any]) -> str:
    same = report["same"]
    if not same:
        return f"No two of them are the same: none agree on the ranks at ρ ≥ {SAME:g}."
    sets = "; ".join(f"{_listed(one['criteria'])} (ρ ≥ {_floor(one['lowest_rho'])})" for one in same)
    alone = [name for name in report["criteria"] if all(name not in one["criteria"] for one in same)]
    own = "says something of its own" if len(alone) == 1 else "each say something of their own"
    rest = f" {_listed(alone)} {own}." if alone else ""
    return f"The same, so that one of each is enough: {sets}.{rest}"


def _floor(rho: float) -> str:
    return f"{int(rho * 100) / 100:.2f}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _shaded(rho: float | None) -> Text:
    if rho is None:
        return Text("–")
    colour = "bold green" if rho >= SAME else "red" if rho < 0.2 else "default"
    return Text(_short(rho), colour)


def _dim(value: float | None) -> Text:
    return Text("–") if value is None else Text(_short(value), "dim")


def _short(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".")
