"""Which strategy and which encoding find most: ``python -m tests.benchmarks.strategies --help``.

Runs ``blend search`` for every cell of a grid and keeps the run folders, so that it can be stopped and gone on with.
A search of N evaluations begins like one of fewer, so that the smaller budgets are read off the longest run.
"""

import argparse
import io
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from functools import cache
from itertools import product
from pathlib import Path

from scipy import stats

from blend.evaluation import Settings, TestEvaluation, Workspace, in_full_precision
from blend.problem import prepare
from blend.runs import SCORES, SEARCH, Run
from search.archive import Evaluation
from search.executor import LocalExecutor

BUDGETS = (150, 600, 2400)
VARIANTS = {
    f"{strategy} {encoding}": f"--strategy {strategy} --encoding {encoding}"
    for strategy, encodings in {
        "ga": ("cluster", "shared", "direct", "direct --signed", "allocation", "mask"),
        "aging": ("cluster", "direct", "allocation"),
        "cma": ("cluster", "shared", "direct", "direct --signed", "allocation"),
        "greedy": ("cluster",),
        "swap": ("mask",),
        "random": ("cluster", "allocation"),
    }.items()
    for encoding in encodings
}
Gain = tuple[float, float]  # held-out, test


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is not there yet, and prints a table per task and reduction."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-search"), help="of the runs")
    parser.add_argument("--tasks", default="digits,textures")
    parser.add_argument("--reductions", default="0.3,0.5,0.7")
    parser.add_argument("--seeds", default="0,1,2", help="of the network's training and of the search")
    parser.add_argument("--evaluations", type=int, default=max(BUDGETS), help="of the longest search")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="strategy and encoding, separated by commas")
    given = parser.parse_args(arguments)
    tasks, reductions, seeds, variants = (
        getattr(given, name).split(",") for name in ("tasks", "reductions", "seeds", "variants")
    )
    for task, reduction in product(tasks, reductions):
        for seed, variant in product(seeds, variants):
            _run(given.folder, task, reduction, seed, variant, given.evaluations)
        budgets = [*(n for n in BUDGETS if n < given.evaluations), given.evaluations]
        print(f"\n{task}, reduction {reduction}, {len(seeds)} networks\n")
        print("\n".join(_table(given.folder, task, reduction, seeds, variants, budgets)), flush=True)


def _run(folder: Path, task: str, reduction: str, seed: str, variant: str, evaluations: int) -> None:
    name = _name(task, reduction, seed, variant)
    blend = [sys.executable, "-m", "blend"]
    if not (folder / name).exists():
        about = f"{task} -o seed={seed} --seed {seed} --reduction {reduction} --evaluations {evaluations}"
        options = f"{about} --no-random-search {VARIANTS[variant]} --name {name} --runs-dir {folder}"
        subprocess.run([*blend, "search", *options.split()], check=True)
    elif Run(folder / name).status != "finished":
        subprocess.run([*blend, "resume", name, "--runs-dir", str(folder)], check=True)


def _name(task: str, reduction: str, seed: str, variant: str) -> str:
    return f"{task}-{reduction}-{seed}-{variant.replace(' --', '-').replace(' ', '-')}"


def _table(
    folder: Path, task: str, reduction: str, seeds: Sequence[str], variants: Sequence[str], budgets: Sequence[int]
) -> Iterator[str]:
    """Held-out and test gain over the strongest single criterion, in points, mean and 95 % t-interval over networks."""
    yield "| | " + " | ".join(f"{n} held-out | {n} test" for n in budgets) + " |"
    yield "|---|" + "---:|" * (2 * len(budgets))
    for variant in variants:
        runs = [folder / _name(task, reduction, seed, variant) for seed in seeds]
        gains = [_gains(run, tuple(budgets)) for run in runs]
        columns = [[gain[n][split] for gain in gains] for n in range(len(budgets)) for split in (0, 1)]
        yield f"| {variant} | " + " | ".join(_interval(column) for column in columns) + " |"


def _interval(values: Sequence[float]) -> str:
    """In points."""
    mean = 100 * statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.1f}"
    half = 100 * stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.1f} ± {half:.1f}"


@cache
def _gains(folder: Path, budgets: tuple[int, ...]) -> list[Gain]:
    """Of the fittest candidate after each budget, over the single criterion that is best on the split looked at."""
    run = Run(folder)
    history = [e for e in run.evaluations() if e.phase == SEARCH]
    singles = [b for b in run.get("result")["baselines"] if b["kind"] == "single"]
    best = [max((e for e in history[:n] if _is_judged(e)), key=lambda e: e.fitness) for n in budgets]
    tested = _tested(run, [e.phenotype for e in best])
    return [
        (
            e.details["metric"] - max(s["heldout_metric"] for s in singles),
            tested[e.phenotype] - max(s["test_metric"] for s in singles),
        )
        for e in best
    ]


def _is_judged(evaluation: Evaluation) -> bool:
    return evaluation.error is None and not evaluation.given_up


def _tested(run: Run, phenotypes: Sequence[bytes]) -> dict[bytes, float]:
    """Test metrics, after recalibration in full precision; here, outside the run, which opens its test split once."""
    config = run.config
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(io.StringIO()):
        problem = prepare(config, run.folder / SCORES)
        workspace = Workspace(scratch, config.task, token=run.name)
        settings = Settings(config.cost, config.fitness, config.recalibration_images, config.batch_size)
        workspace.write(problem.task, problem.graph, problem.splits, settings)
        wanted = [in_full_precision(phenotype, len(problem.graph)) for phenotype in phenotypes]
        with LocalExecutor(1) as executor:
            answers = dict(executor.run(TestEvaluation(workspace), wanted))
    return {phenotype: float(answers[i].mean()) for i, phenotype in enumerate(phenotypes)}


if __name__ == "__main__":
    main()
