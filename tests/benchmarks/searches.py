"""What a whole search costs: in half precision and giving up early, against judging the same candidates by a loop.

That a candidate may be judged less exactly is worth something only if what is found is as good. So the same search is
also made in full precision and to the end, and the winners of both are compared as they are reported, in full
precision on all held-out data.
"""

import io
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from multiprocessing import get_context
from pathlib import Path

import torch

from blend.config import search_config
from blend.evaluation import in_full_precision, unpack
from blend.pipeline import start
from blend.problem import prepare
from blend.runs import FINAL, SCORES, SEARCH, Run
from search.archive import Evaluation
from tests.benchmarks.peers import judged_by_loop, pruned_copy
from tests.benchmarks.timing import Row

NETWORKS = ("resnet20", "resnet56", "mobilenetv2")
EVALUATIONS, SAMPLE, WORKERS = 600, 3, 2
EXACT = ("resnet20",)  # searched once more in full precision and to the end, which takes longest


def rows() -> list[Row]:
    """On textures at 32 x 32, for each network: time per candidate of a search of 600, and what its winner is worth."""
    os.environ["OMP_NUM_THREADS"] = "1"  # the loop's process inherits it
    return [row for name in NETWORKS for row in _network_rows(name)]


def _network_rows(network: str) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(WORKERS, get_context("spawn")) as others:
        sides = {"bf16 and racing": _search(network, Path(folder, "fast"), precision="bf16", racing=True)}
        if network in EXACT:
            sides["fp32 to the end"] = _search(network, Path(folder, "exact"), precision="fp32", racing=False)
        folders = [sides["bf16 and racing"].folder] * WORKERS  # as busy as the machine is while it searches
        loop = statistics.median(seconds for some in others.map(_loop, folders, range(WORKERS)) for seconds in some)
        for side, run in sides.items():
            ours = _seconds_per_candidate(run)
            yield Row(f"{network}: search, {side}, times faster", ours, loop, loop / ours, "s", "the loop of a user")
        if network in EXACT:
            losses = [-_winner(run).fitness for run in sides.values()]
            what = "what fp32 to the end finds"
            yield Row(f"{network}: loss of what it finds", *losses, losses[0] / losses[1], "", what)


def _search(network: str, folder: Path, **options: object) -> Run:
    config = search_config(
        task="textures", options={"network": network, "stem_stride": "1", "epochs": "3"}, evaluations=EVALUATIONS,
        random_search=False, workers=WORKERS, **options,
    )  # fmt: skip
    with redirect_stderr(io.StringIO()):
        return start(config, folder)


def _winner(run: Run) -> Evaluation:
    winner = run.best(FINAL[SEARCH])
    assert winner is not None
    return winner


def _seconds_per_candidate(run: Run) -> float:
    """With what judging the best again costs; those known already cost nothing, but are counted neither."""
    judged = [e for e in run.evaluations() if e.phase in (SEARCH, FINAL[SEARCH]) and not e.cached]
    return sum(e.seconds for e in judged) / sum(e.phase == SEARCH for e in judged)


def _loop(folder: Path, which: int) -> list[float]:
    """Seconds that a user's loop takes for some candidates of a search, others for each number."""
    torch.set_num_threads(1)
    run = Run(folder)
    problem = prepare(run.config, folder / SCORES)
    candidates = [e.phenotype for e in run.evaluations() if e.phase == SEARCH and not e.cached]
    some = candidates[which :: max(1, len(candidates) // SAMPLE)][: SAMPLE + 1]
    splits, times = problem.splits, []
    calibration = splits.calibration.inputs[: run.config.recalibration_images]
    for phenotype in some:
        keep = unpack(in_full_precision(phenotype, len(problem.graph)), len(problem.graph))
        began = time.perf_counter()
        network = pruned_copy(problem.task.model, problem.graph, keep, problem.task.example_input)
        judged_by_loop(network, calibration, (splits.heldout.inputs, splits.heldout.targets))
        times.append(time.perf_counter() - began)
    return times[1:]  # the first warms up
