"""The command that makes a physically smaller network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blend.cli.options import (
    BatchSize,
    Device,
    Ignore,
    Json,
    Options,
    RecalibrationImages,
    TaskArgument,
    print_json,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blend.pruned.saved import PruningRecord

FINE_TUNING, ITERATIVE = "Fine-tuning", "Iterative pruning"
commands = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})


@commands.command(epilog="Example:  blend prune mine.blend.json my_task.py:mine --reduction 0.5 --out smaller")
def prune(
    criterion: Annotated[
        str, typer.Argument(metavar="CRITERION", help="A criterion file (*.json), or a criterion's name, like l1.")
    ],
    task: TaskArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to save it; must not exist yet.")],
    reduction: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Share of the cost to remove, in (0, 1); by default the file's, or 0.5."),
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(
            help="What is reduced: macs, params or latency (measured here, on one thread, at --batch-size); by default "
            "the file's, or macs."
        ),
    ] = None,
    allocation: Annotated[
        str | None,
        typer.Option(
            help="global: one ranking of the scores over all groups. uniform: the same share of each group. By default "
            "a file's scores are ranked as they are, and a single criterion gives equal shares."
        ),
    ] = None,
    floor: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Share of each group that always stays; by default the file's, or 0.1."),
    ] = None,
    min_channels: Annotated[
        int, typer.Option("--min-channels", metavar="N", help="Channels of each group that always stay.")
    ] = 1,
    round_to: Annotated[
        int,
        typer.Option("--round-to", metavar="N", help="What a group keeps is a multiple of N, unless it is all."),
    ] = 1,
    compensate: Annotated[
        str | None,
        typer.Option(
            metavar="GRADE",
            help="Correct what reads the removed channels by least squares, without labels. channel: one correction "
            "for all taps of a kernel. patch: for each. sequential: layer by layer, from what reaches it. none.",
        ),
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="A,B",
            help="Also write the network as onnx (needs the extra onnx), torchscript or export (torch.export), each "
            "checked by running it; several with commas.",
        ),
    ] = "",
    onnx: Annotated[bool, typer.Option("--onnx", help="The same as --format onnx.")] = False,
    finetune: Annotated[
        str | None,
        typer.Option(
            metavar="EPOCHS",
            rich_help_panel=FINE_TUNING,
            help="Train what is left for so many epochs, on the data in the task's finetune; task: as many as it says. "
            "The epoch that does best on held-out data is kept, the network before the first one included.",
        ),
    ] = None,
    learning_rate: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            rich_help_panel=FINE_TUNING,
            help="Of SGD; falls to 0 along half a cosine. By default the task's.",
        ),
    ] = None,
    distill: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            rich_help_panel=FINE_TUNING,
            help="Share of the loss that the unpruned network's outputs have, the labels having the rest: 0.7 by "
            "default, 0 for labels alone.",
        ),
    ] = None,
    temperature: Annotated[
        str | None,
        typer.Option(metavar="T", rich_help_panel=FINE_TUNING, help="Of distillation: 4 by default."),
    ] = None,
    iterative: Annotated[
        str | None,
        typer.Option(
            metavar="K",
            rich_help_panel=ITERATIVE,
            help="Prune in K steps, scored anew before each and fine-tuned after each, with --finetune: the epochs are "
            "divided among the steps. A criterion file's formula is applied to fresh scores.",
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=ITERATIVE,
            help="cubic: the first steps take most. linear: every step takes the same share of the cost. By default "
            "cubic.",
        ),
    ] = None,
    calibration_loss: Annotated[
        str | None,
        typer.Option(
            metavar="LOSS",
            help="What gradients are of: task, or without reading calibration labels squared_norm or divergence (blend "
            "search --help). By default the file's, or task.",
        ),
    ] = None,
    ignore: Ignore = [],  # noqa: B006
    option: Options = [],  # noqa: B006
    recalibration_images: RecalibrationImages = "256",
    batch_size: BatchSize = "64",
    device: Device = "cpu",
    seed: Annotated[
        str | None,
        typer.Option(metavar="N", help="Seed of everything random, the task's included; by default the file's, or 0."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Save a physically smaller network, pruned by a criterion file or by a single criterion.

    DIR gets the tensors as safetensors and the pruning as JSON; blend.load_pruned(DIR, MyNetwork) makes the original
    class into it. Consumers are corrected if asked (--compensate), BatchNorm is recalibrated, and the network is
    trained on if asked (--finetune); costs, measured latency and results on held-out and, at the end, on test data are
    shown before and after. Fine-tuning and steps are saved on the way: whatever stops them, the same command goes on.
    """
    from blend.config import parse_options
    from blend.pruned.choice import Request
    from blend.pruned.exports import parse_formats
    from blend.pruned.plan import plan
    from blend.pruned.smaller import prune_to_folder

    request = Request(
        criterion, task, parse_options(option), reduction=reduction, cost=cost, allocation=allocation, floor=floor,
        min_channels=min_channels, round_to=round_to, ignore=tuple(ignore), recalibration_images=recalibration_images,
        batch_size=batch_size, device=device, seed=seed, calibration_loss=calibration_loss, compensate=compensate,
        formats=parse_formats(formats, onnx=onnx),
        plan=plan(
            finetune=finetune, learning_rate=learning_rate, distill=distill, temperature=temperature,
            iterative=iterative, schedule=schedule,
        ),
    )  # fmt: skip
    record = prune_to_folder(request, out)
    _print_stages(record)
    print(f"wrote {out}", file=sys.stderr)
    if as_json:
        print_json({"out": str(out), **_summary(record)})


def _summary(record: PruningRecord) -> dict[str, Any]:
    return record.model_dump(mode="json", include={"criterion", "pruning", "stages", "finetuning", "groups", "task"})


def _print_stages(record: PruningRecord) -> None:
    """What the network costs and is worth, before and after."""
    from rich.table import Table

    from blend.progress import console

    asked = record.pruning
    source = record.criterion.get("name") or record.criterion["file"]
    title = f"{record.task['name']} by {source}: {asked['achieved']:.4f} of its {asked['cost']} removed"
    requested = f"{'by prediction, ' if asked['cost'] == 'latency' else ''}requested {asked['reduction']:g}"
    table = Table(title=f"{title} ({requested})", box=None)
    sizes = [f"batch {timed['batch_size']}" for timed in record.stages[0]["latency"]]
    for column in ("", "MACs", "params", "file", *sizes, "held-out\nloss", "held-out", "test"):
        table.add_column(column, justify="right" if column else "left")
    for stage in record.stages:
        table.add_row(
            stage["stage"], rounded(stage["macs"]), rounded(stage["parameters"]), f"{rounded(stage['bytes'])}B",
            *(f"{rounded(timed['seconds'], 3)}s" for timed in stage["latency"]),
            f"{stage['heldout_loss']:.4f}", f"{stage['heldout_metric']:.4f}", f"{stage['test_metric']:.4f}",
        )  # fmt: skip
    shown = console()
    shown.print(table)
    for line in _speed(record):
        shown.print(line, soft_wrap=True)


def _speed(record: PruningRecord) -> Iterator[str]:
    """How much faster the network has become, and how well that was predicted."""
    for timed in record.stages[-1]["latency"]:
        low, high = timed["ratio_ci95"]
        yield (
            f"batch {timed['batch_size']}: {1 / timed['ratio']:.2f} times as fast as unpruned "
            f"(95 % interval {1 / high:.2f} … {1 / low:.2f}), one thread, timed in turns"
        )
    if record.finetuning is not None and not any(step["kept"] for step in record.finetuning["steps"]):
        yield "fine-tuning brought nothing on held-out data: the network is as it was before the first epoch"
    if predicted := record.pruning["timing"].get("predicted"):
        measured = record.pruning["timing"]["measured"]
        yield (
            f"latency at batch {record.pruning['timing']['batch_size']}: predicted {predicted['ratio']:.3f} of the "
            f"unpruned one's, measured {measured['ratio']:.3f}"
        )


def rounded(value: float, digits: int = 4) -> str:
    """A number to some digits with the prefix of its unit: 1234567 is ``1.235 M``."""
    prefixes = {1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m"}
    value = float(f"{value:.{digits}g}")
    factor = next((factor for factor in prefixes if value >= factor), 1e-6)
    return f"{value / factor:.{digits}g} {prefixes.get(factor, 'µ')}"
