"""What a run has to say: a summary as plain data, and tables for people. Reads run folders only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from blend.errors import InputError
from blend.limits import counted, ending
from blend.progress import console, say
from blend.report.front import front_in_words, front_rows, front_table, hypervolumes
from blend.report.units import Unit
from blend.runs import CONTROL, FINAL, POLISH, SEARCH, Run
from blend.runs.course import course, course_in_words


def summary(run: Run) -> dict[str, Any]:
    """Everything about a run that a program may want to know; the keys are a promise."""
    config, counts, result = run.config, run.counts(), run.get("result")
    least = config.reduction if config.reductions else 0.0
    best = run.best(FINAL[SEARCH], FINAL[POLISH], reduction=least) or run.best(SEARCH, reduction=least)
    ended = run.get("search-ended")
    searched = config.evaluations - config.polish
    left = math.ceil(max(0, searched - counts["evaluations"]) / config.population)  # the first may have had more
    done = counts["generations_done"]
    generations = done if ended else max(done, min(config.generations or math.inf, done + left))
    return {
        "id": run.name,
        "status": run.status,
        "task": config.task,
        "options": config.options,
        "seed": config.seed,
        "reduction": config.reduction,
        "reductions": config.reductions,
        "achieved_reduction": result["achieved_reduction"] if result else (best.details["reduction"] if best else None),
        "cost": {
            "kind": config.cost,
            "unpruned": run.get("unpruned_cost"),
            "pruned": best.details["cost"] if best else None,
        },
        "generation": done,
        "generations": None if config.is_timed and not (config.generations or ended) else generations,
        "evaluations": counts["evaluations"],
        "unique_evaluations": counts["unique_evaluations"],
        "seconds": run.get("seconds", 0.0),
        "encoding": config.encoding,
        "strategy": config.strategy,
        "compensate": config.compensate,
        "ended": ended,
        "best": {
            "fitness": best.fitness if best else None,
            "heldout_metric": best.details["metric"] if best else None,
            "test_metric": result["best"]["test_metric"] if result else None,
        },
        "baselines": result["baselines"] if result else [],
        "failed_baselines": result.get("failed", []) if result else [],
        "unpruned": result["unpruned"] if result else None,
        "margin": result["margin"] if result else None,
        "polish": result.get("polish") if result else None,
        "front": front_rows(run),
        "hypervolume": hypervolumes(run),
        "artefacts": {path.name: str(path) for path in run.artefacts()},
        "error": run.get("error"),
    }


def print_result(run: Run) -> None:
    """The table of all baselines and the blend, best test result first, and the verdict in words."""
    about = summary(run)
    shown = console()
    if about["margin"] is not None:
        shown.print(_comparison(run, about))
        if about["front"] is not None:
            shown.print(front_table(run, about["front"]))
        shown.print(verdict_in_words(about), soft_wrap=True)
        if run.config.compensate != "none":
            compensated = f"All of them are compensated by {run.config.compensate} before they are recalibrated."
            shown.print(compensated, soft_wrap=True)
        if run.config.polish:
            shown.print(polish_in_words(about["polish"], unit_of(about)), soft_wrap=True)
    else:
        shown.print(_progress_in_words(about), soft_wrap=True)
    if about["ended"] is not None:
        shown.print(f"The search ended: {ending(about['ended'], run.config)}.", soft_wrap=True)
    if about["hypervolume"]:
        shown.print(front_in_words(about["hypervolume"]), soft_wrap=True)
    if records := course(run):
        shown.print(course_in_words(records), soft_wrap=True)
    if about["margin"] is not None and about["status"] != "finished":
        shown.print(f"{about['id']} is {about['status']}: its files are yet to be written.", soft_wrap=True)
    for path in about["artefacts"].values():
        shown.print(f"  {path}", soft_wrap=True)


def print_course(run: Run) -> None:
    """One line a generation, of the search and of polishing; for a front, of its control, too."""
    if records := course(run):
        _print_course(f"{run.name}: the search, generation by generation", records)
    else:
        say(f"{run.name}: no generation has ended yet")
    if records := course(run, POLISH):
        _print_course(f"{run.name}: polishing, generation by generation", records)
    if run.config.reductions and (records := course(run, CONTROL)):
        _print_course(f"{run.name}: random search, generation by generation", records)


def _print_course(title: str, records: Sequence[dict[str, Any]]) -> None:
    table = Table(title=title, box=None)
    shares = ("genomes", "masks", "new")
    goal, title = ("hypervolume", "volume") if "hypervolume" in records[0] else ("best", "best fitness")
    for column in ("generation", title, *shares, "entropy", "spread", "known", "varied", "given up"):
        table.add_column(column, justify="right")
    for record in records:
        table.add_row(
            str(record["generation"] + 1), _number(record[goal]), *(f"{record[share]:.0%}" for share in shares),
            f"{record['entropy']:.2f}", f"{record['spread']:.2f}", f"{record['known']} of {record['proposed']}",
            f"×{record['boost']:.2g}", str(record["given_up"]),
        )  # fmt: skip
    console().print(table)


def verdict_in_words(about: dict[str, Any]) -> str:
    """Two sentences: by how much the blend wins or loses, and how much was removed."""
    margin, unit = about["margin"], unit_of(about)
    low, high = margin["test_ci95"]
    verb = "wins" if margin["test"] > 0 else "does not win"
    sure = "" if low > 0 or high < 0 else "; the interval includes zero, so this is no proof"
    what = "single criterion" if any(row["kind"] == "single" for row in about["baselines"]) else "baseline"
    return (
        f"The blend {verb}: {unit.named(margin['test'])} on test data against the strongest {what} "
        f"there, {margin['test_over']} (95 % interval {unit.interval((low, high))}{sure}); {unit(margin['heldout'])} "
        f"on held-out data against {margin['heldout_over']}.\n"
        f"Achieved reduction: {about['achieved_reduction']:.4f} of {about['cost']['kind']} "
        f"(requested {about['reduction']:g}); {counted(about['evaluations'], 'evaluation')}, "
        f"{about['unique_evaluations']} of them computed, {about['seconds']:.0f} s."
    )


def unit_of(about: dict[str, Any]) -> Unit:
    """What differences of a run's metric are told in."""
    networks = (about["best"], about["unpruned"] or {})
    return Unit.of(network.get(f"{split}_metric") for network in networks for split in ("heldout", "test"))


def polish_in_words(polish: dict[str, Any] | None, unit: Unit) -> str:
    """What polishing has brought, and which of its figures counts.

    Args:
        polish: As in the summary; None where it has found nothing better.
        unit: What differences of the metric are told in.
    """
    if polish is None:
        return "Polishing found nothing better on held-out data: what is exported is the blend as it was."
    low, high = polish["test_ci95"]
    channels = f"{polish['exchanged']} channel{'' if polish['exchanged'] == 1 else 's'}"
    if polish["test_metric"] < 0:
        advice = "it does not hold there: leave it out with blend export --without-corrections"
    elif low <= 0:
        advice = "the interval includes zero, so this is no proof"
    else:
        advice = "it holds"
    return (
        f"Polishing gave {channels} the place of as many others: {unit.named(polish['heldout_metric'])} on "
        f"held-out data (fitness {polish['fitness']:+.4f}), which it was searched on. Test data decide: "
        f"{unit(polish['test_metric'])} (95 % interval {unit.interval((low, high))}); {advice}."
    )


def summaries(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Of all that can be read; the others are only told of."""
    found = []
    for run in runs:
        try:
            found.append(summary(run))
        except InputError as error:
            say(f"note: {error}")
    return found


def runs_table(runs: Iterable[dict[str, Any]]) -> Table:
    """One line a run, of which the summary is given."""
    from blend.config import task_title  # its library takes long to import

    table = Table(box=None, header_style="bold")
    for column in ("run", "task", "status", "reduction", "generation", "evaluations", "held-out", "test", "margin"):
        table.add_column(column, justify="left" if column in ("run", "task", "status") else "right")
    for about in runs:
        margin = about["margin"]
        table.add_row(
            about["id"], task_title(about["task"]), about["status"],
            ":".join(f"{share:g}" for share in about["reductions"] or (about["reduction"],)),
            f"{about['generation']}/{about['generations'] or '?'}", str(about["evaluations"]),
            _number(about["best"]["heldout_metric"]), _number(about["best"]["test_metric"]),
            unit_of(about)(margin["test"]) if margin else "",
        )  # fmt: skip
    return table


def _comparison(run: Run, about: dict[str, Any]) -> Table:
    result = run.get("result")
    title = f"{about['id']}: {run.config.title} with {about['reduction']:g} of its {about['cost']['kind']} removed"
    table = Table(title=title, box=None)
    for column in ("criterion", "allocation", "reduction", "fitness", "held-out", "test", ""):
        table.add_column(column, justify="left" if column in ("criterion", "allocation", "") else "right")
    rows = [{**result["best"], "style": "bold green"}, *result["baselines"]]
    for row in sorted(rows, key=lambda row: -row["test_metric"]):
        table.add_row(
            row["name"], row["allocation"], f"{row['reduction']:.4f}", f"{row['fitness']:.4f}",
            _number(row["heldout_metric"]), _number(row["test_metric"]), row["note"], style=row.get("style"),
        )  # fmt: skip
    for row in about["failed_baselines"]:
        table.add_row(row["name"], row["allocation"], "", "", "", "", f"no result: {row['reason']}", style="red")
    unpruned = result["unpruned"]
    table.add_section()
    table.add_row(
        "unpruned", "", "0", "", _number(unpruned["heldout_metric"]), _number(unpruned["test_metric"]), "", style="dim"
    )
    return table


def _progress_in_words(about: dict[str, Any]) -> str:
    best = about["best"]
    so_far = "" if best["heldout_metric"] is None else f"; best held-out metric so far {best['heldout_metric']:.4f}"
    reason = f": {about['error']}" if about["error"] else ""
    whole = f" of {about['generations']}" if about["generations"] else ""
    return (
        f"{about['id']} is {about['status']}{reason}\nGeneration {about['generation']}{whole}, "
        f"{counted(about['evaluations'], 'evaluation')}{so_far}"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
