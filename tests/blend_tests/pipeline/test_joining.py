import os
import signal

import pytest

from blend.config import search_config
from blend.pipeline import joining, resume, start
from blend.runs import EXPORT

from .test_pipeline import CRITERIA, TASK

SMALL = {
    "task": TASK, "criteria": CRITERIA, "evaluations": 24, "population": 8, "random_search": False, "seed": 3,
    "batch_size": 16,
}  # fmt: skip


def history(run):
    return [(e.phase, e.phenotype, e.genome, e.fitness, e.details) for e in run.evaluations()]


@pytest.fixture
def worthwhile(monkeypatch):
    monkeypatch.setattr(joining, "WORTHWHILE", 1)


class Apart:
    """Instead of a trial: what it might find, or that its worker dies."""

    joined = 1

    def __init__(self, workspace, half):
        pass

    def __call__(self, phenotype):
        return self.joined, {1: 2.0, 2: 1.5, 4: 1.0}


class Together(Apart):
    joined = 4


class Deadly(Apart):
    def __call__(self, phenotype):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("worthwhile")
def test_what_was_found_is_kept_and_changes_no_bit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(joining, "JoiningTrial", Apart)
    apart = start(search_config(**SMALL), tmp_path / "apart")
    monkeypatch.setattr(joining, "JoiningTrial", Together)
    together = start(search_config(**SMALL), tmp_path / "together")
    assert [run.get("joined-batches") for run in (apart, together)] == [1, 4]
    assert history(together) == history(apart)
    assert capsys.readouterr().err.count("up to 64 images go through the network at once, which takes 0.50") == 1
    monkeypatch.setattr(joining, "JoiningTrial", Deadly)
    together.commit({"status": "interrupted"})
    assert resume(together).get("joined-batches") == 4


@pytest.mark.usefixtures("worthwhile")
def test_it_is_tried_on_a_worker(tmp_path):
    run = start(search_config(**SMALL), tmp_path / "run")
    assert run.get("joined-batches") in (1, 2, 4)
    assert (run.folder / EXPORT).exists()


@pytest.mark.usefixtures("worthwhile")
def test_a_trial_that_fails_joins_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "JoiningTrial", Deadly)
    assert start(search_config(**SMALL), tmp_path / "run").get("joined-batches") == 1


def test_a_small_budget_is_not_spent_on_trying(tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "JoiningTrial", Together)
    assert start(search_config(**SMALL), tmp_path / "run").get("joined-batches") == 1
