"""What a transfer has to say to a person: a table, and a sentence for each way of using the blend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from blend.progress import console
from blend.report.units import Unit
from blend.transfer.places import FROZEN, RECOMPUTED

KINDS = {FROZEN: "frozen", RECOMPUTED: "recomputed", "uniform_blend": "uniform blend"}
_COLOURS = {"wins": "bold green", "loses": "bold red", "not told apart": "default"}


def print_transfer(report: dict[str, Any]) -> None:
    """Writes all of it to stderr."""
    shown, searched = console(), report["searched"]
    title = f"{report['file']}, searched on {searched['task']} with {searched['reduction']:g} of its {report['cost']}"
    shown.print(f"{title} removed", soft_wrap=True)
    for task in report["tasks"]:
        shown.print(task_table(task))
    for line in [*_refusals(report), *answer(report)]:
        shown.print(line, soft_wrap=True)


def task_table(task: dict[str, Any]) -> Table:
    """A line for each way of using the blend at each reduction of a task."""
    table = Table(title=f"{task['label']} ({task['network']})", box=None)
    for column in ("removed", "blend", "held-out", "test", "margin on test (95 %)", "over the strongest"):
        table.add_column(column, justify="left" if column in ("blend", "over the strongest") else "right")
    unpruned, unit = task["unpruned"], unit_of([task])
    table.add_row("0", "unpruned", f"{unpruned['heldout_metric']:.3f}", f"{unpruned['test_metric']:.3f}")
    for result in task["results"]:
        for kind, name in KINDS.items():
            first = f"{result['reduction']:g}" if kind == FROZEN else ""
            table.add_row(first, name, *_cells(result[kind], unit))
    return table


def unit_of(tasks: Sequence[dict[str, Any]]) -> Unit:
    """What differences of the metric are told in, the same for all of some tasks."""
    entries = (entry for task in tasks for result in task["results"] for entry in map(result.get, KINDS))
    judged = [task["unpruned"] for task in tasks] + [entry for entry in entries if entry and "margin" in entry]
    return Unit.of(entry[f"{split}_metric"] for entry in judged for split in ("heldout", "test"))


def _cells(entry: dict[str, Any], unit: Unit) -> tuple[str | Text, ...]:
    if "reason" in entry:
        return "—", "—", "—"
    margin, colour = entry["margin"], _COLOURS[entry["verdict"]]
    gain = Text(f"{unit(margin['test'])} ({unit.interval(margin['test_ci95'])})", colour)
    return f"{entry['heldout_metric']:.3f}", f"{entry['test_metric']:.3f}", gain, margin["test_over"]


def _refusals(report: dict[str, Any]) -> Iterator[str]:
    """Why there is no result, once for each reason."""
    for task in report["tasks"]:
        found = [
            f"— {task['label']}, {name}: {result[kind]['reason']}"
            for kind, name in KINDS.items()
            for result in task["results"]
            if "reason" in result[kind]
        ]
        yield from dict.fromkeys(found)


def answer(report: dict[str, Any]) -> Iterator[str]:
    """How often each way wins and loses on test data."""
    cases = [result for task in report["tasks"] for result in task["results"]]
    for kind, name in KINDS.items():
        counts = Counter(case[kind]["verdict"] for case in cases if "verdict" in case[kind])
        if not (judged := counts.total()):
            yield f"{name.capitalize()}: cannot be used in any of {len(cases)} cases."
            continue
        missing = f"; not usable in {len(cases) - judged}" if judged < len(cases) else ""
        yield (
            f"{name.capitalize()}: beats every single criterion on test data in {counts['wins']} of {judged} cases, "
            f"loses to the strongest in {counts['loses']}, cannot be told from it in {counts['not told apart']}"
            f"{missing}."
        )
