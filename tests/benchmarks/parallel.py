"""What of a search is not evaluating candidates, what a second worker brings, and whether memory stays flat."""

import io
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import redirect_stderr, suppress
from pathlib import Path

import psutil

from blend.config import search_config
from blend.pipeline import start
from blend.runs import SEARCH, Run
from tests.benchmarks.timing import Row

OVERHEAD, EFFICIENCY, GROWTH = 0.02, 0.9, 1.1
EVALUATIONS, MANY, SETTLED = 160, 5_000, 1_000
TINY = f"{Path(__file__).parents[1] / 'blend_tests' / 'task_file.py'}:small"


def rows() -> list[Row]:
    """Of a search on textures with one worker and with two; and of a long one of a tiny network."""
    alone, evaluating = _searched(workers=1)
    together, _ = _searched(workers=2)
    overhead, efficiency = 1 - evaluating / alone, alone / (2 * together)
    what = f"textures, {EVALUATIONS} candidates"
    return [
        Row(f"{what}: share of a search that is not evaluation", overhead, OVERHEAD, overhead / OVERHEAD, "", "limit"),
        Row(f"{what}: efficiency of 2 workers", efficiency, EFFICIENCY, efficiency / EFFICIENCY, "", "at least"),
        *_memory_rows(),
    ]


def _searched(workers: int) -> tuple[float, float]:
    """Seconds of the search phase alone, and what workers report of them."""
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        config = search_config(task="textures", evaluations=EVALUATIONS, random_search=False, workers=workers)
        run: Run = start(config, Path(folder, "it"))
        seconds = sum(e.seconds for e in run.evaluations() if e.phase == SEARCH and not e.cached)
        return float(run.get("search-seconds")), seconds


def _memory_rows() -> list[Row]:
    """Resident memory at the end of many evaluations over that after the first thousand, median of a second each."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--evaluations {MANY} --workers 2 --no-random-search --criteria l1,fpgm,taylor_fo --name it".split()
        command = [sys.executable, "-m", "blend", "search", TINY, *options, "--runs-dir", folder]
        process = psutil.Popen(command, stderr=subprocess.DEVNULL)
        seen: dict[str, list[tuple[int, float]]] = defaultdict(list)
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                done = _evaluations(Path(folder, "it"))
                workers = [c for c in process.children() if "loky" in " ".join(c.cmdline())]
                seen["driver"].append((done, process.memory_info().rss))
                seen["worker"].append((done, max((w.memory_info().rss for w in workers), default=0)))
            time.sleep(0.2)
        if process.returncode:
            raise RuntimeError(f"the search ended with {process.returncode}")
    return [_memory_row(who, values) for who, values in seen.items()]


def _memory_row(who: str, values: list[tuple[int, float]]) -> Row:
    early = next(memory for done, memory in values if done >= SETTLED)
    late = [memory for done, memory in values if done >= MANY * 0.9]
    ratio = max(late) / early
    what = f"memory of the {who} near {MANY} evaluations over that at {SETTLED}"
    return Row(what, ratio, GROWTH, ratio / GROWTH, "", f"limit; {early / 1e6:.0f} MB at first")


def _evaluations(folder: Path) -> int:
    return Run(folder).counts()["evaluations"] if (folder / "config.json").exists() else 0
