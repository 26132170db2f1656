"""Commands that look at runs, stop one, or take out what it has found."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from blend.cli import options
from blend.cli.options import RUNS, print_json
from blend.errors import InputError

commands = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})


@commands.command("list", epilog="Example:  blend list --runs-dir /data/runs")
def list_runs(runs_dir: options.RunsDir = RUNS, as_json: options.Json = False) -> None:
    """List all runs, oldest first."""
    from blend.progress import console
    from blend.report import runs_table, summaries
    from blend.runs import all_runs

    if not runs_dir.is_dir() and (runs_dir != RUNS or runs_dir.exists()):
        raise InputError(f"runs-dir must be a folder, got '{runs_dir}'")
    runs = summaries(all_runs(runs_dir))
    if as_json:
        print_json(runs)
    elif runs:
        console().print(runs_table(runs))
    else:
        print(f"no runs in '{runs_dir}'", file=sys.stderr)


@commands.command(epilog="Example:  blend show first --course")
def show(
    run: options.RunArgument,
    with_course: Annotated[
        bool, typer.Option("--course", help="Also each generation: best, diversity, what its proposals were worth.")
    ] = False,
    runs_dir: options.RunsDir = RUNS,
    as_json: options.Json = False,
) -> None:
    """Show how far a run is, and what came out: every baseline against the blend."""
    from blend.report import print_course, print_result, summary
    from blend.runs import open_run
    from blend.runs.course import course

    found = open_run(runs_dir, run)
    if as_json:
        print_json({**summary(found), **({"course": course(found)} if with_course else {})})
        return
    print_result(found)
    if with_course:
        print_course(found)


@commands.command(epilog="Example:  blend stop first --wait && blend resume first --workers 4")
def stop(
    run: options.RunArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has stopped.")] = False,
    runs_dir: options.RunsDir = RUNS,
) -> None:
    """Ask a running run to save and stop after the generation it is in."""
    from blend.runs import open_run

    found = open_run(runs_dir, run)
    if found.status != "running":
        raise InputError(f"run '{found.name}' is not running: it is {found.status}")
    found.request_stop()
    print(f"run '{found.name}' will stop after the generation in progress", file=sys.stderr)
    if wait:
        while found.status == "running":
            time.sleep(0.2)
        print(f"run '{found.name}' is {found.status}", file=sys.stderr)


@commands.command(epilog="Example:  blend export first my-network.blend.json")
def export(
    run: options.RunArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    without_corrections: options.WithoutCorrections = False,
    reduction: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Which point of a front (--strategy nsga2); by default the middle one."),
    ] = None,
    runs_dir: options.RunsDir = RUNS,
) -> None:
    """Write the blended criterion of a finished run to a file for other pruners.

    A FILE that ends in .csv or .npz gets a table instead, of one line per channel: its group, the blended score, and
    the score by every single criterion.
    """
    from blend.runs import EXPORT, SCORES, export_at, open_run

    found = open_run(runs_dir, run)
    source = found.folder / EXPORT
    if found.status != "finished":
        raise InputError(f"run '{found.name}' has nothing to export yet: it is {found.status}")
    if not source.is_file():
        raise InputError(f"'{source}' is gone; blend resume {found.folder} writes it again")
    if reduction is not None:
        shown = [f"{point['reduction']:g}" for point in found.get("front", [])]
        if not shown:
            raise InputError(f"reduction must be left out where no front was searched, got {reduction:g}")
        if f"{reduction:g}" not in shown:
            raise InputError(f"reduction must be one of {', '.join(shown)}, got {reduction:g}")
        source = found.folder / export_at(reduction)
    if os.path.exists(file) and not force:  # Path.exists raises where a name is too long
        raise InputError(f"'{file}' exists; --force overwrites it")

    from blend.blended import BlendedCriterion
    from blend.blended.score_export import SUFFIXES, write_scores
    from blend.scoring import criterion_errors
    from criteria.scores import ScoreTable

    criterion = BlendedCriterion.load(source)
    criterion = criterion.without_corrections() if without_corrections else criterion
    if file.suffix.lower() in SUFFIXES:
        with criterion_errors():
            table = ScoreTable.load(found.folder / SCORES)
        write_scores(file, criterion, table)
    else:
        criterion.save(file)
    print(f"wrote {file}", file=sys.stderr)
