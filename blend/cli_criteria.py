"""Commands about criteria: what there is, what it says on a network, and whether it keeps its word."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blend.cli_options import (
    CHEAP_CRITERIA,
    RUNS,
    Criteria,
    Ignore,
    Json,
    Options,
    Reduction,
    RunsDir,
    Seed,
    TaskArgument,
    names,
    print_json,
)
from blend.errors import BlendError

commands = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})


@commands.command(epilog="Example:  blend criteria --json")
def criteria(as_json: Json = False) -> None:
    """List every criterion of the registry: family, what it needs, and where it comes from."""
    from rich.console import Console

    from blend.problem import all_criteria
    from blend.report import criteria_table

    registered = all_criteria()
    if as_json:
        print_json(
            [
                {"name": c.name, "family": c.family, "needs": sorted(c.needs), "reference": c.reference,
                 "summary": c.summary}
                for c in registered
            ]
        )  # fmt: skip
    else:
        Console(stderr=True).print(criteria_table(registered))


@commands.command(epilog="Example:  blend compare textures --criteria l1,l2,fpgm,taylor_fo --figure compare.svg")
def compare(
    task: TaskArgument,
    reduction: Reduction = "0.5",
    cost: Annotated[str, typer.Option(help="What is reduced: macs or params.")] = "macs",
    criteria: Criteria = CHEAP_CRITERIA,
    clusters: Annotated[str, typer.Option(metavar="K", help="Clusters per group: a number, or silhouette.")] = "3",
    clustering: Annotated[str, typer.Option(help="agglomerative or kmeans.")] = "agglomerative",
    ignore: Ignore = [],  # noqa: B006
    option: Options = [],  # noqa: B006
    seed: Seed = "0",
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw all of it: FILE.png, FILE.svg or FILE.pdf.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell, without a search, which importance to use on a network and which ones are the same.

    Rank correlations, clusters, overlap of what would be pruned, the seconds that each criterion takes by itself, and
    the held-out accuracy that it keeps: pruned by it alone, every layer giving the same share, recalibrated.
    """
    from blend.config import parse_options, search_config

    config = search_config(
        task=task, options=parse_options(option), reduction=reduction, cost=cost, criteria=names(criteria), seed=seed,
        clusters=clusters, clustering=clustering, ignore=tuple(ignore),
    )  # fmt: skip

    from blend.comparison import compare as compared
    from blend.comparison_figure import check_figure, draw_comparison
    from blend.comparison_text import print_comparison

    if figure is not None:
        check_figure(figure)
    report = compared(config)
    if as_json:
        print_json(report)
    else:
        print_comparison(report)
    if figure is not None:
        draw_comparison(report, figure)


@commands.command(epilog="Example:  blend doctor --all    Example:  blend doctor runs/first")
def doctor(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Look at this run instead: name or folder.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also try the built-in criteria.")] = False,
    runs_dir: RunsDir = RUNS,
    as_json: Json = False,
) -> None:
    """Check this machine and every criterion that other packages register.

    Python, torch and the other packages, folders and database, worker processes; then each criterion on small networks:
    one finite score per channel, nothing left behind, and what it claims.

    With RUN: whether that run's database is whole, its history without a gap and its export the one that belongs to it,
    who works on it, what killed processes left, and what to do. Nothing is changed.

    Exit code 3 when something failed.
    """
    from blend.doctor import examine, failed, findings_table, verdict
    from blend.run_doctor import examine_run
    from blend.runs import find_run

    findings = list(examine(runs_dir, everything) if run is None else examine_run(find_run(runs_dir, run)))
    if as_json:
        print_json({"passed": not failed(findings), "findings": [vars(finding) for finding in findings]})
    else:
        from rich.console import Console

        Console(stderr=True, highlight=False).print(findings_table(findings))
    if failures := failed(findings):
        raise BlendError(verdict(failures))
