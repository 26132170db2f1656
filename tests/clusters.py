"""Real dask clusters of processes on the loopback, for tests."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCHEDULER = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]


def _launch(kind, *arguments, **environment):
    command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path} | environment
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def _end(process):
    process.terminate()  # a nanny ends its worker, too
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def dask_scheduler(allowed_failures: int = 3) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its address and process."""
    limit = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(allowed_failures)}
    process = _launch("scheduler", *SCHEDULER, **limit)
    for line in process.stderr:
        if found := re.search(r"Scheduler at:\s+(tcp://\S+)", line):
            break
    threading.Thread(target=process.stderr.read, daemon=True).start()
    yield found[1], process
    _end(process)


class DaskWorkers:
    """Starts workers, and ends them all."""

    def __init__(self, address: str, scratch: Path) -> None:
        self.address, self.scratch = address, scratch
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, nanny: bool = True) -> subprocess.Popen[str]:
        """One more; with a nanny it is started anew when it dies."""
        options = ["--nthreads", "1", "--no-dashboard", "--local-directory", str(self.scratch)]
        process = _launch("worker", self.address, *options, "--nanny" if nanny else "--no-nanny")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        self.processes.append(process)
        return process

    def end(self) -> None:
        """End all."""
        for process in self.processes:
            _end(process)
