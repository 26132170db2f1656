"""The command line. Torch is imported by the commands that need it, so that looking at runs is quick."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blend import __version__
from blend.cli import options
from blend.cli.criteria import commands as criteria_commands
from blend.cli.options import CHEAP_CRITERIA, RUNS, names, print_json
from blend.cli.prune import commands as prune_commands
from blend.cli.transfer import commands as transfer_commands
from blend.defaults import free_name
from blend.errors import BlendError, InputError, Interrupted

if TYPE_CHECKING:
    from blend.runs import Run

DONE, BAD_INPUT, FAILED, INTERRUPTED = 0, 2, 3, 130

app = typer.Typer(
    name="blend",
    help="Searches a blended pruning criterion for your trained network, your data and your budget.",
    epilog="Begin with:  blend search digits",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"blend {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example:  blend search textures --reduction 0.5 --evaluations 600 --seed 1 --name first")
def search(
    task: options.TaskArgument,
    reduction: options.Reduction = "0.5",
    cost: options.Cost = "macs",
    allocation: options.Allocation = "global",
    encoding: options.Encoding = "cluster",
    signed: options.Signed = False,
    base: options.Base = None,
    criteria: options.Criteria = CHEAP_CRITERIA,
    calibration_loss: options.CalibrationLoss = "task",
    normalisation: options.Normalisation = "rank",
    clusters: options.Clusters = "3",
    clustering: options.Clustering = "agglomerative",
    fitness: options.Fitness = "loss",
    strategy: options.Strategy = "ga",
    population: options.Population = "16",
    evaluations: options.Evaluations = None,
    polish: options.Polish = "0",
    generations: options.Generations = None,
    time: options.Time = None,
    target: options.Target = None,
    patience: options.Patience = None,
    racing: options.Racing = True,
    precision: options.Precision = "auto",
    random_search: options.RandomSearch = True,
    compensate: options.Compensate = "none",
    recalibration_images: options.RecalibrationImages = "256",
    batch_size: options.BatchSize = "64",
    floor: options.Floor = "0.1",
    ignore: options.Ignore = [],  # noqa: B006
    option: options.Options = [],  # noqa: B006
    seed: options.Seed = "0",
    workers: options.Workers = None,
    executor: options.Executor = "local",
    address: options.Address = None,
    timeout: options.Timeout = None,
    runs_dir: options.RunsDir = RUNS,
    name: options.Name = None,
    as_json: options.Json = False,
) -> None:
    """Search the best blended criterion for a task, and export it with the evidence.

    Scores every filter by every criterion, groups the criteria by rank correlation, and evolves which of them speak
    with what factor in each layer, judging every candidate by the pruned network's held-out loss. Ctrl-C saves and
    stops; [bold]blend resume[/] goes on.
    """
    from joblib import cpu_count

    from blend.config import parse_options, search_config
    from blend.runs import run_folder
    from blend.runs.signals import stopping_at_once

    config = search_config(
        task=task, options=parse_options(option), reduction=reduction, cost=cost, allocation=allocation,
        encoding=encoding, signed=signed, base=base, criteria=names(criteria),
        calibration_loss=calibration_loss, normalisation=normalisation, clusters=clusters, clustering=clustering,
        fitness=fitness, strategy=strategy,
        population=population, **({} if evaluations is None else {"evaluations": evaluations}),
        polish=polish, generations=generations, time=time, target=target, patience=patience, racing=racing,
        precision=precision, random_search=random_search, compensate=compensate,
        recalibration_images=recalibration_images, batch_size=batch_size, floor=floor, ignore=tuple(ignore), seed=seed,
        workers=cpu_count(only_physical_cores=True) if workers is None else workers, executor=executor,
        address=address, timeout=timeout,
    )  # fmt: skip
    folder = run_folder(runs_dir, free_name(runs_dir, config) if name is None else name)

    with stopping_at_once(folder):
        from blend.pipeline import start

        _finish(start(config, folder), as_json)


@app.command(epilog="Example:  blend resume first")
def resume(
    run: options.RunArgument,
    workers: Annotated[str | None, typer.Option(metavar="N", help="Worker processes; as before by default.")] = None,
    executor: options.OtherExecutor = None,
    address: options.Address = None,
    timeout: options.Timeout = None,
    runs_dir: options.RunsDir = RUNS,
    as_json: options.Json = False,
) -> None:
    """Go on with a run exactly where it was stopped, killed or lost its machine.

    The result is the same as if it had never stopped, with any number of workers, wherever they are. Relative paths
    given to the search still count from the folder that it was started in. Candidates that were recorded as failed are
    not tried again.
    """
    from blend.runs import open_run
    from blend.runs.signals import stopping_at_once

    found = open_run(runs_dir, run)
    found.check_resumable()
    elsewhere = {"workers": workers, "timeout": timeout, "executor": executor, "address": address}
    found.config.moved(**elsewhere)

    with stopping_at_once(found.folder):
        from blend.pipeline import resume as go_on

        _finish(go_on(found, **elsewhere), as_json)


@app.command("list", epilog="Example:  blend list --runs-dir /data/runs")
def list_runs(runs_dir: options.RunsDir = RUNS, as_json: options.Json = False) -> None:
    """List all runs, oldest first."""
    from rich.console import Console

    from blend.report import runs_table, summary
    from blend.runs import all_runs

    runs = all_runs(runs_dir)
    if as_json:
        print_json([summary(run) for run in runs])
    elif runs:
        Console(stderr=True).print(runs_table(runs))
    else:
        print(f"no runs in '{runs_dir}'", file=sys.stderr)


@app.command(epilog="Example:  blend show first --course")
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


@app.command(epilog="Example:  blend stop first && blend resume first")
def stop(run: options.RunArgument, runs_dir: options.RunsDir = RUNS) -> None:
    """Ask a running run to save and stop after the generation it is in."""
    from blend.runs import open_run

    found = open_run(runs_dir, run)
    if found.status != "running":
        raise InputError(f"run '{found.name}' is not running: it is {found.status}")
    found.request_stop()
    print(f"run '{found.name}' will stop after the generation in progress", file=sys.stderr)


app.add_typer(criteria_commands)
app.add_typer(prune_commands)
app.add_typer(transfer_commands)


@app.command(epilog="Example:  blend export first my-network.blend.json")
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
    if found.status != "finished" or not source.is_file():
        raise InputError(f"run '{found.name}' has nothing to export yet: it is {found.status}")
    if reduction is not None:
        shown = [f"{point['reduction']:g}" for point in found.get("front", [])]
        if not shown:
            raise InputError(f"reduction must be left out where no front was searched, got {reduction:g}")
        if f"{reduction:g}" not in shown:
            raise InputError(f"reduction must be one of {', '.join(shown)}, got {reduction:g}")
        source = found.folder / export_at(reduction)
    if file.exists() and not force:
        raise InputError(f"'{file}' exists; --force overwrites it")

    from blend.blended import BlendedCriterion
    from blend.blended.score_export import SUFFIXES, write_scores
    from criteria.scores import ScoreTable

    criterion = BlendedCriterion.load(source)
    criterion = criterion.without_corrections() if without_corrections else criterion
    if file.suffix in SUFFIXES:
        write_scores(file, criterion, ScoreTable.load(found.folder / SCORES))
    else:
        criterion.save(file)
    print(f"wrote {file}", file=sys.stderr)


def main() -> None:
    """Entry point of the program: maps errors to one line and an exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code: 0 done, 2 bad input, 3 failed, 130 interrupted."""
    try:
        code = int(app(arguments, standalone_mode=False) or DONE)
        # Typer makes an exit code of Ctrl-C where no command did better, and says nothing.
        return _complain("interrupted", INTERRUPTED) if code == INTERRUPTED else code
    except Interrupted as error:
        return _complain(error, INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", INTERRUPTED)
    except InputError as error:
        return _complain(error, BAD_INPUT)
    except BlendError as error:
        return _complain(error, FAILED)
    except typer.TyperException as error:
        # A missing argument, an unknown command or option; without any arguments, the help is on the screen already.
        return _complain(usage, BAD_INPUT) if (usage := _usage_error(error)) else BAD_INPUT
    except Exception:  # noqa: BLE001 — a fault of this program: everything is told, and the exit code says "failed"
        traceback.print_exc()
        return FAILED


def _usage_error(error: typer.TyperException) -> str:
    message = getattr(error, "format_message", error.__str__)()
    return str(message).rstrip(".")


def _complain(reason: object, code: int) -> int:
    label = "" if code == INTERRUPTED else "error: "
    print(f"{label}{' '.join(str(reason).split())}", file=sys.stderr)
    return code


def _finish(run: Run, as_json: bool) -> None:
    from blend.report import print_result, summary

    print_result(run)
    if as_json:
        print_json(summary(run))
