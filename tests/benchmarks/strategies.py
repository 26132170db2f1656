"""Which strategy and which encoding find most: ``python -m tests.benchmarks.strategies --help``.

Runs ``blend search`` for every cell of a grid and keeps the run folders, so that it can be stopped and gone on with.
A search of N evaluations begins like one of fewer, so that the smaller budgets are read off the longest run.
What each has gained is kept in one more file: what that holds is not run again, wherever the runs are now. A network
trained on another kind of processor is another network, so that each kind wants a file of its own.
"""

import argparse
import io
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from itertools import product
from pathlib import Path

from scipy import stats

from blend.evaluation import Settings, TestEvaluation, Workspace, in_full_precision
from blend.problem import prepare
from blend.runs import SCORES, SEARCH, Run
from search.archive import Evaluation
from search.executor import LocalExecutor
from tests.benchmarks.strategies_figure import draw

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
Gains = dict[str, dict[str, Gain]]  # by name of the run, and by budget
Cell = tuple[str, str, str]  # task, reduction, seed


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is not there yet, and prints a table per task and reduction, and one of all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-search"), help="of the runs")
    parser.add_argument("--tasks", default="digits,textures")
    parser.add_argument("--reductions", default="0.3,0.5,0.7")
    parser.add_argument("--seeds", default="0,1,2", help="of the network's training and of the search")
    parser.add_argument("--evaluations", type=int, default=max(BUDGETS), help="of the longest search")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="strategy and encoding, separated by commas")
    parser.add_argument("--gains", type=Path, help="where they are kept; gains.json beside the runs if not given")
    parser.add_argument("--figure", type=Path, help="where to draw the gains on test data")
    given = parser.parse_args(arguments)
    tasks, reductions, seeds, variants = (
        getattr(given, name).split(",") for name in ("tasks", "reductions", "seeds", "variants")
    )
    budgets = [*(n for n in BUDGETS if n < given.evaluations), given.evaluations]
    kept = given.gains or given.folder / "gains.json"
    gains: Gains = json.loads(kept.read_text()) if kept.exists() else {}
    with LocalExecutor(1) as executor:
        for task, reduction in product(tasks, reductions):
            networks = [[(task, reduction, seed)] for seed in seeds]
            for (cell,), variant in product(networks, variants):
                known = gains.get(name := _name(cell, variant), {})
                if all(str(n) in known for n in budgets):
                    continue
                _run(given.folder, cell, variant, given.evaluations)
                gains[name] = _gains(Run(given.folder / name), budgets, known, executor)
                lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(gains[name])}" for name in sorted(gains))
                (draft := kept.with_suffix(".draft")).write_text(f"{{\n{lines}\n}}\n")
                draft.replace(kept)
            print(f"\n{task}, reduction {reduction}, {len(seeds)} networks\n")
            print("\n".join(_table(gains, variants, networks, budgets)), flush=True)
    print(f"\nAll reductions, less what {variants[0]} has there, {len(tasks) * len(seeds)} networks\n")
    networks = [[(task, reduction, seed) for reduction in reductions] for task, seed in product(tasks, seeds)]
    print("\n".join(_table(gains, variants[1:], networks, budgets, less=variants[0])))
    if given.figure:
        draw(
            given.figure, tasks, reductions, variants, budgets,
            lambda task, reduction, variant, budget: [
                100 * gain[1]
                for seed in seeds
                if (gain := gains[_name((task, reduction, seed), variant)].get(str(budget)))
            ],
        )  # fmt: skip


def _run(folder: Path, cell: Cell, variant: str, evaluations: int) -> None:
    name, (task, reduction, seed) = _name(cell, variant), cell
    blend = [sys.executable, "-m", "blend"]
    if not (folder / name).exists():
        about = f"{task} -o seed={seed} --seed {seed} --reduction {reduction} --evaluations {evaluations}"
        options = f"{about} --no-random-search {VARIANTS[variant]} --name {name} --runs-dir {folder}"
        subprocess.run([*blend, "search", *options.split()], check=True)
    elif Run(folder / name).status != "finished":
        subprocess.run([*blend, "resume", name, "--runs-dir", str(folder)], check=True)


def _name(cell: Cell, variant: str) -> str:
    return f"{'-'.join(cell)}-{variant.replace(' --', '-').replace(' ', '-')}"


def _table(
    gains: Gains, variants: Sequence[str], networks: Sequence[Sequence[Cell]], budgets: Sequence[int], less: str = ""
) -> Iterator[str]:
    """Gains in points, mean and 95 % t-interval over networks; left out where a search has been shorter.

    Args:
        gains: Of all runs.
        variants: One a row.
        networks: Of each its cells, whose mean counts.
        budgets: Two columns each.
        less: A variant whose gains are subtracted.
    """
    yield "| | " + " | ".join(f"{n} held-out | {n} test" for n in budgets) + " |"
    yield "|---|" + "---:|" * (2 * len(budgets))
    for variant in variants:
        columns = []
        for budget, split in product(map(str, budgets), (0, 1)):
            values = [_mean(gains, variant, cells, budget, split) for cells in networks]
            if less:
                subtracted = [_mean(gains, less, cells, budget, split) for cells in networks]
                values = [value - other for value, other in zip(values, subtracted, strict=True)]
            columns.append(_interval(values))
        yield f"| {variant} | " + " | ".join(columns) + " |"


def _mean(gains: Gains, variant: str, cells: Sequence[Cell], budget: str, split: int) -> float:
    """Not a number where a search has been shorter."""
    found = [gains[_name(cell, variant)].get(budget) for cell in cells]
    return statistics.mean(math.nan if gain is None else gain[split] for gain in found)


def _interval(values: Sequence[float]) -> str:
    """In points."""
    mean = 100 * statistics.fmean(values)
    if math.isnan(mean):
        return ""
    if len(values) < 2:
        return f"{mean:+.1f}"
    half = 100 * stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.1f} ± {half:.1f}"


def _gains(run: Run, budgets: Sequence[int], known: Mapping[str, Gain], executor: LocalExecutor) -> dict[str, Gain]:
    """Of the fittest candidate after each budget, over the single criterion that is best on the split looked at.

    Args:
        run: A finished one.
        budgets: Those that it has not had are left out.
        known: What has been found before.
        executor: Where candidates are judged.
    """
    missing = [n for n in budgets if str(n) not in known and n <= (run.config.evaluations or 0)]
    history = [e for e in run.evaluations() if e.phase == SEARCH]
    singles = [b for b in run.get("result")["baselines"] if b["kind"] == "single"]
    best = [max((e for e in history[:n] if _is_judged(e)), key=lambda e: e.fitness) for n in missing]
    tested = _tested(run, [e.phenotype for e in best], executor) if best else {}
    return dict(known) | {
        str(n): (
            e.details["metric"] - max(s["heldout_metric"] for s in singles),
            tested[e.phenotype] - max(s["test_metric"] for s in singles),
        )
        for n, e in zip(missing, best, strict=True)
    }


def _is_judged(evaluation: Evaluation) -> bool:
    return evaluation.error is None and not evaluation.given_up


def _tested(run: Run, phenotypes: Sequence[bytes], executor: LocalExecutor) -> dict[bytes, float]:
    """Test metrics, after recalibration in full precision; here, outside the run, which opens its test split once."""
    config = run.config
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(io.StringIO()):
        problem = prepare(config, run.folder / SCORES)
        workspace = Workspace(scratch, config.task, token=run.name)
        settings = Settings(config.cost, config.fitness, config.recalibration_images, config.batch_size)
        workspace.write(problem.task, problem.graph, problem.splits, settings)
        wanted = [in_full_precision(phenotype, len(problem.graph)) for phenotype in phenotypes]
        answers = dict(executor.run(TestEvaluation(workspace), wanted))
    return {phenotype: float(answers[i].mean()) for i, phenotype in enumerate(phenotypes)}


if __name__ == "__main__":
    main()
