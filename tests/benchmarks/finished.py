"""What is left of a search's lead in the end: ``python -m tests.benchmarks.finished --help``.

Searches several networks of a task, with and without compensation in the loop, and takes the winners, the single
criteria and the controls all the way: recalibrated, compensated layer by layer, fine-tuned by the default recipe with
several seeds. Nothing is decided on test data; what is finished is kept and not done again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from blend.evaluation import pack, unpack
from blend.pipeline.contenders import winner
from blend.problem import Problem, prepare
from blend.pruned.finetuning import Recipe, finetuned
from blend.pruned.step import Calibration, compensated, judged, recalibrated
from blend.pruning import reproducibly
from blend.runs import SCORES, Run
from criteria.graph import Keep
from search.archive import Archive

BLEND = "blend"
SEARCHES = {  # what the table calls it, its runs, and how it is searched
    BLEND: ("cluster", "--encoding cluster"),
    "blend direct signed": ("direct", "--encoding direct --signed"),
    "cap with searched allocation": ("alloc", "--encoding allocation --base cap"),
    "mask swap": ("swap", "--encoding mask --strategy swap"),
}
CRITERIA = "l1,l2,fpgm,bn_scale,taylor_l1,taylor_l2,taylor_fo,fisher,mean_activation,apoz,hrank,cap"
STAGES = ("recalibrated", "sequential", "fine-tuned")
Cell = tuple[str, str, str]  # seed, reduction, compensation in the loop


def main(arguments: Sequence[str] | None = None) -> None:
    """Does what is not done yet, and prints a table per reduction."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-finished"), help="of runs and results")
    parser.add_argument("--task", default="textures")
    parser.add_argument("--seeds", default="0,1,2", help="of the network's training and of the search")
    parser.add_argument("--reductions", default="0.5,0.7")
    parser.add_argument("--compensate", default="none,patch", help="in the loop; what is shipped gets sequential then")
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--finetune", type=int, default=2, help="seeds of fine-tuning for each network")
    parser.add_argument("--tuned", default="", help="rows to fine-tune, with commas; all by default")
    given = parser.parse_args(arguments)
    seeds, reductions, grades = (getattr(given, name).split(",") for name in ("seeds", "reductions", "compensate"))
    given.folder.mkdir(parents=True, exist_ok=True)
    for reduction in reductions:
        results = {}
        for grade, seed in product(grades, seeds):
            for what in SEARCHES:
                _search(given.folder, given.task, (seed, reduction, grade), what, given.evaluations)
            results[seed, grade] = _finish(given.folder, (seed, reduction, grade), given.finetune, given.tuned)
        print(f"\n{given.task}, reduction {reduction}, {len(seeds)} networks, test accuracy\n")
        print("\n".join(_table(results, seeds, grades)), flush=True)


def _search(folder: Path, task: str, cell: Cell, what: str, evaluations: int) -> None:
    seed, reduction, grade = cell
    run = folder / _name(cell, what)
    blend = [sys.executable, "-m", "blend"]
    if not run.exists():
        about = f"{task} -o seed={seed} --seed {seed} --reduction {reduction} --evaluations {evaluations}"
        how = f"{SEARCHES[what][1]} --criteria {CRITERIA} --compensate {grade} --precision bf16 --no-random-search"
        options = f"{about} {how}"
        subprocess.run([*blend, "search", *options.split(), "--name", run.name, "--runs-dir", str(folder)], check=True)
    elif Run(run).status != "finished":
        subprocess.run([*blend, "resume", str(run)], check=True)


def _name(cell: Cell, what: str) -> str:
    return "-".join((*cell, SEARCHES[what][0]))


def _finish(folder: Path, cell: Cell, finetune: int, tuned: str) -> dict[str, Any]:
    """Test accuracies of all contenders at every stage, kept in a file beside the runs."""
    file = folder / f"{'-'.join(cell)}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    run = Run(folder / _name(cell, BLEND))
    problem = prepare(run.config, run.folder / SCORES)
    masks = _masks(problem, folder, cell)
    stages = STAGES if cell[2] != "none" else ("recalibrated", "fine-tuned")
    todo = [(stage, seed) for stage in stages for seed in range(finetune if stage == "fine-tuned" else 1)]
    for (stage, seed), (name, keep) in product(todo, masks.items()):
        have = found.setdefault(name, {}).setdefault(stage, [])
        if seed == len(have) and (stage != "fine-tuned" or not tuned or name in tuned.split(",")):
            have.append(_tested(problem, keep, cell[2], stage, seed))
            file.write_text(json.dumps(found, indent=1))
            print(*cell, name, stage, have[-1], file=sys.stderr, flush=True)
    result = run.get("result")
    found["unpruned"] = {"recalibrated": [result["unpruned"]["test_metric"]]}
    singles = [b["test_metric"] for b in result["baselines"] if b["kind"] == "single"]
    found["strongest single criterion on test, cap included"] = {"recalibrated": [max(singles)]}
    return found


def _masks(problem: Problem, folder: Path, cell: Cell) -> dict[str, Keep]:
    """Of those that the table names; where there are two allocations, by the one that is better on held-out data."""
    archive = Archive(Run(folder / _name(cell, BLEND)).evaluations())
    fitness = {}
    for baseline in problem.baselines:
        evaluation = archive.get(pack(baseline.masks[0]))
        assert evaluation is not None
        fitness[baseline.name, baseline.allocation] = (evaluation.fitness, baseline)
    singles = [value for value in fitness.values() if value[1].kind == "single"]

    def best(among: Sequence[Any]) -> Keep:
        return max(among, key=lambda value: value[0])[1].masks[0]

    masks = {
        "strongest single but cap": best([value for value in singles if value[1].name != "cap"]),
        "cap": best([value for value in singles if value[1].name == "cap"]),
    }
    for what in SEARCHES:
        run = Run(folder / _name(cell, what))
        masks[what] = unpack(winner(Archive(run.evaluations()), run.config.reduction).phenotype, len(problem.graph))
    return {**masks, "uniform blend": best([value for value in fitness.values() if value[1].kind == "uniform_blend"])}


def _tested(problem: Problem, keep: Keep, grade: str, stage: str, seed: int) -> float:
    """Test accuracy of a pruned network: with the loop's compensation, with the sequential one, or trained further."""
    final = grade if stage == "recalibrated" or grade == "none" else "sequential"
    config, calibration = problem.config, problem.splits.calibration.inputs
    what = (problem.task.model, problem.graph, keep)
    images = Calibration(calibration, config.recalibration_images, config.batch_size)
    network = recalibrated(*what, images, compensated(*what, images, final))
    task, batch = problem.task, config.batch_size
    if stage == "fine-tuned":
        assert task.finetune is not None
        recipe = Recipe.of(task.finetune)
        network, _ = finetuned(network, task.model, task, task.finetune.train, problem.splits.heldout, recipe, seed)
    with reproducibly():
        return judged(network, task, problem.splits.test, batch)[1]


def _table(
    results: Mapping[tuple[str, str], Mapping[str, Any]], seeds: Sequence[str], grades: Sequence[str]
) -> Iterator[str]:
    """Means over networks; after fine-tuning, with the standard deviation over its seeds, pooled over networks."""
    columns = [(grade, stage) for grade in grades for stage in STAGES if stage != "sequential" or grade != "none"]
    yield "| | " + " | ".join(f"{grade}: {stage}" for grade, stage in columns) + " |"
    yield "|---|" + "---:|" * len(columns)
    for name in next(iter(results.values())):
        cells = []
        for grade, stage in columns:
            values = [results[seed, grade][name].get(stage) for seed in seeds]
            cells.append(_cell(values) if all(values) else "")
        yield f"| {name} | " + " | ".join(cells) + " |"


def _cell(values: Sequence[Sequence[float]]) -> str:
    mean = statistics.mean(statistics.mean(value) for value in values)
    if len(values[0]) < 2:
        return f"{mean:.3f}"
    spread = statistics.mean(statistics.variance(value) for value in values) ** 0.5
    return f"{mean:.3f} ± {spread:.3f}"


if __name__ == "__main__":
    main()
