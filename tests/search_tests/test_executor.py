import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from search import Failure, LocalExecutor, SearchError

from . import toy

DRIVER = """
import signal, sys, time
from search import LocalExecutor

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background leaves it ignored

def work(item):
    print("pid", __import__("os").getpid(), flush=True)
    time.sleep(60)

with LocalExecutor({workers}) as executor:
    try:
        list(executor.run(work, range(4)))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.fixture(scope="module", params=[1, 2])
def executor(request):
    with LocalExecutor(request.param) as executor:
        yield executor


def workers():
    """The driver's children, but for loky's tracker of semaphores, which ends with the driver."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]


def gone(pids, within=10.0):
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_every_item_once(executor):
    assert dict(executor.run(toy.square, range(7))) == {i: i * i for i in range(7)}
    assert list(executor.run(toy.square, [])) == []


def test_yields_in_order_of_completion():
    with LocalExecutor(2) as executor:
        list(executor.run(toy.square, range(2)))  # both workers are up
        assert [index for index, _ in executor.run(toy.slow_first, range(4))][-1] == 0


def test_an_exception_fails_its_item_only(executor):
    results = dict(executor.run(toy.odd_fails, range(4)))
    assert results == {0: 0, 1: Failure("ValueError: odd: 1"), 2: 2, 3: Failure("ValueError: odd: 3")}


@pytest.mark.parametrize(
    ("function", "reason"), [(toy.raises_unpicklable, "Unpicklable: 0 and 0"), (toy.leaves, "SystemExit: 3")]
)
def test_odd_exceptions_are_failures_too(executor, function, reason):
    assert dict(executor.run(function, [0])) == {0: Failure(reason)}


def test_what_cannot_be_pickled_is_a_failure(executor):
    [(_, result)] = executor.run(toy.square, [(i for i in ())])
    assert isinstance(result, Failure)
    assert "pickle" in result.reason.lower()


def test_workers_are_processes_of_one_thread_that_ignore_interrupts(executor):
    results = [result for _, result in executor.run(toy.environment, range(6))]
    pids, threads, ignored = zip(*results, strict=True)
    assert os.getpid() not in pids
    assert len(set(pids)) <= executor.workers
    assert set(threads) == {"1"}
    assert all(ignored)


def test_a_killed_worker_loses_nothing(executor, tmp_path):
    items = [(str(tmp_path / "marker"), value) for value in range(6)]
    assert dict(executor.run(toy.die_once, items)) == dict(enumerate(range(6)))


def test_what_always_kills_its_worker_fails_alone(executor):
    results = dict(executor.run(toy.die_at_three, range(6)))
    failure = results.pop(3)
    assert isinstance(failure, Failure)
    assert "terminated" in failure.reason
    assert results == {i: i for i in (0, 1, 2, 4, 5)}


def test_a_worker_killed_while_idle_is_replaced(executor):
    list(executor.run(toy.square, range(2)))
    for worker in workers():
        worker.kill()
    assert dict(executor.run(toy.square, range(4))) == {i: i * i for i in range(4)}


def test_without_retries_a_death_is_a_failure():
    with LocalExecutor(1, retries=0) as executor:
        assert isinstance(dict(executor.run(toy.die_at_three, [3]))[0], Failure)


def test_no_process_is_left(executor):
    list(executor.run(toy.square, range(4)))
    pids = [worker.pid for worker in workers()]
    assert pids
    executor.close()
    executor.close()
    assert gone(pids)
    assert workers() == []
    assert dict(executor.run(toy.square, [3])) == {0: 9}  # closed, not broken


def test_an_abandoned_run_ends_its_workers():
    before = workers()
    results = LocalExecutor(2).run(toy.slow_first, [1, 0, 0, 0])
    next(results)
    pids = [worker.pid for worker in workers() if worker not in before]
    assert len(pids) == 2
    results.close()
    assert gone(pids)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_driver(workers, how, tmp_path):
    if how == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("needs PR_SET_PDEATHSIG")
    script = Path(tmp_path / "driver.py")
    script.write_text(DRIVER.format(workers=workers))
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, script], stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as driver:
        pids = [int(driver.stdout.readline().split()[1]) for _ in range(workers)]
        if how == signal.SIGINT:  # as a terminal does: to the whole process group
            os.killpg(driver.pid, how)
            assert driver.communicate(timeout=20) == ("interrupted\n", "")
            assert driver.returncode == 0
        else:
            driver.kill()
        assert gone(pids)


@pytest.mark.parametrize(("name", "value"), [("workers", 0), ("workers", -1), ("retries", -1)])
def test_wrong_parameters_are_refused(name, value):
    with pytest.raises(SearchError, match=f"{name} must be at least .*, got {value}"):
        LocalExecutor(**{"workers": 1, name: value})
