"""Real dask and ray clusters of processes on the loopback, for tests."""

import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCHEDULER = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
SMALL = ["--object-store-memory", "100000000"]
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("blend", "search", "criteria"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""
"""A sitecustomize of a worker on a machine where this package is not installed."""


def _launch(module, *arguments, **environment):
    command = [sys.executable, "-m", module, *arguments]
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
    process = _launch("distributed.cli.dask_scheduler", *SCHEDULER, **limit)
    for line in process.stderr:
        if found := re.search(r"Scheduler at:\s+(tcp://\S+)", line):
            break
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        yield found[1], process
    finally:
        _end(process)


@contextmanager
def other_servers() -> Iterator[list[str]]:
    """Addresses on which something else listens: a web server, and what never says anything."""
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as web,
        socket.create_server(("127.0.0.1", 0)) as mute,
    ):
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield [f"127.0.0.1:{port}" for port in (web.server_port, mute.getsockname()[1])]
        web.shutdown()


class DaskWorkers:
    """Starts workers, and ends them all."""

    def __init__(self, address: str, scratch: Path) -> None:
        self.address, self.scratch = address, scratch
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, nanny: bool = True, **environment: str) -> subprocess.Popen[str]:
        """One more; with a nanny it is started anew when it dies."""
        options = ["--nthreads", "1", "--no-dashboard", "--local-directory", str(self.scratch)]
        options += ["--nanny" if nanny else "--no-nanny"]
        process = _launch("distributed.cli.dask_worker", self.address, *options, **environment)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        self.processes.append(process)
        return process

    def end(self) -> None:
        """End all."""
        for process in self.processes:
            _end(process)


def _ray_node(*arguments: str, cpus: int, **environment: str) -> subprocess.Popen[str]:
    options = ["--block", "--node-ip-address", "127.0.0.1", "--num-cpus", str(cpus), *SMALL]
    process = _launch("ray.scripts.scripts", "start", *arguments, *options, RAY_USAGE_STATS_ENABLED="0", **environment)
    threading.Thread(target=process.stderr.read, daemon=True).start()
    return process


@contextmanager
def ray_head(cpus: int = 2, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its address and process, as soon as it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = tempfile.mkdtemp(prefix="ray-")  # not one of pytest's: the names of sockets must be short
    options = ["--head", "--port", address.rpartition(":")[2], "--include-dashboard=false", "--temp-dir", folder]
    process = _ray_node(*options, cpus=cpus, **environment)
    while not Path(folder, "ray_current_cluster").exists() and process.poll() is None:
        time.sleep(0.1)
    try:
        yield address, process
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ray_node(address: str, cpus: int = 1) -> Iterator[subprocess.Popen[str]]:
    """One more node, which joins when it is ready; its process."""
    process = _ray_node("--address", address, cpus=cpus)
    try:
        yield process
    finally:
        _end(process)
