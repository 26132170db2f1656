from dataclasses import replace

import pytest
import torch

from blend.blended import BlendedCriterion
from blend.config import search_config
from blend.errors import Interrupted
from blend.pipeline import precision, resume, start
from blend.pipeline.precision import agreement, finalists, is_possible
from blend.report import summary
from blend.runs import EXPORT, Run
from blend.runs.signals import Interruption
from search.archive import Evaluation
from search.executor import Failure

from .test_pipeline import CRITERIA, TASK, assert_same, in_process  # noqa: F401

pytestmark = pytest.mark.usefixtures("in_process")

SMALL = {"task": TASK, "criteria": CRITERIA, "evaluations": 24, "population": 8, "random_search": False, "seed": 3}


@pytest.fixture
def fast(monkeypatch):
    """A processor that has bfloat16, and a comparison that is always worth its while."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(precision, "WORTHWHILE", 1)


def test_what_is_compared_and_exported_was_judged_in_full_precision(tmp_path):
    run = start(search_config(**SMALL, precision="bf16"), tmp_path / "run")
    phases = {phase: [e for e in run.evaluations() if e.phase == phase] for phase in ("search", "search-final")}
    full = {e.phenotype: e.fitness for e in phases["search-final"]}
    assert 1 <= len(full) <= precision.FINALISTS + 1  # and the best baseline
    half = {e.phenotype[:-1]: e.fitness for e in phases["search"]}
    assert all(phenotype in half for phenotype in full)
    assert all(full[phenotype] != half[phenotype] for phenotype in full)
    assert all(full[phenotype] == pytest.approx(half[phenotype], rel=0.05) for phenotype in full)
    about = summary(run)
    assert about["best"]["fitness"] == max(full.values())
    assert BlendedCriterion.load(run.folder / EXPORT).metrics["best"]["fitness"] == max(full.values())


def test_in_full_precision_nothing_is_judged_twice(tmp_path):
    run = start(search_config(**SMALL, precision="fp32"), tmp_path / "run")
    assert all(e.cached for e in run.evaluations() if e.phase == "search-final")
    assert run.best("search-final").fitness == run.best("search").fitness


@pytest.mark.usefixtures("fast")
def test_half_precision_is_chosen_if_it_ranks_alike_and_kept_on_resume(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("blend.pipeline.precision.AGREEMENT", 0.9)  # a small network whose candidates are much alike
    run = start(search_config(**SMALL), tmp_path / "run")
    assert run.get("precision") == "bf16"
    assert run.get("precision-agreement") > 0.9
    assert "the search computes in bf16: bf16 ranks 24 random masks like fp32 to" in capsys.readouterr().err
    done = {"generations_done": 1}
    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "requested", lambda self: self.run.counts().items() >= done.items())
        with pytest.raises(Interrupted):
            start(search_config(**SMALL), tmp_path / "cut")
    monkeypatch.setattr("blend.pipeline.precision.AGREEMENT", 1.1)  # asked again, it would say otherwise
    assert_same(resume(Run(tmp_path / "cut")), run)


@pytest.mark.usefixtures("fast")
def test_full_precision_is_kept_if_half_ranks_differently(tmp_path, monkeypatch):
    monkeypatch.setattr("blend.pipeline.precision.AGREEMENT", 1.1)
    run = start(search_config(**SMALL), tmp_path / "run")
    assert run.get("precision") == "fp32"
    assert [e.phenotype for e in run.evaluations() if e.phase == "search"]


def test_a_small_budget_is_not_spent_on_comparing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    run = start(search_config(**SMALL), tmp_path / "run")
    assert (run.get("precision"), run.get("precision-agreement")) == ("fp32", None)


def test_only_networks_in_single_precision(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    layer = torch.nn.Linear(3, 4)
    assert is_possible(layer)
    assert not is_possible(layer.double())
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not is_possible(layer.float())


def test_agreement():
    full = [{"fitness": value} for value in (-3.0, -1.0, -2.0)]
    assert agreement(full, [{"fitness": value} for value in (-3.1, -1.2, -2.1)]) == 1.0
    assert agreement(full, [{"fitness": value} for value in (-1.1, -3.2, -2.1)]) == -1.0
    assert agreement(full, [{"fitness": 0.0}] * 3) == -1.0
    assert agreement(full, [*full[:2], Failure("it died")]) == -1.0
    assert agreement(full, [*full[:2], {"fitness": float("nan")}]) == -1.0


def test_finalists_are_the_best_that_were_judged_to_the_end():
    made = Evaluation(0, "search", 0, (0.0,), b"a", -1.0, {}, 0.0, False, None)
    history = [
        made,
        replace(made, number=1, phenotype=b"b", fitness=-0.5),
        replace(made, number=2, phenotype=b"b", fitness=-0.5, cached=True),
        replace(made, number=3, phenotype=b"c", fitness=-0.7, details={"share": 0.4}),
        replace(made, number=4, phenotype=b"d", fitness=-0.1, error="it died"),
        *(replace(made, number=5 + i, phenotype=bytes([i]), fitness=-2.0 - i) for i in range(20)),
    ]
    best = finalists(history)
    assert [e.phenotype for e in best[:2]] == [b"b", b"a"]
    assert len(best) == precision.FINALISTS
    assert best[0].number == 1


def test_of_finalists_as_good_the_first_comes_first_also_if_it_came_again():
    made = Evaluation(0, "search", 0, (0.0,), b"a", -1.0, {}, 0.0, False, None)
    history = [made, replace(made, number=1, phenotype=b"b"), replace(made, number=2, cached=True)]
    assert [e.number for e in finalists(history)] == [0, 1]
