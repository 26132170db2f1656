"""Peak memory of the process that drives a search and of its workers, in a real run, against the limit."""

import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.benchmarks.timing import Row

LIMIT = 1.5e9  # bytes
TASKS = {"digits": (), "textures": ()}


def rows() -> list[Row]:
    """Two rows a task: driver and the largest worker."""
    return [row for task, options in TASKS.items() for row in _task_rows(task, options)]


def _task_rows(task: str, options: tuple[str, ...]) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "blend", "search", task, *options, "--evaluations", "40", "--workers", "2"]
        process = psutil.Popen([*command, "--runs-dir", folder, "--no-random-search"], stderr=subprocess.DEVNULL)
        peaks: dict[int, float] = {}
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                for one in (process, *process.children(recursive=True)):
                    peaks[one.pid] = max(peaks.get(one.pid, 0.0), high_water(one.pid))
            time.sleep(0.02)
        if process.returncode:
            raise RuntimeError(f"the search of {task} ended with {process.returncode}")
    driver = peaks.pop(process.pid)
    return [
        Row(f"{task}: peak memory, driver", driver / 1e9, LIMIT / 1e9, driver / LIMIT, "GB", "limit"),
        Row(f"{task}: peak memory, worker", max(peaks.values()) / 1e9, LIMIT / 1e9, max(peaks.values()) / LIMIT, "GB",
            "limit"),
    ]  # fmt: skip


def high_water(pid: int | str) -> float:
    """The most resident memory that a process has had so far, in bytes."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return float(line.split()[1]) * 1024
    return 0.0
