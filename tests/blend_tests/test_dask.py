"""A real scheduler and real worker processes on the loopback: one is killed, one joins, and the result is the same."""

import re
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("distributed")

from blend.errors import InputError
from blend.pipeline import start
from blend.runs import EXPORT

from .test_pipeline import config, history

SCHEDULER = "--host 127.0.0.1 --port 0 --no-dashboard"
FEW = {"evaluations": 48, "random_search": False}


def launch(kind, *arguments):
    command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def scheduler():
    process = launch("scheduler", *SCHEDULER.split())
    for line in process.stderr:
        if found := re.search(r"Scheduler at:\s+(tcp://\S+)", line):
            break
    threading.Thread(target=process.stderr.read, daemon=True).start()
    yield found[1]
    process.kill()
    process.wait()


@pytest.fixture
def worker(scheduler, tmp_path):
    processes = []

    def new():
        folder = ["--local-directory", str(tmp_path / "scratch")]
        process = launch("worker", scheduler, "--nthreads", "1", "--no-nanny", "--no-dashboard", *folder)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        processes.append(process)
        return process

    yield new
    for process in processes:
        process.kill()
        process.wait()


def test_workers_die_and_join_and_the_result_is_that_of_a_local_run(scheduler, worker, tmp_path):
    local = start(config(**FEW), tmp_path / "local")
    first, _ = worker(), worker()
    remote = config(**FEW, executor="dask", address=scheduler)

    midway = []

    def disturb():
        while not (tmp_path / "remote" / "work").exists():
            time.sleep(0.05)
        time.sleep(2.0)
        midway.append(not (tmp_path / "remote" / EXPORT).exists())
        first.kill()
        worker()

    thread = threading.Thread(target=disturb)
    thread.start()
    run = start(remote, tmp_path / "remote")
    thread.join()
    assert midway == [True]
    assert first.wait() != 0
    assert history(run) == history(local)
    assert (run.folder / EXPORT).read_bytes() == (local.folder / EXPORT).read_bytes()


def test_an_address_is_needed_and_must_answer(tmp_path):
    with pytest.raises(InputError, match="address must be given with executor dask, like tcp://"):
        start(config(executor="dask"), tmp_path / "one")
    with pytest.raises(InputError, match=r"address must be that of a dask scheduler, got 'tcp://127\.0\.0\.1:1'"):
        start(config(executor="dask", address="tcp://127.0.0.1:1"), tmp_path / "two")
