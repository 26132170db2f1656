"""A real scheduler and real worker processes on the loopback: one is killed, one joins, and the result is the same."""

import threading
import time

import pytest

pytest.importorskip("distributed")

from blend.cli import run as main
from blend.errors import InputError, Interrupted
from blend.pipeline import resume, start
from blend.runs import EXPORT, Run
from blend.runs.signals import Interruption
from tests.clusters import WITHOUT, DaskWorkers, dask_scheduler, other_servers

from ..pipeline.test_pipeline import TASK, config, history, without_workers

FEW = {"evaluations": 48, "random_search": False}


@pytest.fixture(scope="module")
def scheduler():
    with dask_scheduler() as (address, _):
        yield address


@pytest.fixture
def workers(scheduler, tmp_path):
    workers = DaskWorkers(scheduler, tmp_path / "scratch")
    yield workers
    workers.end()


def test_workers_die_and_join_and_the_result_is_that_of_a_local_run(scheduler, workers, tmp_path):
    with without_workers():
        local = start(config(**FEW), tmp_path / "local")
    first, _ = workers.start(nanny=False), workers.start(nanny=False)
    remote = config(**FEW, executor="dask", address=scheduler)

    midway = []

    def disturb():
        while not (tmp_path / "remote" / "work").exists():
            time.sleep(0.05)
        time.sleep(2.0)
        midway.append(not (tmp_path / "remote" / EXPORT).exists())
        first.kill()
        workers.start()

    thread = threading.Thread(target=disturb)
    thread.start()
    run = start(remote, tmp_path / "remote")
    thread.join()
    assert midway == [True]
    assert history(run) == history(local)
    assert (run.folder / EXPORT).read_bytes() == (local.folder / EXPORT).read_bytes()


def test_an_address_is_needed_and_must_answer_before_any_work(tmp_path, capsys, monkeypatch):
    with pytest.raises(InputError, match="address must be given with executor dask, like tcp://"):
        config(executor="dask")
    with pytest.raises(InputError, match="must be used with executor dask or ray, got 'tcp://here:1' with 'local'"):
        config(address="tcp://here:1")
    few = ["--executor", "dask", "--address", "tcp://127.0.0.1:1", "--workers", "7"]
    assert main(["search", "no_such_module:task", *few]) == 2
    rule = "error: workers must be left out with executor dask, whose cluster has its own, got 7"
    assert capsys.readouterr().err.splitlines()[-1] == rule
    monkeypatch.setattr("search.dask_executor.CONNECT", 1.0)
    with other_servers() as others:
        for address in ("tcp://127.0.0.1:1", "tls://127.0.0.1:1", *(f"tcp://{other}" for other in others)):
            asked = ["search", "no_such_module:task", "--executor", "dask", "--address", address]
            assert main([*asked, "--runs-dir", str(tmp_path / "runs")]) == 2
            complaint = capsys.readouterr().err.splitlines()[-1]  # nothing has looked at the task, which there is not
            rule = f"error: --address must be that of a running dask scheduler, got '{address}': "
            assert complaint.removeprefix(rule) not in ("", complaint)
    assert not (tmp_path / "runs").exists()


def test_a_worker_without_the_package_is_told_of(scheduler, tmp_path, capsys):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    workers = DaskWorkers(scheduler, tmp_path)
    try:
        workers.start(nanny=False, PYTHONPATH=str(tmp_path))
        few = ["--evaluations", "8", "--population", "4", "--criteria", "l1", "--no-random-search", "--name", "it"]
        there = ["--executor", "dask", "--address", scheduler, "--runs-dir", str(tmp_path / "runs")]
        assert main(["search", TASK, *few, *there]) == 3
    finally:
        workers.end()
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "must have this package installed, but one cannot take what it is sent: " in told.splitlines()[-1]
    assert "No module named 'search'" in told.splitlines()[-1]
    assert Run(tmp_path / "runs" / "it").status == "failed"


def test_a_run_goes_on_elsewhere(scheduler, workers, tmp_path, monkeypatch):
    few = {**FEW, "evaluations": 24}
    with without_workers():
        local = start(config(**few), tmp_path / "local")
    with monkeypatch.context() as patch, without_workers():
        patch.setattr(Interruption, "requested", lambda self: self.run.counts()["evaluations"] >= 8)
        with pytest.raises(Interrupted):
            start(config(**few), tmp_path / "moved")
    moved = Run(tmp_path / "moved")
    with pytest.raises(InputError, match="address must be given with executor dask"):
        resume(moved, executor="dask")
    with pytest.raises(InputError, match="workers must be left out with executor dask, whose cluster has its own"):
        resume(moved, executor="dask", address="tcp://127.0.0.1:1", workers=2)
    monkeypatch.setattr("search.dask_executor.CONNECT", 1.0)
    with pytest.raises(InputError, match=r"--address must be .* dask scheduler, got 'tcp://127\.0\.0\.1:1'"):
        resume(moved, executor="dask", address="tcp://127.0.0.1:1")
    monkeypatch.undo()
    assert moved.status == "interrupted"
    workers.start()
    assert main(["resume", str(moved.folder), "--executor", "dask", "--address", scheduler]) == 0
    assert moved.config.executor == "local"
    assert history(moved) == history(local)
    assert (moved.folder / EXPORT).read_bytes() == (local.folder / EXPORT).read_bytes()
