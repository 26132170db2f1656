"""What a process imports, which is most of what it takes to start."""

import subprocess
import sys
from pathlib import Path

import pytest

from blend.config import search_config
from blend.pipeline import start

TASK = f"{Path(__file__).parent / 'task_file.py'}:small"
HEAVY = {"torch", "sklearn", "scipy", "numpy", "deap", "joblib", "matplotlib", "sympy"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = search_config(task=TASK, evaluations=8, population=8, criteria=("l1", "apoz"), random_search=False)
    return start(config, tmp_path_factory.mktemp("finished") / "it").folder


def imported_by(code):
    """The packages that a fresh process has imported after some code."""
    told = f"{code}\nimport sys\nprint('imported', *{{name.partition('.')[0] for name in sys.modules}})"
    out = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout
    return set(out.splitlines()[-1].split())


COMMANDS = ("--help", "search --help", "list --runs-dir ..", "show .", "show --json .", "stop .")


@pytest.mark.parametrize("command", COMMANDS)
def test_looking_at_runs_imports_nothing_heavy(finished, command, monkeypatch):
    monkeypatch.chdir(finished)
    code = 2 if command == "stop ." else 0  # a finished run cannot be stopped
    imported = imported_by(f"from blend.cli import run\nassert run({command.split()}) == {code}")
    assert "typer" in imported
    assert not imported & (HEAVY | ({"pydantic"} if command == "--help" else set()))  # typer itself imports it later


def test_a_worker_imports_what_judges_candidates_only():
    needed = "import search.worker, blend.evaluation, blend.tasks.digits"
    assert imported_by(needed) & (HEAVY | {"pandas"}) == {"torch", "numpy", "joblib"}


def test_a_network_is_traced_without_the_compiler():
    code = (
        "import sys, torch\nfrom criteria import ChannelGraph\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3))\n"
        "ChannelGraph.build(net, torch.zeros(2, 1, 8, 8))\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    assert "torch" in imported_by(code)
