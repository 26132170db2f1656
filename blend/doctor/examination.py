"""Whether this machine and the criteria that other packages register are fit for a search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from blend.doctor.environment import Finding, environment
from blend.progress import progress

if TYPE_CHECKING:
    from criteria import Criterion
    from criteria.conformance import Conformance

_STYLES = {"pass": "green", "fail": "bold red", "not applicable": "dim"}


def examine(runs_dir: Path, built_in: bool = False) -> Iterator[Finding]:
    """Look at everything, the environment first: without it the rest means nothing.

    Args:
        runs_dir: where run folders go.
        built_in: try the built-in criteria, too, not only those of other packages.
    """
    found = list(environment(runs_dir))
    yield from found
    if not failed(found):
        yield from _criteria(built_in)


def failed(findings: Iterable[Finding]) -> list[Finding]:
    """Those that are not as they should be."""
    return [finding for finding in findings if finding.outcome == "fail"]


def verdict(failures: list[Finding]) -> str:
    """One line about what failed."""
    first = failures[0]
    more = f"; {len(failures) - 1} more" if len(failures) > 1 else ""
    return f"{len(failures)} of the checks failed: {first.area}, {first.name}: {first.reason}{more}"


def findings_table(findings: list[Finding]) -> Table:
    """One line a check of the environment, one a criterion that passes, and one for each check that it fails."""
    table = Table(box=None, header_style="bold")
    for column in ("", "check", "outcome", ""):
        table.add_column(column, overflow="fold")
    for finding in _condensed(findings):
        style = _STYLES[finding.outcome]
        cells = (finding.area, finding.name, Text(finding.outcome, style), finding.reason)
        table.add_row(*cells, style="dim" if finding.outcome == "not applicable" else None)
    return table


def _criteria(built_in: bool) -> Iterator[Finding]:
    from criteria import CRITERIA, CriterionError
    from criteria.conformance import conformance

    try:
        registered = [criterion for criterion in CRITERIA if built_in or is_foreign(criterion)]
    except CriterionError as error:
        yield Finding("criteria", "entry points", "fail", str(error))
        return
    if not registered:
        reason = "no other package registers criteria; --all tries the built-in ones"
        yield Finding("criteria", "third-party", "not applicable", reason)
        return
    results = []
    with progress("trying criteria", len(registered)) as bar:
        for criterion in registered:
            results.append(conformance(criterion))
            bar.advance(1, criterion=criterion.name)
    for result in results:
        yield from _findings(result)


def is_foreign(criterion: Criterion) -> bool:
    """Whether another package registered a criterion."""
    return criterion.function.__module__.partition(".")[0] != "criteria"


def _findings(result: Conformance) -> Iterator[Finding]:
    for check in result.checks:
        yield Finding(f"criterion {result.criterion}", check.name, check.outcome, check.reason)


def _condensed(findings: list[Finding]) -> Iterator[Finding]:
    areas = dict.fromkeys(finding.area for finding in findings)
    for area in areas:
        mine = [finding for finding in findings if finding.area == area]
        if not area.startswith("criterion ") or failed(mine):
            shown = mine if not area.startswith("criterion ") else failed(mine)
            yield from shown
            continue
        passed = sum(finding.outcome == "pass" for finding in mine)
        cost = next(finding.reason for finding in mine if finding.name == "cost")
        yield Finding(area, f"{passed} of {len(mine)} apply", "pass", cost)
