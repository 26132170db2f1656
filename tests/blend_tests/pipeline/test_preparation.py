"""Stopped before there is anything to save: exit code 130, what to do next, and nothing half done is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blend.config import search_config
from blend.runs import CONFIG, DATABASE, LOCK, Run

BLEND = (sys.executable, "-m", "blend")
WAITING = '''

def waiting(begun: str):
    """Takes a minute to load, as a large network may.

    Not in one sleep: Python would not notice a signal that comes after it last looked and before it falls asleep.
    """
    import time
    open(begun, "w").close()
    for _ in range(600):
        time.sleep(0.1)
'''


@pytest.fixture
def task(tmp_path):
    file = tmp_path / "task.py"
    file.write_text((Path(__file__).parents[1] / "task_file.py").read_text() + WAITING)
    return f"{file}:waiting"


def stopped(number, begun, *arguments):
    """Starts a command, sends a signal to it and its workers once it loads the task, and returns its last words."""
    ignores_nothing = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = subprocess.Popen(
        [*BLEND, *map(str, arguments)], stderr=subprocess.PIPE, text=True, start_new_session=True, **ignores_nothing
    )
    deadline = time.monotonic() + 180
    while not begun.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    words = said.splitlines()
    assert len(words) == 1, said  # neither the driver nor its workers, which are starting, say anything else
    return words[0]


def test_a_search_that_is_being_prepared_leaves_nothing(task, tmp_path):
    begun = tmp_path / "begun"
    arguments = ("search", task, "-o", f"begun={begun}", "--runs-dir", tmp_path / "runs", "--name", "it")
    assert stopped(signal.SIGINT, begun, *arguments) == "run 'it' interrupted; nothing was begun and nothing is left"
    assert not (tmp_path / "runs").exists()


def test_a_resume_that_is_being_prepared_says_how_to_go_on(task, tmp_path):
    begun, folder = tmp_path / "begun", tmp_path / "it"
    Run.create(folder, search_config(task=task, options={"begun": str(begun)})).close()
    said = stopped(signal.SIGTERM, begun, "resume", folder)
    assert said == f"run 'it' interrupted; go on with: blend resume {folder}"
    assert Run(folder).status == "interrupted"
    assert not Run(folder).is_locked()
    left = {path.name for path in folder.iterdir()}
    assert left <= {CONFIG, DATABASE, LOCK, f"{DATABASE}-wal", f"{DATABASE}-shm"}
