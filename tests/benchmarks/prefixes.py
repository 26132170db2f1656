"""What keeping the first layers' results of earlier candidates could save: ``python -m tests.benchmarks.prefixes RUN``.

A candidate whose first layers are those of an earlier one could begin behind them. This counts, over a finished run,
the share of all candidates' MACs that lie in such layers, if the results of the last few candidates, or of all, were
still there; a bound, as fetching them is not free.
"""

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np

from blend.evaluation import in_full_precision, unpack
from blend.problem import Problem, prepare
from blend.runs import SCORES, SEARCH, Run
from criteria.graph import Keep

KEPT = (8, 64, None)  # candidates whose results are still there; 200 MB each with ResNet-20 and 756 images of 32 x 32


def main(folders: Sequence[str]) -> None:
    """Prints a line for each run."""
    for folder in folders:
        run = Run(Path(folder))
        with redirect_stderr(io.StringIO()):
            problem = prepare(run.config, run.folder / SCORES)
        new = [e for e in run.evaluations() if e.phase == SEARCH and not e.cached]
        keeps = [unpack(in_full_precision(e.phenotype, len(problem.graph)), len(problem.graph)) for e in new]
        shares = "  ".join(f"{_share(problem, keeps, kept):5.1%} of {kept or 'all'}" for kept in KEPT)
        print(f"{run.name}: {len(keeps)} candidates, saved with the results of the last:  {shares}", flush=True)


def _share(problem: Problem, keeps: Sequence[Keep], kept: int | None) -> float:
    """The share of MACs in layers that an earlier candidate has up to there, too."""
    layers = _layers(problem)
    owners = [channels for channels, _ in layers]
    saved = total = 0.0
    for number, keep in enumerate(keeps):
        costs = np.array([_cost(problem, tensor, keep) for _, tensor in layers])
        earlier = keeps[max(0, number - kept) if kept else 0 : number]
        common = max((_common(owners, keep, other) for other in earlier), default=0)
        saved += costs[:common].sum()
        total += costs.sum()
    return saved / total


def _layers(problem: Problem) -> list[tuple[np.ndarray, str]]:
    """In forward order: the channels that a layer's weight depends on, and its name."""
    owners: dict[str, set[int]] = {tensor: set() for tensor in problem.graph.positions}
    for axis in problem.graph.axes:
        if axis.tensor in owners:
            owners[axis.tensor].update(axis.owner[axis.owner >= 0].tolist())
    return [(np.array(sorted(channels), dtype=int), tensor) for tensor, channels in owners.items()]


def _common(owners: Sequence[np.ndarray], keep: Keep, other: Keep) -> int:
    """How many of the first layers two candidates have in common."""
    different = keep != other
    return next((i for i, channels in enumerate(owners) if different[channels].any()), len(owners))


def _cost(problem: Problem, tensor: str, keep: Keep) -> float:
    """MACs of one layer of a candidate."""
    kept = float(problem.graph.positions[tensor]) * np.prod(problem.graph.shapes[tensor])
    for axis in problem.graph.axes:
        if axis.tensor == tensor:
            kept *= np.mean((axis.owner < 0) | keep[axis.owner])
    return float(kept)


if __name__ == "__main__":
    main(sys.argv[1:])
