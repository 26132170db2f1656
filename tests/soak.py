"""Kills searches at random moments, resumes them, and holds what they leave against an undisturbed run.

    python -m tests.soak --kills 300 --strategies ga,nsga2 --seed 0

Drivers are forked from a process that has everything imported, so that the kills fall into the work and not into the
start of Python. Some come a random time after the start, some shortly after a commit was seen, when the workers are
warm; now and then a worker is killed, too. Each resume has one or two workers. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from blend.config import SearchConfig, search_config
from blend.pipeline import resume, start
from blend.runs import DATABASE, Run
from search.strategies import STRATEGIES

TASK = f"{Path(__file__).parent / 'blend_tests' / 'task_file.py'}:small"
ORPHANS = 2.0  # seconds that a worker may outlive its driver
OF_STRATEGY: dict[str, dict[str, Any]] = {"swap": {"encoding": "mask"}, "nsga2": {"polish": 0}}


def main() -> int:
    """Soaks as long as asked, prints the counts, and says whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--evaluations", type=int, default=320)
    parser.add_argument("--strategies", default="ga", help="one search each in turn; all stands for all of them")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    common = {
        "task": TASK, "evaluations": asked.evaluations, "polish": asked.evaluations // 8, "population": 8,
        "criteria": ("l1", "fpgm", "taylor_fo", "apoz"),
    }  # fmt: skip
    chosen = STRATEGIES if asked.strategies == "all" else asked.strategies.split(",")
    configs = [search_config(**{**common, "strategy": name, **OF_STRATEGY.get(name, {})}) for name in chosen]
    with tempfile.TemporaryDirectory() as folder:
        counts = soak(configs, Path(folder), asked.kills, random.Random(asked.seed))
    print(json.dumps(counts))
    return int(bool(counts["differences"] or counts["orphans"] or counts["unfinished"]))


def soak(configs: Sequence[SearchConfig], folder: Path, kills: int, rng: random.Random) -> Counter[str]:
    """One search after the other until so many drivers were killed; the last one is finished."""
    counts: Counter[str] = Counter(kills=0, worker_kills=0, searches=0, differences=0, orphans=0, unfinished=0)
    began = time.monotonic()
    undisturbed = [_undisturbed(config, folder / f"undisturbed-{config.strategy}") for config in configs]
    while counts["kills"] < kills:
        name, turn = folder / f"search-{counts['searches']}", counts["searches"] % len(configs)
        config, (span, expected), before = configs[turn], undisturbed[turn], counts["kills"]
        while not _is_finished(name) and not counts["unfinished"]:
            driver = _forked(config, name, workers=rng.choice((1, 2)))
            if counts["kills"] >= kills:
                counts["unfinished"] += _finish(driver) != 0
            else:
                _disturb(driver, name, span, rng, counts)
        if counts["unfinished"]:
            break
        counts["searches"] += 1
        counts[f"kills of {config.strategy}"] += counts["kills"] - before
        counts["differences"] += _outcome(name) != expected
        print(f"{time.monotonic() - began:.0f} s  {dict(counts)}", file=sys.stderr, flush=True)
    return counts


def _undisturbed(config: SearchConfig, folder: Path) -> tuple[float, Any]:
    """How long a search takes, and what comes of it."""
    began = time.monotonic()
    if _finish(_forked(config, folder, workers=1)):
        raise RuntimeError(f"the undisturbed search by '{config.strategy}' failed")
    return time.monotonic() - began, _outcome(folder)


def _disturb(driver: int, folder: Path, span: float, rng: random.Random, counts: Counter[str]) -> None:
    """Kills the driver at a random moment, unless it is done before, and looks for orphans."""
    if rng.random() < 0.5:
        until = time.monotonic() + rng.uniform(0.0, span)
    else:
        _await_commit(driver, folder)
        until = time.monotonic() + rng.expovariate(1 / 0.15)
    kills_worker = rng.random() < 0.2
    while time.monotonic() < until and _lives(driver):
        time.sleep(0.001)
        if kills_worker and time.monotonic() > until - 0.1 and (workers := _workers(driver)):
            with suppress(psutil.NoSuchProcess):
                rng.choice(workers).kill()
                counts["worker_kills"] += 1
            kills_worker = False
    if not _lives(driver):
        if os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1]) != 0:
            counts["unfinished"] += 1
        return
    os.kill(driver, signal.SIGSTOP)  # so that it starts no worker between our look and its end
    workers = _workers(driver)
    os.kill(driver, signal.SIGKILL)
    os.waitpid(driver, 0)
    counts["kills"] += 1
    counts[f"kills in {_stage(folder)}"] += 1
    deadline = time.monotonic() + ORPHANS
    while (left := [worker for worker in workers if _runs(worker)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    counts["orphans"] += len(left)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            print(f"orphan: {process.status()} {' '.join(process.cmdline())}", file=sys.stderr, flush=True)


def _forked(config: SearchConfig, folder: Path, workers: int) -> int:
    """A process that starts the search, or goes on with it where there is something to go on with."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        sys.stderr = (folder.parent / "stderr.txt").open("a")
        os.dup2(2, 1)  # a worker whose driver is killed as it starts says so where our counts go
        if folder.exists():
            resume(Run(folder), workers=workers)
        else:
            start(config.model_copy(update={"workers": workers}), folder)
        code = 0
    except BaseException as error:  # noqa: BLE001 - a forked process must not return into its parent's stack
        sys.__stderr__.write(f"{type(error).__name__}: {error}\n")  # type: ignore[union-attr]
    finally:
        os._exit(code)


def _finish(driver: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1])


def _lives(driver: int) -> bool:
    return os.waitid(os.P_PID, driver, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _workers(driver: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(driver).children(recursive=True)
    return []


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _await_commit(driver: int, folder: Path) -> None:
    before = _count(folder)
    while _lives(driver) and _count(folder) == before:
        time.sleep(0.002)


def _count(folder: Path) -> int:
    return int(_query(folder, "SELECT count(*) FROM evaluations", 0))


def _stage(folder: Path) -> str:
    """What was last committed when the driver was killed."""
    if _query(folder, "SELECT value FROM documents WHERE key = 'result'", None):
        return "export"
    return str(_query(folder, "SELECT phase FROM evaluations ORDER BY number DESC LIMIT 1", "preparation"))


def _query(folder: Path, question: str, otherwise: Any) -> Any:
    if not (folder / DATABASE).exists():
        return otherwise
    connection = sqlite3.connect(folder / DATABASE, timeout=30.0)
    try:
        return (connection.execute(question).fetchone() or (otherwise,))[0]
    finally:
        connection.close()


def _is_finished(folder: Path) -> bool:
    return _query(folder, "SELECT value FROM documents WHERE key = 'status'", "") == '"finished"'


def _outcome(folder: Path) -> Any:
    """History, verdict and exported file: everything but times."""
    run = Run(folder)
    history = [
        (e.number, e.phase, e.generation, e.genome, e.phenotype, e.fitness, e.details, e.cached, e.error)
        for e in run.evaluations()
    ]
    exports = {path.name: path.read_bytes() for path in folder.glob("*.blend.json")}
    outcome = (history, run.get("result"), run.get("front"), run.get("search-state"), exports)
    run.close()
    return outcome


if __name__ == "__main__":
    sys.exit(main())
