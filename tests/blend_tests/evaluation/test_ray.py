"""A real ray head and worker processes on the loopback: one is killed, a node joins, and the result is the same."""

import subprocess
import sys
import threading
import time

import psutil
import pytest

pytest.importorskip("ray")

from blend.cli import run as main
from blend.errors import InputError
from blend.pipeline import start
from blend.runs import EXPORT, Run
from search import Failure
from search.errors import SearchError
from search.executor import TICK
from search.ray_executor import KILLED, RayExecutor
from tests.clusters import WITHOUT, other_servers, ray_head, ray_node

from ..pipeline.test_pipeline import TASK, config, history, without_workers

FEW = {"evaluations": 48, "random_search": False}


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def working(head):
    """The processes that are running an item."""
    return [process for process in psutil.Process(head.pid).children(recursive=True) if "::_run" in process.name()]


def test_workers_die_and_nodes_join_and_the_result_is_that_of_a_local_run(ray_cluster, tmp_path):
    address, head = ray_cluster
    with without_workers():
        local = start(config(**FEW), tmp_path / "local")
    remote = tmp_path / "remote"
    midway = []

    def disturb():
        wait_until((remote / "work").exists)
        wait_until(lambda: working(head))
        working(head)[0].kill()
        midway.append(not (remote / EXPORT).exists())

    thread = threading.Thread(target=disturb)
    thread.start()
    with ray_node(address):
        run = start(config(**FEW, executor="ray", address=address), remote)
    thread.join()
    assert midway == [True]
    assert history(run) == history(local)
    assert (run.folder / EXPORT).read_bytes() == (local.folder / EXPORT).read_bytes()


@pytest.mark.slow
def test_a_node_dies_and_the_result_is_that_of_a_local_run(ray_cluster, tmp_path):
    address, _ = ray_cluster
    remote = tmp_path / "remote"
    with without_workers():
        local = start(config(**FEW), tmp_path / "local")
    with ray_node(address) as node:
        midway = []

        def disturb():
            wait_until(lambda: working(node))
            for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
                process.kill()
            midway.append(not (remote / EXPORT).exists())

        thread = threading.Thread(target=disturb)
        thread.start()
        run = start(config(**FEW, executor="ray", address=address), remote)
        thread.join()
    assert midway == [True]
    assert history(run) == history(local)
    assert (run.folder / EXPORT).read_bytes() == (local.folder / EXPORT).read_bytes()


def test_an_address_is_needed_and_must_answer_before_any_work(tmp_path, capsys, monkeypatch):
    with pytest.raises(InputError, match="address must be given with executor ray, like host:6379"):
        config(executor="ray")
    monkeypatch.setattr("search.ray_executor.CONNECT", 1.0)
    with other_servers() as others:
        for address in ("127.0.0.1:1", "nothing", *others):
            asked = ["search", "no_such_module:task", "--executor", "ray", "--address", address]
            assert main([*asked, "--runs-dir", str(tmp_path / "runs")]) == 2
            complaint = capsys.readouterr().err.splitlines()[-1]  # nothing has looked at the task, which there is not
            assert complaint.startswith("error: --address must be that of a running ray head, like host:6379")
            assert f"got {address!r}: " in complaint
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_head_that_goes_is_told_of_and_the_run_goes_on_elsewhere(tmp_path):
    with ray_head() as (address, head):
        command = [sys.executable, "-m", "blend", "search", TASK, "--evaluations", "200", "--name", "it"]
        there = ["--runs-dir", str(tmp_path), "--executor", "ray", "--address", address]
        search = subprocess.Popen([*command, *there], stderr=subprocess.PIPE, text=True)
        wait_until((tmp_path / "it" / "run.db").exists)
        wait_until(lambda: Run(tmp_path / "it").counts()["evaluations"] > 10)
        for process in [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]:
            process.kill()
        complaint = search.communicate(timeout=60)[1].splitlines()[-1]
    assert search.returncode == 3
    assert complaint.startswith(f"error: the ray head at {address} is gone; go on with: blend resume")
    assert main(["resume", str(tmp_path / "it"), "--executor", "local"]) == 0


def hungry_at_three(item):
    """Takes five gigabytes at three, and the board along, once it has been looked at."""
    if item == 3:
        time.sleep(3 * TICK)
        for process in psutil.process_iter(["name"]):
            if "ray::_Board" in (process.info["name"] or ""):
                process.kill()
        held = []
        while len(held) < 50:
            held.append(b"x" * 100_000_000)
            time.sleep(0.05)
    return item


@pytest.mark.slow
def test_what_needs_more_memory_than_there_is_fails_alone():
    memory = psutil.virtual_memory()
    limit = 1 - (memory.available - 2e9) / memory.total
    limits = {"RAY_memory_usage_threshold": f"{limit:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    with ray_head(**limits) as (address, _), RayExecutor(address) as executor:
        results = dict(executor.run(hungry_at_three, range(6)))
    assert results == {3: Failure(KILLED), **{i: i for i in (0, 1, 2, 4, 5)}}


@pytest.mark.slow
def test_memory_that_others_take_is_told_of_and_waited_for():
    hoard = "x = b'x' * 4_000_000_000; print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    hog = subprocess.Popen([sys.executable, "-c", hoard], **pipes)
    hog.stdout.readline()
    memory, told = psutil.virtual_memory(), []
    limit = 1 - (memory.available + 1.5e9) / memory.total
    limits = {"RAY_memory_usage_threshold": f"{limit:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    with ray_head(**limits) as (address, _), RayExecutor(address) as executor:
        executor.tell = lambda line: (told.append(line), hog.kill())
        results = dict(executor.run(abs, range(4)))
    hog.wait()
    assert results == {i: i for i in range(4)}
    assert told == [
        "none of the cluster's 2 workers has taken up anything for 15 s: they may have other work, or too little "
        "memory free to begin; it goes on when one does"
    ]


@pytest.mark.slow
def test_a_node_without_the_package_is_no_items_fault(tmp_path, monkeypatch):
    monkeypatch.setattr("search.cluster.PAUSES", (0.1, 0.2, 0.4))
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    with (
        ray_head(1, PYTHONPATH=str(tmp_path)) as (address, _),
        RayExecutor(address) as executor,
        pytest.raises(SearchError, match=r"cannot take part: .*failed to import"),
    ):
        dict(executor.run(abs, range(2)))
