import io
import subprocess
import sys
from contextlib import contextmanager

import pytest

import blend.progress
from blend.progress import progress, say


class Terminal(io.StringIO):
    def isatty(self):
        return True


@contextmanager
def terminal():
    """Put a terminal in the place of stderr; not a fixture, because pytest puts its own there before the test."""
    with pytest.MonkeyPatch.context() as patch:
        stream = Terminal()
        patch.setattr(sys, "stderr", stream)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "160")
        yield stream
        assert sys.stderr is stream


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(blend.progress, "time", clock)
    return clock


def test_lines_are_rare_and_tell_rate_and_remaining_time(clock, capsys):
    with progress("training", 40) as bar:
        for step in range(40):
            clock.now += 0.5
            bar.advance(loss=1 / (step + 1), phase="warm")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "training  25%  10/40  2/s  15 s left  loss 0.1  phase warm",
        "training  50%  20/40  2/s  10 s left  loss 0.05  phase warm",
        "training  75%  30/40  2/s  5 s left  loss 0.03333  phase warm",
        "training  100%  40/40  2/s  in 20.0 s  loss 0.025  phase warm",
    ]


def test_steps_done_earlier_do_not_count_towards_the_rate(clock, capsys):
    with progress("search", 100, done=60) as bar:
        clock.now += 10
        bar.advance(10, best="0.5")
        bar.advance(30)
    assert capsys.readouterr().err.splitlines() == [
        "search  70%  70/100  1/s  30 s left  best 0.5",
        "search  100%  100/100  4/s  in 10.0 s  best 0.5",
    ]


def test_nothing_to_do_is_done(capsys):
    with progress("reading", 0):
        pass
    assert "100%  0/0" in capsys.readouterr().err


def test_a_failure_is_not_shown_as_done(capsys):
    def fail():
        with progress("training", 3) as bar:
            bar.advance()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_messages_above_it(capsys):
    with terminal() as stream, progress("training [a]", 4) as bar:
        bar.advance(3, loss=0.25)
        say("a note")
        print("to stdout")
        bar.advance()
    shown = stream.getvalue()
    assert "a note" in shown
    for part in ("training [a]", "100%", "4/4", "/s", "loss 0.25", "━"):
        assert part in shown, part
    assert capsys.readouterr().out == "to stdout\n"


def test_a_bar_inside_a_bar_becomes_lines():
    with terminal() as stream, progress("outer", 2) as outer, progress("inner", 1) as inner:
        inner.advance()
        outer.advance()
    assert "inner  100%  1/1" in stream.getvalue()
    assert "outer" in stream.getvalue()


def test_rich_is_imported_only_for_a_terminal():
    code = (
        "import sys\nfrom blend.progress import progress\n"
        "with progress('x', 1) as bar: bar.advance()\nassert 'rich' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
