import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

import blend.runs.folder
from blend.config import search_config
from blend.doctor.run_folder import examine_run
from blend.errors import BlendError, InputError
from blend.report import summaries
from blend.runs import CONFIG, DATABASE, EXPORT, LOCK, STOP, WORK, Run, all_runs, check_free, open_run, run_folder
from search import Evaluation

CONFIGURATION = search_config(task="digits", seed=7, options={"a": "b"})


def evaluation(number, fitness=0.5, phase="search", generation=0, cached=False, error=None, genome=(0.1, 2 / 3)):
    return Evaluation(
        number=number, phase=phase, generation=generation, genome=genome, phenotype=bytes([number, 0, 255]),
        fitness=fitness, details={"metric": 1 / 3}, seconds=0.25, cached=cached, error=error,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "runs" / "first", CONFIGURATION)


def hold(folder, then="time.sleep(60)"):
    """A process that holds a run, and does something when it does."""
    script = f"""
import sys, time
from pathlib import Path
from blend.runs import Run
run = Run(Path({str(folder)!r}))
with run.writing():
    run.commit({{"status": "running"}})
    print("held", flush=True)
    {then}
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_new_run_holds_what_it_was_asked(run, tmp_path):
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["first"]
    assert sorted(path.name for path in run.folder.iterdir() if path.suffix in (".db", ".json")) == [CONFIG, DATABASE]
    assert (run.name, run.config) == ("first", CONFIGURATION)
    assert (run.status, run.evaluations(), run.best("search"), run.artefacts()) == ("interrupted", [], None, [])
    assert run.get("nothing") is None
    assert run.get("nothing", 3) == 3


@pytest.mark.parametrize("failure", [OSError("disk full"), sqlite3.OperationalError("disk is full")])
def test_a_failed_creation_leaves_nothing(tmp_path, monkeypatch, failure):
    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(blend.runs.folder.sqlite3, "connect", fail)
    with pytest.raises(InputError, match=r"runs-dir must be a folder that can be written to: disk"):
        Run.create(tmp_path / "first", CONFIGURATION)
    assert list(tmp_path.iterdir()) == []


def test_names(tmp_path, run):
    with pytest.raises(InputError, match=r"name 'first' is taken: '.*first' exists"):
        Run.create(run.folder, CONFIGURATION)
    for name in ("", ".hidden", "-x", "a/b", "..", "/abs"):
        with pytest.raises(InputError, match=f"name must be a plain folder name.*, got '{name}'"):
            run_folder(tmp_path, name)
    assert run_folder(tmp_path, "second run") == tmp_path / "second run"
    check_free(tmp_path / "second run")
    check_free(tmp_path / "deep" / "down" / "there")
    assert not (tmp_path / "deep").exists()
    for length in (201, 300):
        with pytest.raises(InputError, match="File name too long"):
            check_free(tmp_path / ("x" * length))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="runs-dir must be a folder that can be written to"):
        check_free(tmp_path / "file" / "first")


def test_documents_and_evaluations_come_back_as_they_were(run):
    evaluations = [evaluation(0, 1 / 3), evaluation(1, 0.1, genome=None, cached=True), evaluation(2, -1e30, error="no")]
    run.commit({"a": [1, 0.1, None, {"b": "ü"}], "status": "finished"}, evaluations)
    again = Run(run.folder)
    assert again.evaluations() == evaluations
    assert again.get("a") == [1, 0.1, None, {"b": "ü"}]
    assert again.status == "finished"
    run.commit({"a": 2})
    assert again.get("a") == 2


def test_the_best_and_the_counts(run):
    run.commit({}, [
        evaluation(0, 0.9, phase="baseline"), evaluation(1, 0.5), evaluation(2, 0.7, generation=1),
        evaluation(3, 0.7, generation=1, cached=True), evaluation(4, 0.8, generation=2, error="failed"),
    ])  # fmt: skip
    assert run.best("search").number == 2
    assert run.best("baseline").number == 0
    assert run.best("random") is None
    assert run.counts() == {"evaluations": 4, "unique_evaluations": 3, "generations_done": 3}


def test_a_commit_is_all_or_nothing(run):
    run.commit({"seconds": 1}, [evaluation(0)])
    with pytest.raises(BlendError, match="run 'first' cannot be written: UNIQUE constraint failed"):
        run.commit({"seconds": 2, "new": 1}, [evaluation(1), evaluation(0)])
    with pytest.raises(TypeError):
        run.commit({"seconds": 3, "new": {1, 2}}, [evaluation(1)])
    for seen in (run, Run(run.folder)):
        assert (seen.get("seconds"), seen.get("new"), len(seen.evaluations())) == (1, None, 1)
    run.commit({"seconds": 4}, [evaluation(1)])  # and it goes on
    assert (run.get("seconds"), len(run.evaluations())) == (4, 2)


def test_readers_see_the_last_commit_while_one_is_being_written(run):
    run.commit({"generation": 1}, [evaluation(0)])
    reader = Run(run.folder)
    writer = sqlite3.connect(run.folder / DATABASE, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("REPLACE INTO documents VALUES ('generation', '2')")
    writer.execute("UPDATE evaluations SET fitness = 9")
    assert (reader.get("generation"), reader.evaluations()) == (1, [evaluation(0)])
    writer.execute("COMMIT")
    assert (reader.get("generation"), reader.evaluations()[0].fitness) == (2, 9)


def test_a_second_writer_is_refused_and_a_killed_one_leaves_an_interrupted_run(run):
    process = hold(run.folder)
    try:
        assert run.status == "running"
        with pytest.raises(InputError, match=rf"run 'first' is running \(process {process.pid}\)"), run.writing():
            pass
        with pytest.raises(InputError, match="run 'first' is running; it can be resumed when it has stopped"):
            run.check_resumable()
        run.request_stop()
        assert run.stop_requested()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run.status == "interrupted"
    run.check_resumable()
    draft = run.folder / f".{process.pid}.draft"
    draft.write_text("half a criterion")  # as a kill amid the export leaves it
    [told] = [finding.reason for finding in examine_run(run.folder) if finding.name == "leftovers"]
    assert told.startswith(f"{STOP}, {draft.name}, of a process that was killed")
    with run.writing():
        assert not draft.exists()
        assert not run.stop_requested()  # that was for the other one
        assert Run(run.folder).status == "running"
        assert (run.folder / LOCK).read_text() == str(os.getpid())
    assert run.status == "interrupted"


def test_leaving_tidies_up(run):
    (run.folder / WORK).mkdir()
    with pytest.raises(ZeroDivisionError), run.writing():
        _ = run.request_stop() or 1 / 0
    assert not (run.folder / WORK).exists()
    assert not (run.folder / STOP).exists()


def test_a_reader_who_looks_whether_a_run_is_running_is_not_in_the_way(run):
    with run.writing():
        pass
    script = """
import fcntl, sys, time
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_SH)
print(flush=True)
time.sleep(0.1)
"""
    reader = subprocess.Popen([sys.executable, "-c", script, str(run.folder / LOCK)], stdout=subprocess.PIPE)
    reader.stdout.readline()
    with run.writing():
        assert run.is_locked()
    reader.wait()


@pytest.mark.parametrize(("recorded", "resumable"), [("failed", True), ("interrupted", True), ("finished", False)])
def test_what_can_be_resumed(run, recorded, resumable):
    run.commit({"status": recorded})
    assert run.status == recorded
    run.check_resumable()  # even a finished one, whose exported file is lost
    (run.folder / EXPORT).touch()
    if resumable:
        run.check_resumable()
    else:
        with pytest.raises(InputError, match="run 'first' is finished; there is nothing to resume"):
            run.check_resumable()


def test_one_that_failed_is_running_as_soon_as_it_goes_on(run):
    run.commit({"status": "failed"})
    with run.writing():
        assert run.status == "running"
    assert run.status == "failed"


def test_folders_that_cannot_be_read(run, tmp_path):
    with pytest.raises(InputError, match="is not a run folder"):
        Run(tmp_path)
    run.close()
    connection = sqlite3.connect(run.folder / DATABASE)
    connection.execute("PRAGMA user_version=2")
    connection.close()
    with pytest.raises(InputError, match="run 'first' has schema version 2, this software reads version 1"):
        Run(run.folder)
    other = Run.create(tmp_path / "other", CONFIGURATION)
    (other.folder / CONFIG).write_text("{")
    with pytest.raises(InputError, match=r"the config\.json of run 'other' cannot be read"):
        _ = other.config
    other.close()
    for rest in other.folder.glob(f"{DATABASE}*"):
        rest.write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match=r"the run\.db of run 'other' cannot be read"):
        Run(other.folder)


def test_runs_are_found_by_name_or_path_with_the_nearest_names(run, tmp_path):
    runs_dir = run.folder.parent
    assert open_run(runs_dir, "first").folder == run.folder
    assert open_run(Path("elsewhere"), str(run.folder)).folder == run.folder
    with pytest.raises(InputError, match=r"no run 'frist' in '.*runs'; did you mean 'first'\?"):
        open_run(runs_dir, "frist")
    for name in ("zzz", "x" * 300):
        with pytest.raises(InputError, match=rf"no run '{name}' in '.*runs'$"):
            open_run(runs_dir, name)
    (runs_dir / "empty").mkdir()
    with pytest.raises(InputError, match=r"'.*empty' is not a run folder: it has no config\.json and no run\.db"):
        open_run(runs_dir, "empty")
    assert list(all_runs(tmp_path / "nowhere")) == []
    (run.folder / CONFIG).unlink()
    with pytest.raises(InputError, match=rf"'.*first' is not a run folder: it has no {CONFIG}"):
        open_run(runs_dir, "first")


def test_runs_are_listed_oldest_first_without_drafts(run):
    runs_dir = run.folder.parent
    second = Run.create(runs_dir / "a-second", CONFIGURATION)
    past = time.time() - 100
    os.utime(run.folder / CONFIG, (past, past))
    draft = runs_dir / ".third.1.draft"
    draft.mkdir()
    (draft / CONFIG).write_text("{}")
    assert [found.name for found in all_runs(runs_dir)] == ["first", second.name]


def test_there_may_be_more_runs_than_files_that_may_be_open(tmp_path):
    for number in range(40):
        Run.create(tmp_path / f"run{number}", CONFIGURATION).close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        assert len(summaries(all_runs(tmp_path))) == 40
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("lost", [CONFIG, DATABASE])
def test_a_run_that_cannot_be_read_does_not_hide_the_others(run, capsys, lost):
    broken = Run.create(run.folder.parent / "broken", CONFIGURATION)
    broken.close()
    (broken.folder / lost).unlink()
    assert [found.name for found in all_runs(run.folder.parent)] == ["first"]
    assert f"broken' is not a run folder: it has no {lost}\n" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["config", "empty", "pages"])
def test_nor_does_one_of_which_it_shows_later(run, capsys, damage):
    broken = Run.create(run.folder.parent / "broken", CONFIGURATION)
    broken.commit({"junk": "x" * 100_000})
    broken.close()
    path = broken.folder / (CONFIG if damage == "config" else DATABASE)
    content = path.read_bytes()
    left = {"config": b'{"a":', "empty": b"", "pages": content[:4096] + b"\xff" * (len(content) - 4096)}
    path.write_bytes(left[damage])
    reason = {
        "config": "the config.json of run 'broken' cannot be read: document: Invalid JSON",
        "empty": "the run.db of run 'broken' is empty; blend doctor",
        "pages": "the run.db of run 'broken' cannot be read: database disk image is malformed",
    }[damage]
    assert [about["id"] for about in summaries(all_runs(run.folder.parent))] == ["first"]
    said = capsys.readouterr().err
    assert reason in said
    assert "pydantic" not in said


def test_artefacts(run):
    (run.folder / EXPORT).write_text("{}")
    assert run.artefacts() == [run.folder / EXPORT]
