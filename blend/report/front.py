"""What a run has to say about its front. Reads run folders only."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from blend.report.units import Unit
from blend.runs import CONTROL, SEARCH, Run, export_at
from blend.runs.course import course


def front_rows(run: Run) -> list[dict[str, Any]] | None:
    """The blends of a finished front by rising reduction, each against its own opponents; None where there is none.

    Returns:
        Of each the ``reduction`` that it has at least and the ``achieved_reduction``, ``fitness``, ``heldout_metric``
        and ``test_metric``; ``single``, the single criterion that is strongest there on test data, ``margin`` over
        it, and ``random_search`` if there was one, all at the same reduction; and its ``file``.
    """
    points = run.get("front")
    return None if points is None else [_row(point) for point in points]


def _row(point: dict[str, Any]) -> dict[str, Any]:
    kinds = {kind: [row for row in point["baselines"] if row["kind"] == kind] for kind in ("single", "random_search")}
    return {
        "reduction": point["reduction"],
        "achieved_reduction": point["achieved_reduction"],
        **{key: point["best"][key] for key in ("fitness", "heldout_metric", "test_metric")},
        "single": max(kinds["single"], key=lambda row: row["test_metric"], default=None),
        "margin": point["margin"],
        "random_search": next(iter(kinds["random_search"]), None),
        "file": export_at(point["reduction"]),
    }


def hypervolumes(run: Run) -> dict[str, float] | None:
    """The last hypervolume (`blend.runs.course.conquered`) of the search and the control; None without a front."""
    if run.config.reductions is None:
        return None
    return {phase: records[-1]["hypervolume"] for phase in (SEARCH, CONTROL) if (records := course(run, phase))}


def front_table(run: Run, rows: list[dict[str, Any]]) -> Table:
    """One line a blend, with the strongest single criterion and random search at the same reduction."""
    table = Table(title=f"{run.name}: the front, {run.config.cost} of {run.config.title} removed", box=None)
    for column in ("at least", "removed", "held-out", "test", "strongest single there", "test", "margin", "random"):
        table.add_column(column, justify="left" if column == "strongest single there" else "right")
    unit = Unit.of(row[f"{split}_metric"] for row in rows for split in ("heldout", "test"))
    for row in rows:
        single, chance, margin = row["single"], row["random_search"], row["margin"]
        table.add_row(
            f"{row['reduction']:g}", f"{row['achieved_reduction']:.4f}", f"{row['heldout_metric']:.4f}",
            Text(f"{row['test_metric']:.4f}", "bold green"),
            *((f"{single['name']}, {single['allocation']}", f"{single['test_metric']:.4f}") if single else ("", "")),
            f"{unit(margin['test'])} ({unit.interval(margin['test_ci95'])})",
            f"{chance['test_metric']:.4f}" if chance else "",
        )  # fmt: skip
    return table


def front_in_words(volumes: dict[str, float]) -> str:
    """How much of the picture the front has conquered, and the control's."""
    chance = f" (random search: {volumes[CONTROL]:.4f})" if CONTROL in volumes else ""
    return (
        f"Hypervolume of the front on held-out data: {volumes[SEARCH]:.4f}{chance}, where 1 would be all between the "
        f"weakest and the strongest network that was judged before the search."
    )
