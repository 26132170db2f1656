"""Commands that search: a run from its beginning, and one that was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blend.cli import options
from blend.cli.options import CHEAP_CRITERIA, RUNS, names, print_json, usual_workers
from blend.defaults import free_name

if TYPE_CHECKING:
    from blend.runs import Run

commands = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})


@commands.command(epilog="Example:  blend search textures --reduction 0.5 --evaluations 600 --seed 1 --name first")
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
    device: options.Device = "cpu",
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
    cache_memory: options.CacheMemory = "1G",
    runs_dir: options.RunsDir = RUNS,
    name: options.Name = None,
    as_json: options.Json = False,
) -> None:
    """Search the best blended criterion for a task, and export it with the evidence.

    Scores every filter by every criterion, groups the criteria by rank correlation, and evolves which of them speak
    with what factor in each layer, judging every candidate by the pruned network's held-out loss. Ctrl-C saves and
    stops; [bold]blend resume[/] goes on.
    """
    from blend.config import check_workers, parse_options, search_config
    from blend.runs import run_folder
    from blend.runs.signals import stopping_at_once

    check_workers(workers, executor)
    config = search_config(
        task=task, options=parse_options(option), reduction=reduction, cost=cost, allocation=allocation,
        encoding=encoding, signed=signed, base=base, criteria=names(criteria),
        calibration_loss=calibration_loss, normalisation=normalisation, clusters=clusters, clustering=clustering,
        fitness=fitness, strategy=strategy,
        population=population, **({} if evaluations is None else {"evaluations": evaluations}),
        polish=polish, generations=generations, time=time, target=target, patience=patience, racing=racing,
        precision=precision, random_search=random_search, compensate=compensate,
        recalibration_images=recalibration_images, batch_size=batch_size, floor=floor, ignore=tuple(ignore), seed=seed,
        workers=usual_workers(device) if workers is None else workers, executor=executor, address=address,
        timeout=timeout, device=device, cache_memory=cache_memory,
    )  # fmt: skip

    def unnamed() -> Path:
        return run_folder(runs_dir, free_name(runs_dir, config))

    folder = unnamed() if name is None else run_folder(runs_dir, name)

    with stopping_at_once(folder):
        from blend.pipeline import start

        _finish(start(config, folder, unnamed if name is None else None), as_json)


@commands.command(epilog="Example:  blend resume first")
def resume(
    run: options.RunArgument,
    workers: Annotated[str | None, typer.Option(metavar="N", help="Worker processes; as before by default.")] = None,
    executor: options.OtherExecutor = None,
    address: options.Address = None,
    timeout: options.Timeout = None,
    cache_memory: options.OtherCacheMemory = None,
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
    elsewhere = {
        "workers": workers, "executor": executor, "address": address, "timeout": timeout, "cache_memory": cache_memory,
    }  # fmt: skip
    found.config.moved(**elsewhere)

    with stopping_at_once(found.folder):
        from blend.pipeline import resume as go_on

        _finish(go_on(found, **elsewhere), as_json)


def _finish(run: Run, as_json: bool) -> None:
    from blend.report import print_result, summary

    print_result(run)
    if as_json:
        print_json(summary(run))
