import math
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from joblib.externals.loky import ProcessPoolExecutor

from search import Failure, LocalExecutor, SearchError

from . import toy

DRIVER = """
import os, signal, sys, time
from search import LocalExecutor

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background leaves it ignored

def work(item):
    os.write(1, b"pid %d\\n" % os.getpid())  # whole, even where Python does not buffer
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
    """The driver's children, but for loky's tracker of semaphores, which ends with the driver, and those that ended."""
    children = [c for c in psutil.Process().children(recursive=True) if c.status() != psutil.STATUS_ZOMBIE]
    return [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]


def gone(pids, within=10.0):
    deadline = time.monotonic() + within
    while any(lives(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def lives(pid):
    with suppress(psutil.NoSuchProcess):  # it may vanish at any moment, also between two questions
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_every_item_once(executor):
    assert dict(executor.run(toy.square, range(7))) == {i: i * i for i in range(7)}
    assert list(executor.run(toy.square, [])) == []


def test_yields_in_order_of_completion():
    with LocalExecutor(2) as executor:
        list(executor.run(toy.square, range(2)))  # both workers are up
        assert [index for index, _ in executor.run(toy.slow_first, range(4))][-1] == 0


def test_a_worker_that_can_run_no_item_is_no_items_fault(executor):
    with pytest.raises(SearchError, match="no candidate can be evaluated: no data here"):
        dict(executor.run(toy.without_data, range(4)))
    assert dict(executor.run(toy.square, [3])) == {0: 9}


def test_a_worker_that_can_run_none_for_a_moment_is_replaced(executor, tmp_path):
    items = [tmp_path / "one", tmp_path / "one", tmp_path / "one"]
    ran = dict(executor.run(toy.without_data_at_first, items))
    assert sorted(ran) == [0, 1, 2]
    assert all(isinstance(process, int) for process in ran.values())


def test_an_exception_fails_its_item_only(executor):
    results = dict(executor.run(toy.odd_fails, range(4)))
    assert results == {0: 0, 1: Failure("ValueError: odd: 1"), 2: 2, 3: Failure("ValueError: odd: 3")}


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (toy.raises_unpicklable, "Unpicklable: 0 and 0"), (toy.leaves, "SystemExit: 3"),
        (toy.says_much, f"ValueError: first second{' word' * 54} …"),
    ],
)
def test_odd_exceptions_are_failures_too(executor, function, reason):
    assert dict(executor.run(function, [0])) == {0: Failure(reason)}


def test_what_cannot_be_pickled_is_a_failure(executor):
    [(_, result)] = executor.run(toy.square, [(i for i in ())])
    assert isinstance(result, Failure)
    assert "pickle" in result.reason.lower()


def test_workers_are_processes_of_one_thread_that_ignore_interrupts(executor):
    results = [result for _, result in executor.run(toy.environment, range(6))]
    pids, threads, thresholds, ignored = zip(*results, strict=True)
    assert os.getpid() not in pids
    assert len(set(pids)) <= executor.workers
    assert set(threads) == {"1"}
    assert set(thresholds) == {"1073741824"}
    assert all(ignored)


def test_a_killed_worker_loses_nothing(executor, tmp_path):
    items = [(str(tmp_path / "marker"), value) for value in range(6)]
    assert dict(executor.run(toy.die_once, items)) == dict(enumerate(range(6)))


def test_what_always_kills_its_worker_fails_alone(executor):
    results = dict(executor.run(toy.die_at_three, range(6)))
    failure = results.pop(3)
    assert isinstance(failure, Failure)
    assert failure.reason == "the worker died, exit code SIGKILL(-9); out of memory? (3 of 3 tries)"
    assert results == {i: i for i in (0, 1, 2, 4, 5)}


def test_what_hangs_once_is_run_elsewhere(tmp_path):
    items = [(str(tmp_path / "marker"), value) for value in range(6)]
    with LocalExecutor(2, timeout=2.0) as executor:
        list(executor.run(toy.square, range(2)))  # both workers are up
        assert dict(executor.run(toy.hang_once, items)) == dict(enumerate(range(6)))


def test_what_always_hangs_fails_alone_and_its_processes_are_gone():
    with LocalExecutor(2, timeout=2.0) as executor:
        list(executor.run(toy.square, range(2)))
        before = [worker.pid for worker in workers()]
        results = dict(executor.run(toy.hang_at_three, range(6)))
        assert results == {3: Failure("no answer within 2 s (2 of 2 tries)"), **{i: i for i in (0, 1, 2, 4, 5)}}
        assert gone(set(before) - {worker.pid for worker in workers()})
        assert dict(executor.run(toy.square, range(3))) == {0: 0, 1: 1, 2: 4}


def test_what_raises_once_is_run_in_another_process(executor, tmp_path):
    items = [(str(tmp_path / "marker"), value) for value in range(6)]
    results = dict(executor.run(toy.raise_once, items))
    assert results.pop(3) not in (int((tmp_path / "marker").read_text()), os.getpid())
    assert results == {i: i for i in (0, 1, 2, 4, 5)}


def test_a_driver_that_stood_still_does_not_blame_its_workers(monkeypatch):
    with LocalExecutor(1, timeout=30.0) as executor:
        results = executor.run(toy.slow_first, [1, 0])
        next(results)
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600)
        monkeypatch.setattr("search.executor.time", later)
        assert next(results) == (1, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_worker_that_grows_is_replaced_and_memory_stays_flat():
    with LocalExecutor(1, growth=2**25) as executor:
        results = [result for _, result in executor.run(toy.leak, [8] * 60)]
        largest = max(held for _, held in results)
        assert 10 < largest < 40
        assert len({pid for pid, _ in results}) > 1
        steady = [result for _, result in executor.run(toy.environment, range(60))]
        assert len({pid for pid, *_ in steady}) == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs malloc_trim")
def test_what_lies_in_gaps_of_the_heap_is_given_back():
    with LocalExecutor(1) as executor:
        before, after_little, after_much = (held for _, held in executor.run(toy.leaves_gaps, [100, 800, 1]))
    assert after_little > before + 50  # pages are kept
    assert after_much < before + 50


def test_nothing_else_replaces_a_worker_that_grows():
    with LocalExecutor(1) as executor:
        assert len({pid for _, pid in executor.run(toy.hoard, [1, 400, 1, 1])}) == 1


def test_a_worker_killed_while_idle_is_replaced(executor):
    list(executor.run(toy.square, range(2)))
    for worker in workers():
        worker.kill()
    assert dict(executor.run(toy.square, range(4))) == {i: i * i for i in range(4)}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_tracker_of_semaphores_killed_when_it_starts_is_started_again():
    script = Path(__file__).with_name("killed_tracker.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "1", "4", "9"], done.stderr


def test_without_retries_a_death_is_a_failure():
    with LocalExecutor(1, retries=0) as executor:
        [failure] = dict(executor.run(toy.die_at_three, [3])).values()
    assert failure.reason.endswith("(1 of 1 tries)")


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
            assert driver.communicate(timeout=20)[1] == ""  # nor do trackers of semaphores say a word
        assert gone(pids)


def test_an_interrupt_while_a_process_starts_leaves_none(monkeypatch):
    """The process is there, but the pool does not know it yet."""
    before, go_on = workers(), ProcessPoolExecutor._start_executor_manager_thread

    def interrupted(pool):
        assert len(workers()) > len(before)
        os.kill(os.getpid(), signal.SIGINT)
        go_on(pool)

    monkeypatch.setattr(ProcessPoolExecutor, "_start_executor_manager_thread", interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), LocalExecutor(1) as executor:
            list(executor.run(toy.square, range(2)))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert workers() == before


def test_processes_can_be_started_ahead():
    with LocalExecutor(2) as executor:
        before = workers()
        executor.start("colorsys")
        started = [worker.pid for worker in workers() if worker not in before]
        assert len(started) == 2
        pids = {pid for _, (pid, *_) in executor.run(toy.environment, range(6))}
        assert pids <= set(started)
        assert dict(executor.run(toy.is_imported, ["colorsys"])) == {0: True}


@pytest.mark.parametrize(("name", "value"), [("workers", 0), ("workers", -1), ("retries", -1)])
def test_wrong_parameters_are_refused(name, value):
    with pytest.raises(SearchError, match=f"{name} must be at least .*, got {value}"):
        LocalExecutor(**{"workers": 1, name: value})


@pytest.mark.parametrize("timeout", [0, -1.0, math.nan])
def test_wrong_timeouts_are_refused(timeout):
    with pytest.raises(SearchError, match=f"timeout must be greater than 0 seconds, got {timeout}"):
        LocalExecutor(1, timeout=timeout)
