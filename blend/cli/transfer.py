"""The command that tries an exported blend elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blend.cli.options import (
    BatchSize,
    Device,
    Json,
    Options,
    RecalibrationImages,
    Timeout,
    Workers,
    print_json,
    usual_workers,
)
from blend.errors import InputError

commands = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})


@commands.command(
    epilog="Example:  blend transfer mine.blend.json textures,seed=0 textures,seed=1 --reductions 0.3,0.5,0.7"
)
def transfer(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A criterion file, as blend export writes it.")],
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK[,KEY=VALUE...]...",
            help="As for a search, each with its own options behind commas: textures,seed=1 my_task.py:mine,width=2.",
        ),
    ] = [],  # noqa: B006
    more_tasks: Annotated[
        list[str], typer.Option("--tasks", metavar="TASK", help="The same as TASK; may be given several times.")
    ] = [],  # noqa: B006
    reductions: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Shares of the cost to remove; by default the file's own.")
    ] = None,
    option: Options = [],  # noqa: B006
    recalibration_images: RecalibrationImages = "256",
    batch_size: BatchSize = "64",
    seed: Annotated[
        str | None, typer.Option(metavar="N", help="Seed of everything random; by default that of the search.")
    ] = None,
    device: Device = "cpu",
    workers: Workers = None,
    timeout: Timeout = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the margins: FILE.png, FILE.svg or FILE.pdf.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try whether an exported blend still wins elsewhere: at other reductions, on other weights, in other widths.

    On each TASK and at each reduction the blend is used by its frozen scores (the layout must be the same) and by its
    formula on fresh scores (the channel groups must have the same names), and held against every single criterion that
    it was searched among, with the same recalibration and compensation. -o passes an option to all tasks; one behind a
    task's name goes before it.
    """
    from blend.comparison.figure import check_figure
    from blend.config import parse_options
    from blend.transfer.figure import SUFFIXES, draw_transfer
    from blend.transfer.places import parse_reductions
    from blend.transfer.text import print_transfer
    from blend.transfer.trial import transfer as transferred

    if not (tasks := [*tasks, *more_tasks]):
        raise InputError("tasks must name at least one task, got none")
    if figure is not None:
        check_figure(figure, SUFFIXES)
    report = transferred(
        file, tasks, () if reductions is None else parse_reductions(reductions), options=parse_options(option),
        recalibration_images=recalibration_images, batch_size=batch_size, seed=seed, timeout=timeout,
        workers=usual_workers(device) if workers is None else workers, device=device,
    )  # fmt: skip
    print_transfer(report)
    if as_json:
        print_json(report)
    if figure is not None:
        draw_transfer(report, figure)
