"""Commands about criteria: what there is, what it says on a network, and whether it keeps its word."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blend.cli.options import (
    CHEAP_CRITERIA,
    RUNS,
    CalibrationLoss,
    Clustering,
    Clusters,
    Compensate,
    Cost,
    Criteria,
    Device,
    Ignore,
    Json,
    OneReduction,
    Options,
    RunsDir,
    Seed,
    TaskArgument,
    names,
    print_json,
)
from blend.errors import BlendError, InputError

commands = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})


@commands.command(epilog="Example:  blend criteria obd")
def criteria(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Tell all of this one; as obd, or with parameters.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List every criterion of the registry, or tell all of one: formula, parameters, cost, claims, cautions.

    A parameter is set behind the name, wherever criteria are chosen: --criteria l1,obd:probes=16.
    """
    from blend.scoring import all_criteria, criterion_named
    from criteria.catalogue import record

    if name is not None:
        found = record(criterion_named(name))
        if as_json:
            print_json(found)
        else:
            from blend.cli.criteria_text import print_criterion

            print_criterion(found)
        return
    registered = all_criteria()
    if as_json:
        print_json([record(criterion) for criterion in registered])
    else:
        from blend.cli.criteria_text import print_criteria

        print_criteria([record(criterion) for criterion in registered])


@commands.command(epilog="Example:  blend compare textures --criteria l1,l2,fpgm,taylor_fo --figure compare.html")
def compare(
    task: TaskArgument,
    reduction: OneReduction = "0.5",
    cost: Cost = "macs",
    criteria: Criteria = CHEAP_CRITERIA,
    calibration_loss: CalibrationLoss = "task",
    clusters: Clusters = "3",
    clustering: Clustering = "agglomerative",
    allocation: Annotated[
        str, typer.Option(help="uniform: the same share of each group. global: one ranking over all groups.")
    ] = "uniform",
    transform: Annotated[
        str,
        typer.Option(
            metavar="NAME[:PARAMETER=VALUE]",
            help="Of the scores before a global ranking. balanced: the same mean in every group. "
            "resource_aware (:strength=1): costly groups give more. affine (:file=FILE.json): a line for each group, "
            '{"GROUP": {"scale": 2, "shift": 0.1}}.',
        ),
    ] = "none",
    compensate: Compensate = "none",
    device: Device = "cpu",
    ignore: Ignore = [],  # noqa: B006
    option: Options = [],  # noqa: B006
    seed: Seed = "0",
    figure: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also draw all of it: FILE.png, FILE.svg, FILE.pdf, or FILE.html with every group's matrices.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell, without a search, which importance to use on a network and which ones are the same.

    Rank correlations, clusters, overlap of what would be pruned, the seconds that each criterion takes by itself, and
    the held-out accuracy that it keeps: pruned by it alone, every layer giving the same share (or, with --allocation
    global, what one ranking over all layers makes it give), recalibrated.
    """
    from blend.config import parse_options, search_config

    if ":" in reduction:
        raise InputError(f"reduction must be a number in (0, 1), got '{reduction}'")
    config = search_config(
        task=task, options=parse_options(option), reduction=reduction, cost=cost, criteria=names(criteria), seed=seed,
        allocation=allocation, calibration_loss=calibration_loss, clusters=clusters, clustering=clustering,
        compensate=compensate, ignore=tuple(ignore), device=device,
    )  # fmt: skip

    from blend.comparison.compare import compare as compared
    from blend.comparison.figure import check_figure
    from blend.comparison.page import save_comparison
    from blend.comparison.text import print_comparison
    from blend.comparison.transform import parse_transform

    if figure is not None:
        check_figure(figure)
    report = compared(config, parse_transform(transform))
    if as_json:
        print_json(report)
    else:
        print_comparison(report)
    if figure is not None:
        save_comparison(report, figure)


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
    from blend.doctor.examination import examine, failed, findings_table, verdict
    from blend.doctor.run_folder import examine_run
    from blend.progress import console
    from blend.runs import find_run

    if run is not None and everything:
        raise InputError("all must be left out with a run: it is about this machine's criteria")
    findings = list(examine(runs_dir, everything) if run is None else examine_run(find_run(runs_dir, run)))
    if as_json:
        print_json({"passed": not failed(findings), "findings": [vars(finding) for finding in findings]})
    else:
        console().print(findings_table(findings))
    if failures := failed(findings):
        raise BlendError(verdict(failures))
