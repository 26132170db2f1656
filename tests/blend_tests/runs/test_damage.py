"""What a run folder may meet: a full disk, one that cannot be written to, damage, no shared memory."""

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import blend.runs.database
from blend.cli import run as command
from blend.config import search_config
from blend.errors import BlendError, InputError
from blend.pipeline import resume, start
from blend.runs import CONFIG, DATABASE, EXPORT, SCORES, WORK, Run, open_run

from ..pipeline.test_pipeline import TASK, history, in_process, without_workers  # noqa: F401
from .test_runs import CONFIGURATION, evaluation, hold

FEW = search_config(task=TASK, evaluations=16, population=8, criteria=("l1", "apoz"), random_search=False)


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own, if one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with without_workers():
        return start(FEW, tmp_path_factory.mktemp("finished") / "it")


@pytest.fixture
def copy(finished, tmp_path):
    """A folder to be damaged."""
    finished.database.query("PRAGMA wal_checkpoint(TRUNCATE)")
    return Path(shutil.copytree(finished.folder, tmp_path / "copy"))


def refused(capsys, *arguments):
    code = command([str(argument) for argument in arguments])
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return code, err.strip().splitlines()[-1]


def fill(disk):
    with (disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))


class TestFullDisk:
    def test_a_commit_says_so_and_what_was_saved_stays(self, disk):
        run = Run.create(disk / "it", CONFIGURATION)
        run.commit({"seconds": 1}, [evaluation(0)])
        fill(disk)
        complaint = r"run 'it' cannot be written: .*(full|I/O).*; nothing .* blend resume .*it"
        with pytest.raises(BlendError, match=complaint):
            run.commit({"seconds": 2, "large": "x" * 100_000}, [evaluation(1)])
        (disk / "ballast").unlink()
        for seen in (run, Run(run.folder)):
            assert (seen.get("seconds"), seen.evaluations()) == (1, [evaluation(0)])
        run.commit({"seconds": 3}, [evaluation(1)])
        assert len(run.evaluations()) == 2

    def test_a_search_fails_with_3_and_goes_on_when_there_is_room(self, disk, finished, capsys):
        fill(disk)
        with (disk / "ballast").open("r+b") as file:
            file.truncate((disk / "ballast").stat().st_size - 220_000)  # enough to begin with
        arguments = ["--evaluations", "16", "--population", "8", "--criteria", "l1,apoz", "--no-random-search"]
        code, said = refused(capsys, "search", TASK, *arguments, "--workers", 1, "--runs-dir", disk, "--name", "it")
        assert (code, "blend resume" in said, "it" in said) == (3, True, True)
        assert command(["doctor", str(disk / "it")]) == 3
        told = " ".join(capsys.readouterr().err.split())
        assert "must have 67 MB left or more, got 0." in told
        assert "it is whole, but its disk takes nothing; when that is mended: blend resume" in told
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        assert command(["doctor", str(disk / "it")]) == 0
        assert "0.1 GB are free" in " ".join(capsys.readouterr().err.split())
        assert resume(Run(disk / "it")).status == "finished"
        assert history(Run(disk / "it")) == history(finished)
        assert (disk / "it" / EXPORT).read_bytes() == (finished.folder / EXPORT).read_bytes()

    def test_the_doctor_tells_of_it_while_a_search_runs(self, disk, capsys):
        run = Run.create(disk / "it", CONFIGURATION)
        process = hold(run.folder)
        try:
            fill(disk)
            assert command(["doctor", str(run.folder)]) == 3
            said = " ".join(capsys.readouterr().err.split())
            assert "make room on its disk, or it will end at its next commit; go on then: blend resume" in said
        finally:
            process.kill()
            process.wait()

    def test_a_new_run_is_refused_and_leaves_nothing(self, disk, capsys):
        fill(disk)
        said = refused(capsys, "search", TASK, "--runs-dir", disk)[1]
        assert "runs-dir must be a folder that can be written to" in said
        assert [path.name for path in disk.iterdir()] == ["ballast"]


class TestReadOnlyOrGone:
    def test_a_finished_run_can_be_read_but_not_written(self, disk, capsys):
        run = Run.create(disk / "it", CONFIGURATION)
        run.commit({"status": "interrupted", "search-state": {"generation": 1}}, [evaluation(0)])
        with run.writing():
            pass
        run.close()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert open_run(disk, "it").evaluations() == [evaluation(0)]
        code, said = refused(capsys, "resume", "it", "--runs-dir", disk)
        assert code == 2
        assert "the folder of run 'it' must be one that can be written to: [Errno 30]" in said
        assert command(["doctor", str(disk / "it")]) == 3
        assert "its disk takes nothing" in " ".join(capsys.readouterr().err.split())
        with pytest.raises(BlendError, match=r"run 'it' cannot be written: .*readonly"):
            open_run(disk, "it").commit({"seconds": 1})

    def test_a_run_that_is_seen_read_only_cannot_be_asked_to_stop(self, disk, tmp_path, capsys):
        Run.create(disk / "it", CONFIGURATION).close()
        (view := tmp_path / "view").mkdir()
        subprocess.run(["mount", "--bind", disk, view], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", view], check=True)
            with hold(disk / "it") as holder:
                code, said = refused(capsys, "stop", view / "it")
                holder.kill()
        finally:
            subprocess.run(["umount", "-l", view], check=True)
        assert code == 2
        assert "run 'it' cannot be asked to stop: " in said
        assert "Read-only file system" in said

    def test_half_a_transaction_is_not_shown_where_it_cannot_be_undone(self, disk):
        run = Run.create(disk / "it", CONFIGURATION)
        assert run.database.query("PRAGMA journal_mode=delete") == [("delete",)]
        run.commit({f"key-{number}": "old" * 999 for number in range(99)})
        run.close()
        script = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.executescript("PRAGMA cache_size=1; BEGIN IMMEDIATE; UPDATE documents SET value = 0")
os.kill(os.getpid(), signal.SIGKILL)
"""
        subprocess.run([sys.executable, "-c", script, str(run.folder / DATABASE)])
        assert (run.folder / f"{DATABASE}-journal").exists()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(InputError, match=rf"the {DATABASE} of run 'it' cannot be read"):
            Run(run.folder)
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert Run(run.folder).get("key-98") == "old" * 999

    def test_a_full_disk_is_told_of_where_the_lock_is_written(self, disk, finished):
        fill(disk)
        (disk / "it").mkdir()
        for name in (CONFIG, DATABASE):
            (disk / "it" / name).symlink_to(finished.folder / name)
        told = r"cannot go on: .*No space left on device.*, go on with: blend resume"
        with pytest.raises(BlendError, match=told), Run(disk / "it").writing():
            pytest.fail("there was room")

    def test_a_folder_that_vanishes(self, tmp_path):
        run = Run.create(tmp_path / "it", CONFIGURATION)
        shutil.rmtree(run.folder)
        with pytest.raises(BlendError, match=r"run 'it' cannot be written: '.*run\.db' is gone"):
            run.commit({"seconds": 1})
        with pytest.raises(InputError, match=r"the folder of run 'it' must be one that can be written to"):
            run.writing().__enter__()


@pytest.mark.usefixtures("in_process")
class TestDamage:
    def test_is_told_by_every_command_and_explained_by_the_doctor(self, copy, capsys):
        with (copy / DATABASE).open("r+b") as file:
            file.seek(4096)
            file.write(b"damaged!" * 2048)
        for name in ("show", "resume", "stop"):
            code, said = refused(capsys, name, copy)
            assert (code, f"the {DATABASE} of run 'copy' cannot be read" in said) == (2, True)
        assert command(["doctor", str(copy)]) == 3
        assert "search again" in " ".join(capsys.readouterr().err.split())

    def test_a_database_of_a_newer_version(self, copy, capsys):
        with sqlite3.connect(copy / DATABASE) as connection:
            connection.execute("PRAGMA user_version=7")
        code, said = refused(capsys, "show", copy)
        assert code == 2
        assert "run 'copy' has schema version 7, this software reads version 1" in said
        assert command(["doctor", str(copy)]) == 3

    @pytest.mark.parametrize(
        ("damage", "complaint"),
        [
            ("DELETE FROM evaluations WHERE number = 3", "evaluation 3 is missing"),
            ("DELETE FROM evaluations WHERE number > 19", "the search is saved at generation"),
            ("UPDATE evaluations SET fitness = 0 WHERE phase = 'search-final'", "does not hold the best candidate"),
            ("REPLACE INTO documents VALUES ('result', '{}')", "has another metrics than the database"),
            ("REPLACE INTO documents VALUES ('result', '{\"a')", "a text in it is damaged: Unterminated string"),
            ("UPDATE evaluations SET details = '{' WHERE number = 3", "a text in it is damaged"),
        ],
    )
    def test_a_history_that_does_not_fit(self, copy, damage, complaint, capsys):
        with sqlite3.connect(copy / DATABASE) as connection:
            connection.execute(damage)
        assert command(["doctor", str(copy), "--json"]) == 3
        report = json.loads(capsys.readouterr().out)
        failed = [finding["reason"] for finding in report["findings"] if finding["outcome"] == "fail"]
        assert any(complaint in reason for reason in failed)
        assert "do not resume" in report["findings"][-1]["reason"]

    @pytest.mark.parametrize("key", ["status", "result", "seconds"])
    def test_a_damaged_text(self, copy, key, capsys):
        with sqlite3.connect(copy / DATABASE) as connection:
            connection.execute("UPDATE documents SET value = '{\"a' WHERE key = ?", (key,))
        code, said = refused(capsys, "show", copy)
        assert (code, f"the {DATABASE} of run 'copy' cannot be read: a text in it is damaged" in said) == (2, True)
        Run.create(copy.parent / "other", CONFIGURATION)
        assert command(["list", "--json", "--runs-dir", str(copy.parent)]) == 0
        out, err = capsys.readouterr()
        assert [about["id"] for about in json.loads(out)] == ["other"]
        assert "note: the run.db of run 'copy' cannot be read" in err

    @pytest.mark.parametrize("left", [None, 0, 0.1, 0.9])
    def test_scores_that_cannot_be_read(self, copy, left, capsys):
        scores = copy / SCORES
        content = scores.read_bytes()
        scores.unlink() if left is None else scores.write_bytes(content[: int(left * len(content))])
        with sqlite3.connect(copy / DATABASE) as connection:
            connection.execute("UPDATE documents SET value = '\"interrupted\"' WHERE key = 'status'")
        code, said = refused(capsys, "resume", copy)
        assert (code, f"the scores in '{scores}' cannot be read" in said) == (2, True)
        assert command(["doctor", str(copy)]) == 3
        assert "do not resume" in " ".join(capsys.readouterr().err.split())
        scores.write_bytes(content)
        assert command(["doctor", str(copy)]) == 0
        assert resume(Run(copy)).status == "finished"

    @pytest.mark.parametrize("left", [0, 3000, None])
    def test_an_exported_file_that_is_lost_is_written_again(self, copy, finished, left, capsys):
        export = copy / EXPORT
        if left is None:
            export.unlink()
            code, told = refused(capsys, "export", copy, copy.parent / "mine.blend.json")
            assert (code, told) == (2, f"error: '{export}' is gone; blend resume {copy} writes it again")
        else:
            export.write_bytes(export.read_bytes()[:left])
        assert command(["doctor", str(copy), "--json"]) == 3
        findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
        assert f"{EXPORT} cannot be read: " in findings["export"]["reason"]
        advice = f"all that is exported is written again by: blend resume {copy}"
        assert findings["what to do"]["reason"] == (advice if left is None else f"remove {export}; {advice}")
        export.unlink(missing_ok=True)
        assert command(["resume", str(copy)]) == 0
        assert export.read_bytes() == (finished.folder / EXPORT).read_bytes()
        assert history(Run(copy)) == history(finished)
        assert command(["resume", str(copy)]) == 2

    def test_a_config_that_cannot_be_read(self, copy, capsys):
        (copy / CONFIG).write_text("{")
        assert command(["doctor", str(copy)]) == 3
        assert "config.json" in capsys.readouterr().err


class TestDoctor:
    def test_a_finished_run_is_whole(self, finished, capsys):
        before = sorted(path.name for path in finished.folder.iterdir())
        assert command(["doctor", str(finished.folder), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["passed"]
        assert report["findings"][-1]["reason"].startswith("nothing; see it with: blend show")
        assert sorted(path.name for path in finished.folder.iterdir()) == before

    def test_names_who_is_at_work_and_what_a_killed_process_left(self, tmp_path, capsys):
        run = Run.create(tmp_path / "it", CONFIGURATION)
        process = hold(run.folder)
        try:
            assert command(["doctor", str(run.folder)]) == 0
            said = " ".join(capsys.readouterr().err.split())
            assert f"process {process.pid} is at work on it" in said
            assert "blend stop" in said
        finally:
            process.kill()
            process.wait()
        (run.folder / WORK).mkdir()
        assert command(["doctor", str(run.folder)]) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert "work, of a process that was killed" in said
        assert "go on with: blend resume" in said

    @pytest.mark.parametrize("size", [0, 100])
    def test_does_not_send_to_itself(self, tmp_path, capsys, size):
        run = Run.create(tmp_path / "it", CONFIGURATION)
        run.database.close()
        with (run.folder / DATABASE).open("r+b") as file:
            file.truncate(size)
        assert command(["doctor", str(run.folder)]) == 3
        said = " ".join(capsys.readouterr().err.split())
        assert f"the {DATABASE} of run 'it'" in said
        assert "restore the folder from a backup, or search again" in said
        assert "blend doctor" not in said

    def test_sees_one_moment_of_a_search_that_goes_on(self, tmp_path, monkeypatch, capsys):
        run, read = Run.create(tmp_path / "it", CONFIGURATION), Run.evaluations
        run.commit({"search-state": {"generation": 1}}, [evaluation(0)])

        def and_the_next_generation_is_committed(self):
            found = read(self)
            run.commit({"search-state": {"generation": 2}}, [evaluation(1, generation=1)])
            return found

        monkeypatch.setattr(Run, "evaluations", and_the_next_generation_is_committed)
        assert command(["doctor", str(run.folder)]) == 0
        assert "1 evaluations without a gap" in " ".join(capsys.readouterr().err.split())

    def test_refuses_what_is_not_there(self, tmp_path, capsys):
        assert refused(capsys, "doctor", "nowhere", "--runs-dir", tmp_path)[0] == 2


def test_without_shared_memory_the_rollback_journal_is_used_and_told_of(tmp_path, monkeypatch, capsys):
    connect = sqlite3.connect

    def without(path, uri=False, **kwargs):
        address = path if uri else f"{Path(path).as_uri()}?mode=rwc"
        return connect(f"{address}&vfs=unix-dotfile", uri=True, **kwargs)

    monkeypatch.setattr(blend.runs.database.sqlite3, "connect", without)
    run = Run.create(tmp_path / "it", CONFIGURATION)
    assert "journal mode delete is used" in capsys.readouterr().err
    run.commit({"seconds": 1}, [evaluation(0)])
    assert Run(run.folder).evaluations() == [evaluation(0)]
    assert run.database.query("PRAGMA journal_mode") == [("delete",)]


def test_a_run_that_is_at_work_is_not_resumed(tmp_path, capsys):
    run = Run.create(tmp_path / "it", CONFIGURATION)
    with hold(run.folder) as holder:
        code, said = refused(capsys, "resume", run.folder)
        holder.kill()
    assert (code, said) == (2, "error: run 'it' is running; it can be resumed when it has stopped")


TASK_ENDS = "test=splits[2])"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with a task and a run of it, interrupted."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copy(TASK.partition(":")[0], folder / "task.py")
    with without_workers():
        run = start(FEW.model_copy(update={"task": f"{folder / 'task.py'}:small", "generations": 1}), folder / "it")
    run.commit({"status": "interrupted"})
    run.database.query("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder


def moved(begun, folder):
    """The run there, with its task."""
    shutil.copytree(begun, folder, dirs_exist_ok=True)
    config = folder / "it" / CONFIG
    config.write_text(config.read_text().replace(str(begun), str(folder)))
    return Run(folder / "it")


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("+= 0.6", "+= 0.7", "weights must be as at the start"),
        ("alpha=0.1", "alpha=0.05", "weights must be as at the start"),
        ("Linear(16 * 4, 4)", "Linear(16 * 4, 5)", "layout must be as at the start"),
        (TASK_ENDS, "test=splits[2], loss=lambda *a: nn.functional.cross_entropy(*a, label_smoothing=0.1))", "loss"),
        (TASK_ENDS, "test=splits[2], metric=lambda o, t: 1.0 - (o.argmax(1) == t).float())", "metric must be"),
    ],
)
def test_a_changed_task_is_refused_and_the_run_is_left_as_it_was(begun, tmp_path, capsys, before, after, what):
    run, task = moved(begun, tmp_path), tmp_path / "task.py"
    task.write_text(task.read_text().replace(before, after))
    before = history(run)
    code, said = refused(capsys, "resume", run.folder, "--workers", 1)
    assert code == 2
    assert said.startswith(f"error: run 'it' cannot go on: its task's {what}")
    assert (history(run), run.status) == (before, "interrupted")


@pytest.mark.usefixtures("in_process")
def test_another_machine_is_told_of(begun, tmp_path, capsys):
    run = moved(begun, tmp_path)
    here = run.get("machine")
    run.commit({"machine": here | {"processor": "Fast One 3000", "torch": "torch 1.0.0"}})
    resume(run, workers=1)
    [note] = [line for line in capsys.readouterr().err.splitlines() if "did not begin with this" in line]
    changes = f"{here['processor']}, not Fast One 3000; {here['torch']}, not torch 1.0.0;"
    assert note.startswith(f"note: run 'it' did not begin with this: {changes} results may have other last digits now")


@pytest.mark.usefixtures("in_process")
def test_the_same_machine_is_not(begun, tmp_path, capsys):
    resume(moved(begun, tmp_path), workers=1)
    assert "did not begin" not in capsys.readouterr().err
