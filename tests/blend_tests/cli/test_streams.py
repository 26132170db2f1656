"""Standard streams that are closed, full, or go away: a search does not end for what nobody reads."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from blend.runs import Run
from tests.blend_tests.cli.conftest import TASK_FILE

FEW = "--evaluations 40 --population 4 --criteria l1 --no-random-search --workers 1 --name it"
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
TALKS = """
from blend.cli.streams import open_standard_streams
from blend.progress import say
from blend.runs.signals import Interruption
from types import SimpleNamespace

open_standard_streams()
with Interruption(SimpleNamespace(stop_requested=lambda: False)) as interruption:
    print("begun", flush=True)
    for line in range(2000):
        say(f"{line:0100d}")
print(interruption.requested())
"""


@pytest.mark.parametrize(("closed", "code"), [("2>&-", 0), (">&-", 3), ("<&- 2>&-", 0), (">/dev/full", 3)])
def test_those_that_are_closed_or_full(finished, closed, code):
    shown = f'"{sys.executable}" -m blend show "{finished.folder}" --json {closed}'
    told = subprocess.run(["sh", "-c", shown], capture_output=True, text=True)
    assert told.returncode == code
    if code:
        assert "error: stdout does not take the result: " in told.stderr
    else:
        assert json.loads(told.stdout)["id"] == "it"


FULL = pytest.param("2>/dev/full", marks=pytest.mark.slow)
UNREAD = pytest.param("2>&1 >/dev/null | head -n 1", marks=pytest.mark.slow)


@pytest.mark.parametrize("without", ["<&- >&- 2>&-", FULL, UNREAD])
def test_a_search_needs_none(tmp_path, without):
    code, search = tmp_path / "code", f'"{sys.executable}" -m blend search "{TASK_FILE}:small" {FEW}'
    line = f'{{ {search} --runs-dir "{tmp_path}"; echo $? >"{code}"; }} {without}'
    subprocess.run(["sh", "-c", line], env=BUFFERED, check=True)
    assert code.read_text() == "0\n"
    assert Run(tmp_path / "it").status == "finished"


def test_a_search_goes_on_when_its_terminal_is_gone(tmp_path):
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "blend", "search", f"{TASK_FILE}:small", *FEW.split(), "--runs-dir", str(tmp_path)]
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}  # as after disown
    with subprocess.Popen(command, stderr=its, stdout=its, env=BUFFERED, start_new_session=True, **ignoring) as search:
        os.close(its)
        shown = b""
        while b"baselines" not in shown:
            shown += os.read(ours, 4096)
        os.close(ours)
        assert search.wait(timeout=120) == 0
    assert Run(tmp_path / "it").status == "finished"


def test_a_signal_while_the_reader_stands_still():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", TALKS], env=BUFFERED, **pipes) as talks:
        talks.stdout.readline()
        waiting = -1
        while waiting != (waiting := _unread(talks.stderr)) or waiting < 4096:
            time.sleep(0.2)
        talks.send_signal(signal.SIGINT)
        time.sleep(0.2)
        said, told = talks.communicate(timeout=60)
    assert said.split() == [b"True"], told[-500:]
    assert talks.returncode == 0
    lines = told.decode().splitlines()
    assert [line for line in lines if "once more to stop at once" in line]
    assert lines[-1] == f"{1999:0100d}"


def _unread(pipe):
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0]
