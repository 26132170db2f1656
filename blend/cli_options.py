"""Options and arguments that several commands of the command line have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from blend.config import DEFAULT_CRITERIA

TaskArgument = Annotated[
    str, typer.Argument(metavar="TASK", help="Built-in name, package.module:function or path/to/file.py:function.")
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or the path of its folder.")]
RunsDir = Annotated[Path, typer.Option("--runs-dir", metavar="DIR", help="Where run folders are.")]
Options = Annotated[
    list[str], typer.Option("-o", "--option", metavar="KEY=VALUE", help="Passed to the task's function; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
Seed = Annotated[str, typer.Option(metavar="N", help="Seed of everything random, the built-in networks' included.")]
Timeout = Annotated[
    str | None,
    typer.Option(
        metavar="SECONDS",
        help="After which a candidate hangs: tried once more alone, then recorded as failed, never tried again. By "
        "default 100 times the median so far, at least 5 minutes.",
    ),
]
Ignore = Annotated[
    list[str], typer.Option(metavar="PATTERN", help="Layers whose channels must all stay, like 'head.*'; repeatable.")
]
Criteria = Annotated[str, typer.Option(metavar="A,B,C", help="Criteria to blend; blend criteria lists them all.")]
Reduction = Annotated[str, typer.Option(metavar="SHARE", help="Share of the cost to remove, in (0, 1).")]
RUNS = Path("runs")
CHEAP_CRITERIA = ",".join(DEFAULT_CRITERIA)


def print_json(document: Any) -> None:
    """The one thing that goes to stdout."""
    print(json.dumps(document, indent=2))


def names(text: str) -> tuple[str, ...]:
    """The parts of a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
