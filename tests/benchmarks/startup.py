"""How long a person waits: for the help, and for the first results of a search whose network is cached."""

import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.benchmarks.timing import Row

HELP, FIRST = 0.3, 8.0  # seconds
ROUNDS = 7
ENTRY = "import sys; from blend.cli import main; sys.argv[0] = 'blend'; sys.exit(main())"


def rows() -> list[Row]:
    """The console's entry point, from the start of its process."""
    _first_results()  # trains and caches the network where that was not done yet
    return [
        _row("blend --help", lambda: _seconds(["--help"]), HELP),
        _row("blend search digits: until the first baselines are saved", _first_results, FIRST),
    ]


def _row(what: str, seconds: Callable[[], float], limit: float) -> Row:
    median = statistics.median(seconds() for _ in range(ROUNDS))
    return Row(f"{what}, median of {ROUNDS}", median, limit, median / limit, "s", "limit")


def _seconds(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", ENTRY, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _first_results() -> float:
    """Seconds from the command to the first commit of evaluations, of two workers."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["search", "digits", "--workers", "2", "--runs-dir", folder, "--name", "it"]
        began = time.perf_counter()
        process = psutil.Popen([sys.executable, "-c", ENTRY, *arguments], stderr=subprocess.DEVNULL)
        while not _has_evaluations(Path(folder, "it", "run.db")):
            if process.poll() is not None:
                raise RuntimeError(f"the search ended with {process.returncode}")
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        process.kill()
        process.wait()
    return seconds


def _has_evaluations(database: Path) -> bool:
    if not os.path.exists(database):
        return False
    connection = sqlite3.connect(database)
    try:
        return bool(connection.execute("SELECT count(*) FROM evaluations").fetchone()[0])
    finally:
        connection.close()
