"""Whether the memory of a search stays flat over thousands of evaluations."""

import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import psutil

from blend.runs import SEARCH, Run
from tests.benchmarks.timing import Row

GROWTH = 1.1
MANY, SETTLED = 5_000, 1_000
CACHE = "128M"


def rows() -> list[Row]:
    """Largest resident memory near the end of a search on digits, over that after its first thousand evaluations.

    What comes after the search is left out: drawing its figure takes 30 MB once, after however many evaluations. What
    workers may keep of candidates is so little that they keep it by then.
    """
    with tempfile.TemporaryDirectory() as folder:
        limits = f"--evaluations {MANY} --workers 2 --cache-memory {CACHE}"
        options = f"{limits} --no-random-search --criteria l1,fpgm,taylor_fo --name it".split()
        command = [sys.executable, "-m", "blend", "search", "digits", *options, "--runs-dir", folder]
        process = psutil.Popen(command, stderr=subprocess.DEVNULL)
        seen: dict[str, list[tuple[int, float]]] = defaultdict(list)
        while process.poll() is None:
            time.sleep(0.2)
            done, searching = _evaluations(Path(folder, "it"))
            with suppress(psutil.NoSuchProcess):
                workers = [c for c in process.children() if "loky" in " ".join(c.cmdline())] if searching else []
                seen["driver"] += [(done, process.memory_info().rss)] if searching else []
                seen["worker"] += [(done, max(w.memory_info().rss for w in workers))] if workers else []
        if process.returncode:
            raise RuntimeError(f"the search ended with {process.returncode}")
    return [_memory_row(who, values) for who, values in seen.items()]


def _memory_row(who: str, values: list[tuple[int, float]]) -> Row:
    early = next(memory for done, memory in values if done >= SETTLED)
    late = [memory for done, memory in values if done >= MANY * 0.9]
    ratio = max(late) / early
    what = f"memory of the {who} near {MANY} evaluations over that at {SETTLED}"
    return Row(what, ratio, GROWTH, ratio / GROWTH, "", f"limit; {early / 1e6:.0f} MB at first")


def _evaluations(folder: Path) -> tuple[int, bool]:
    """How many there are, and whether there will be more."""
    if not (folder / "config.json").exists():
        return 0, True
    run = Run(folder)
    return run.counts()["evaluations"], run.get(f"{SEARCH}-ended") is None
