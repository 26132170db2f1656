"""The registry in a terminal: a table of all criteria, and everything about one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from blend.progress import console
from criteria.claims import CLAIMS


def print_criteria(records: Sequence[dict[str, Any]]) -> None:
    """One line a criterion."""
    table = Table(box=None, header_style="bold")
    for column in ("name", "family", "cost", "needs", "reference"):
        short = column in ("name", "family", "cost")
        table.add_column(column, no_wrap=short or column == "reference", overflow="fold" if short else "ellipsis")
    for one in records:
        table.add_row(one["name"], one["family"], one["cost"], ", ".join(one["needs"]), one["reference"])
    shown = console()
    shown.print(table)
    shown.print(f"{len(records)} criteria; blend criteria NAME tells formula, parameters and cautions of one")


def print_criterion(record: dict[str, Any]) -> None:
    """Everything about one."""
    shown = console()
    shown.print(Text.assemble((record["name"], "bold"), f"  ({record['family']})"))
    for paragraph in _readable(record["formula"]).split("\n\n"):
        shown.print(Padding(" ".join(paragraph.split()), (0, 0, 1, 0)))
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("needs", ", ".join(record["needs"]) or "the network itself")
    facts.add_row("cost", record["cost"])
    facts.add_row("labels", "reads them itself" if record["labels"] else "only through the loss, if at all")
    facts.add_row("claims", "; ".join(CLAIMS[claim] for claim in record["claims"]) or "nothing beyond finite scores")
    facts.add_row("caution", _readable(record["caution"] or "none is declared"))
    facts.add_row("reference", record["reference"])
    shown.print(facts)
    if record["parameters"]:
        shown.print(_parameters(record["parameters"]))
        example = record["parameters"][0]
        base = record["name"].partition(":")[0]
        shown.print(f"\nset one as  --criteria {base}:{example['name']}={_written(example['default'])}")


def _parameters(parameters: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("parameter", "type", "default", "rule", "meaning"):
        table.add_column(column, overflow="fold")
    for one in parameters:
        values = (one["name"], one["type"], _written(one["default"]), one["rule"] or "", _readable(one["meaning"]))
        table.add_row(*values)
    return table


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _readable(text: str) -> str:
    """Without the marks of reStructuredText; formulas stay as they are."""
    text = re.sub(r":math:`([^`]+)`", r"\1", text)
    text = re.sub(r"(?m)^\.\. math::\s+", "", text)
    return re.sub(r"`+([^`]+)`+", r"\1", text)
