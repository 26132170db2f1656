"""What of a search is not evaluating candidates, and what a second worker brings."""

import io
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

from blend.config import search_config
from blend.pipeline import start
from blend.runs import SEARCH, Run
from tests.benchmarks.timing import Row

OVERHEAD, EFFICIENCY = 0.02, 0.9
EVALUATIONS = 160


def rows() -> list[Row]:
    """Of a search on textures with one worker and with two."""
    alone, evaluating = _searched(workers=1)
    together, _ = _searched(workers=2)
    overhead, efficiency = 1 - evaluating / alone, alone / (2 * together)
    what = f"textures, {EVALUATIONS} candidates"
    return [
        Row(f"{what}: share of a search that is not evaluation", overhead, OVERHEAD, overhead / OVERHEAD, "", "limit"),
        Row(f"{what}: efficiency of 2 workers", efficiency, EFFICIENCY, efficiency / EFFICIENCY, "", "at least"),
    ]


def _searched(workers: int) -> tuple[float, float]:
    """Seconds of the search phase alone, and what workers report of them."""
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        config = search_config(task="textures", evaluations=EVALUATIONS, random_search=False, workers=workers)
        run: Run = start(config, Path(folder, "it"))
        seconds = sum(e.seconds for e in run.evaluations() if e.phase == SEARCH and not e.cached)
        return float(run.get("search-seconds")), seconds
