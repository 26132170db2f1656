"""Options and arguments that several commands of the command line have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from blend.defaults import DEFAULT_CRITERIA
from blend.errors import BlendError

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
CacheMemory = Annotated[
    str,
    typer.Option(
        metavar="SIZE",
        help="What the workers together (on a cluster, each of them) may keep of what the first layers of candidates "
        "made, so that others that begin alike go on from there: like 512M, 2G, or 0 for nothing. Changes how long a "
        "search takes, and nothing else; on CPUs only.",
    ),
]
OtherCacheMemory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="As for search, from now on; as before by default.")
]
Racing = Annotated[
    bool,
    typer.Option(
        help="Give candidates up as soon as part of the held-out data shows that they cannot survive (ga, greedy, "
        "swap, random). What is compared is always judged on all data."
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="What layers compute in during the search: fp32 (the network's own precision), bf16, or auto: bf16 where "
        "the processor has it and it ranks 24 random candidates as fp32 does. The best are judged again in fp32."
    ),
]
Allocation = Annotated[
    str, typer.Option(help="global: one ranking over all groups. uniform: the same share of each group.")
]
RandomSearch = Annotated[bool, typer.Option(help="Also spend the same budget on random search, as a control.")]
RecalibrationImages = Annotated[
    str, typer.Option(metavar="N", help="Calibration images that BatchNorm is re-estimated on, for each network.")
]
Compensate = Annotated[
    str,
    typer.Option(
        metavar="GRADE",
        help="Correct what reads the removed channels by least squares, in every candidate and baseline, before "
        "recalibration, without labels. channel: one correction for all taps of a kernel (quick). patch: for each tap. "
        "none.",
    ),
]
Executor = Annotated[
    str,
    typer.Option(
        help="Where evaluations run: local, or on a cluster, dask or ray (workers may join and leave; needs --address)."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Of a running dask scheduler, like tcp://host:8786, or ray head, like host:6379."),
]
OtherExecutor = Annotated[str | None, typer.Option(help="Where evaluations run from now on; as before by default.")]
Ignore = Annotated[
    list[str], typer.Option(metavar="PATTERN", help="Layers whose channels must all stay, like 'head.*'; repeatable.")
]
Criteria = Annotated[str, typer.Option(metavar="A,B,C", help="Which criteria; blend criteria lists them all.")]
CalibrationLoss = Annotated[
    str,
    typer.Option(
        metavar="LOSS",
        help="What gradients are of: task (the task's loss), or without reading calibration labels squared_norm (of "
        "the outputs) or divergence (from the network's own outputs; for second-order, learned and ablation criteria).",
    ),
]
Cost = Annotated[str, typer.Option(help="What is reduced: macs or params.")]
Normalisation = Annotated[str, typer.Option(help="Of each criterion inside a group: rank, minmax or z.")]
Clusters = Annotated[str, typer.Option(metavar="K", help="Clusters per group: a number, or silhouette.")]
Clustering = Annotated[str, typer.Option(help="agglomerative or kmeans.")]
Fitness = Annotated[
    str, typer.Option(help="loss, or metric (better at reductions of 0.7 and more), on held-out data.")
]
Population = Annotated[str, typer.Option(metavar="N", help="Candidates per generation; the first may be larger.")]
Generations = Annotated[str | None, typer.Option(metavar="N", help="Stop after so many generations.")]
BatchSize = Annotated[
    str,
    typer.Option(
        metavar="N",
        help="Images per forward pass; candidates of blend search take up to four times as many where maps are small.",
    ),
]
Floor = Annotated[str, typer.Option(metavar="SHARE", help="Share of each group that always stays.")]
Workers = Annotated[
    str | None, typer.Option(metavar="N", help="Worker processes; by default one per core, or per accelerator.")
]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What networks run on: cpu, or an accelerator that torch finds, like cuda (each worker of a search takes "
        "a GPU of its own, where there are several) or cuda:1.",
    ),
]
Name = Annotated[str | None, typer.Option(help="Name of the run; made of task, reduction and seed.")]
Reduction = Annotated[
    str,
    typer.Option(
        metavar="SHARE",
        help="Share of the cost to remove, in (0, 1). With --strategy nsga2 a range, 0.3:0.7 (which 0.5 stands for).",
    ),
]
OneReduction = Annotated[str, typer.Option(metavar="SHARE", help="Share of the cost to remove, in (0, 1).")]
Encoding = Annotated[
    str,
    typer.Option(
        help="What is searched. cluster: per group, who speaks for each cluster, and its factor. direct: per group, a "
        "factor for every criterion. shared: a factor for every criterion, the same in all groups. allocation: only "
        "how much each group gives, ranked by one criterion. mask: a score for every channel; it leaves no formula. "
        "All but allocation also search how much each group gives, unless --allocation uniform."
    ),
]
Signed = Annotated[
    bool, typer.Option("--signed", help="With --encoding direct: factors may be negative; a criterion speaks against.")
]
Base = Annotated[
    str | None,
    typer.Option(metavar="CRITERION", help="With --encoding allocation: who ranks; by default that is searched, too."),
]
Strategy = Annotated[
    str,
    typer.Option(
        help="How it is searched. ga: the best ever are parents, crossover of groups. aging: parents die of age, "
        "mutation only; slower to be misled. cma: CMA-ES, for thousands of candidates at reductions of 0.5 and more. "
        "greedy: the best criterion per group, one group at a time, then one gene at a time. swap: channels change "
        "places inside a group (with --encoding mask). nsga2: a front of reductions, fitness against cost, in one run. "
        "random: chance."
    ),
]
Evaluations = Annotated[
    str | None,
    typer.Option(metavar="N", help="Candidates in all: 600 by default, 100000 where --time is given."),
]
Polish = Annotated[
    str,
    typer.Option(
        metavar="N",
        help="Spend the last N of the evaluations on single channels: those near the cut of the best blend change "
        "places inside their group (swap), at the same cost. Kept, as marked corrections, only if held-out data like "
        "it better; test data say whether it holds. Time and generations limit the search alone.",
    ),
]
WithoutCorrections = Annotated[
    bool,
    typer.Option("--without-corrections", help="The blend as it was before --polish, with the evidence for that."),
]
Time = Annotated[
    str | None,
    typer.Option(
        metavar="DURATION",
        help="Stop searching after 90s, 45m, 2h, 1h30m: at the end of the generation that is running then. The random "
        "control, which gets as many candidates, and the test come on top.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="VALUE",
        help="Stop when the best candidate reaches a held-out metric (0.9, the same as metric=0.9) or a fitness "
        "(fitness=-0.3).",
    ),
]
Patience = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Stop after so many generations without a better candidate; with nsga2, in which the hypervolume of the "
        "front grew by less than 0.1 %.",
    ),
]
RUNS = Path("runs")
CHEAP_CRITERIA = ",".join(DEFAULT_CRITERIA)


def print_json(document: Any) -> None:
    """The one thing that goes to stdout.

    Raises:
        BlendError: It does not take it.
    """
    try:
        print(json.dumps(document, indent=2), flush=True)
    except OSError as error:
        raise BlendError(f"stdout does not take the result: {error}") from error


def usual_workers(device: str) -> int:
    """One for each core or, where networks run on them, for each accelerator."""
    from joblib import cpu_count

    from blend.defaults import CPU

    if device == CPU:
        return int(cpu_count(only_physical_cores=True))
    from blend.device import device_count

    return max(1, device_count(device))


def names(text: str) -> tuple[str, ...]:
    """The parts of a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
