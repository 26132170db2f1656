"""What beginning where a candidate differs from earlier ones saves, by kind of search: with and without, in turn."""

import io
import statistics
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

from blend.config import search_config
from blend.pipeline import start
from blend.runs import POLISH, SEARCH, Run
from tests.benchmarks.timing import Row

EVALUATIONS, WORKERS, ROUNDS = 300, 2, 3
SIZES = ("1G", "0")
SEARCHES = {
    "ga (the default)": {},
    "ga, --allocation uniform": {"allocation": "uniform"},
    "greedy": {"strategy": "greedy"},
    "swap over masks": {"strategy": "swap", "encoding": "mask"},
    "polishing": {"polish": EVALUATIONS // 2},
}


def rows() -> list[Row]:
    """On textures: seconds that workers take for a new candidate."""
    return [_row(what, options) for what, options in SEARCHES.items()]


def _row(what: str, options: dict[str, object]) -> Row:
    phase = POLISH if "polish" in options else SEARCH
    pairs = [[_seconds(phase, cache_memory=size, **options) for size in SIZES] for _ in range(ROUNDS)]
    if len({found for pair in pairs for _, found in pair}) != 1:
        raise RuntimeError(f"{what}: what is found depends on what is kept")
    times = [[seconds for seconds, _ in pair] for pair in pairs]
    ours, peer = (statistics.median(side) for side in zip(*times, strict=True))
    ratio = statistics.median(without / kept for kept, without in times)
    return Row(f"{what}: a candidate, times faster", ours, peer, ratio, "s", "nothing kept")


def _seconds(phase: str, **options: object) -> tuple[float, tuple[tuple[bytes, float], ...]]:
    """Mean time of a candidate of a phase, and all candidates with what they were worth."""
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        config = search_config(
            task="textures", evaluations=EVALUATIONS, random_search=False, workers=WORKERS, **options
        )
        run: Run = start(config, Path(folder, "it"))
        new = [e for e in run.evaluations() if e.phase == phase and not e.cached]
    return statistics.mean(e.seconds for e in new), tuple((e.phenotype, e.fitness) for e in new)
