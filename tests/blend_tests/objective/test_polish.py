"""Polishing: channels near the cut change places, exactly resumed, and exported so that it can be left out."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from blend.blended import BlendedCriterion
from blend.blended.formula import Blender, GroupFormula
from blend.budget import CostModel, floors, keep_mask
from blend.cli import run as command
from blend.doctor.run_folder import examine_run
from blend.errors import Interrupted
from blend.evaluation import in_full_precision, pack
from blend.objective.polish import CorrectionEncoding, exchanged
from blend.pipeline import resume, start
from blend.report import polish_in_words, print_course, print_result, summary
from blend.report.units import Unit
from blend.runs import EXPORT, Run
from blend.runs.signals import Interruption
from blend.task import load_task
from criteria import ChannelGraph
from search.swap import SwapSearch

from ..pipeline.test_pipeline import CRITERIA, TASK, assert_same, config, history, in_process  # noqa: F401
from ..small_networks import graph_of, random_table

_, GRAPH = graph_of("resnet20")
BLENDER = Blender(random_table(GRAPH, ["one", "two"]))
FORMULA = {g.name: GroupFormula((("one", 0.4), ("two", 0.6)), i / 50) for i, g in enumerate(GRAPH.groups)}
POLISHED = {"evaluations": 64, "polish": 32, "random_search": False}


def kept(formula):
    return keep_mask(GRAPH, BLENDER.scores(formula), 0.5, CostModel(GRAPH), floors(GRAPH))


KEEP = kept(FORMULA)


class TestTheEncoding:
    def test_begins_with_the_blend_itself(self):
        encoding = CorrectionEncoding(FORMULA, BLENDER, GRAPH, KEEP)
        encoding.space.check(encoding.unpolished)
        scores = BLENDER.scores(encoding.decode(encoding.unpolished))
        assert {name: s.tobytes() for name, s in scores.items()} == {n: s.tobytes() for n, s in encoding.own.items()}

    def test_searches_near_the_cut_only(self):
        encoding = CorrectionEncoding(FORMULA, BLENDER, GRAPH, KEEP)
        for group, part in GRAPH.split(KEEP):
            ranks = np.argsort(np.argsort(encoding.own[group.name]))[encoding.window[group.name]]
            removed = int((~part).sum())
            assert ranks.min() >= removed - max(1, np.ceil(group.size / 4))
            assert ranks.min() < removed <= ranks.max()

    def test_changes_which_channels_go_and_not_how_many_and_no_other_score(self):
        encoding = CorrectionEncoding(FORMULA, BLENDER, GRAPH, KEEP)
        strategy = SwapSearch(encoding.space, population=12, seed=0, initial=[encoding.unpolished])
        moved = 0
        for generation in range(3):
            genomes = strategy.ask()
            for genome in genomes:
                formula = encoding.decode(genome)
                keep, scores = kept(formula), BLENDER.scores(formula)
                for (group, now), (_, before) in zip(GRAPH.split(keep), GRAPH.split(KEEP), strict=True):
                    assert now.sum() == before.sum()
                    own = encoding.own[group.name]
                    assert sorted(scores[group.name]) == sorted(own)
                    assert np.array_equal(scores[group.name] != own, now != before)
                moved = max(moved, exchanged(keep, KEEP))
            strategy.tell(genomes, [float(i + generation) for i in range(len(genomes))])
        assert moved > 1

    def test_a_group_that_stays_whole_or_is_not_scored_is_left_alone(self):
        whole = KEEP.copy()
        first, second, *rest = GRAPH.groups
        whole[GRAPH.slices[first.name]] = True
        formula = {name: part for name, part in FORMULA.items() if name != second.name}
        encoding = CorrectionEncoding(formula, BLENDER, GRAPH, whole)
        assert set(encoding.window) == {group.name for group in rest}
        assert set(encoding.decode(encoding.unpolished)) == set(formula)

    def test_by_hand(self):
        """Of six channels 2, 0 and 5 go; if 5 is to stay and 1 to go, they take each other's score."""
        group = GRAPH.groups[-1]
        own = BLENDER.scores(FORMULA)[group.name]
        order = np.argsort(own)
        removed = int((~KEEP[GRAPH.slices[group.name]]).sum())
        encoding = CorrectionEncoding(FORMULA, BLENDER, GRAPH, KEEP)
        wanted = own.copy()
        low, high = order[removed - 1], order[removed + 1]
        wanted[[low, high]] = wanted[[high, low]]
        start = sum(len(window) for name, window in encoding.window.items() if name != group.name)
        genome = [*encoding.unpolished[:start], *wanted[encoding.window[group.name]]]
        scores = BLENDER.scores(encoding.decode(genome))[group.name]
        assert scores[low] == own[high]
        assert scores[high] == own[low]
        assert np.sum(scores != own) == 2


@pytest.fixture(scope="module")
def polished(tmp_path_factory):
    return start(config(**POLISHED), tmp_path_factory.mktemp("runs") / "polished")


class TestAPolishedRun:
    def test_spends_the_last_of_the_evaluations(self, polished):
        phases = [e.phase for e in polished.evaluations()]
        assert (phases.count("search"), phases.count("polish")) == (32, 32)
        about = summary(polished)
        assert (about["evaluations"], about["generation"], about["generations"]) == (64, 4, 4)

    def test_reports_what_is_exported(self, polished):
        best, before = polished.best("search-final", "polish-final"), polished.best("search-final")
        assert best.fitness > before.fitness  # or these tests are about nothing
        about = summary(polished)
        assert about["best"]["fitness"] == best.fitness
        assert about["achieved_reduction"] == before.details["reduction"] == best.details["reduction"]
        gain = about["polish"]
        assert gain["fitness"] == pytest.approx(best.fitness - before.fitness)
        assert gain["heldout_metric"] == pytest.approx(best.details["metric"] - before.details["metric"])
        [unpolished] = [row for row in about["baselines"] if row["kind"] == "unpolished"]
        assert gain["test_metric"] == pytest.approx(about["best"]["test_metric"] - unpolished["test_metric"])
        criterion = BlendedCriterion.load(polished.folder / EXPORT)
        assert criterion.metrics == polished.get("result")
        graph = graph_of_task()
        assert pack(criterion.keep_mask(graph)) == best.phenotype
        assert gain["exchanged"] == sum(len(group.corrections) for group in criterion.groups) / 2 > 0

    def test_corrections_are_marked_and_can_be_left_out(self, polished, tmp_path):
        file = tmp_path / "without.json"
        assert command(["export", str(polished.folder), str(file), "--without-corrections"]) == 0
        without, whole = BlendedCriterion.load(file), BlendedCriterion.load(polished.folder / EXPORT)
        assert pack(without.keep_mask(graph_of_task())) == polished.best("search-final").phenotype
        assert not any(group.corrections for group in without.groups)
        for group, own in zip(whole.groups, without.groups, strict=True):
            changed = {c.channel: c for c in group.corrections}
            for channel, (score, before) in enumerate(zip(group.scores, own.scores, strict=True)):
                assert (channel in changed) == (score != before)
                if channel in changed:
                    assert changed[channel].own == before
                    assert changed[channel].delta == pytest.approx(score - before)
        rows = {row["kind"]: row for row in whole.metrics["baselines"]}
        for what in ("fitness", "heldout_metric", "test_metric"):
            assert without.metrics["best"][what] == rows["unpolished"][what]
        assert without.metrics["best"]["name"] == "blend"
        assert "polish" not in without.metrics
        assert all(row["kind"] != "unpolished" for row in without.metrics["baselines"])

    def test_without_corrections_it_is_the_formula(self, polished):
        from blend.runs import SCORES
        from criteria import ScoreTable

        without = BlendedCriterion.load(polished.folder / EXPORT).without_corrections()
        recomputed = without.recomputed_scores(ScoreTable.load(polished.folder / SCORES))
        assert all(recomputed[group.name].tolist() == list(group.scores) for group in without.groups)

    def test_says_that_test_data_decide(self, polished, capsys):
        print_result(polished)
        print_course(polished)
        said = capsys.readouterr().err
        assert "points on held-out data" in said
        assert "Test data decide" in said
        assert "polishing, generation by generation" in said

    def test_is_whole_to_the_doctor(self, polished):
        assert {finding.outcome for finding in examine_run(polished.folder)} <= {"pass", "not applicable"}


def graph_of_task():
    task = load_task(TASK)
    return ChannelGraph.build(task.model, task.example_input)


@pytest.mark.parametrize(
    ("test", "interval", "words"),
    [
        (-0.01, (-0.03, 0.01), "does not hold there: leave it out with blend export --without-corrections"),
        (0.0, (0.0, 0.0), "the interval includes zero, so this is no proof"),
        (0.01, (-0.01, 0.03), "+1.0 (95 % interval -1.0 … +3.0); the interval includes zero, so this is no proof"),
        (0.02, (0.01, 0.03), "Polishing gave 1 channel the place of as many others: +3.0 points"),
    ],
)
def test_the_gain_in_words(test, interval, words):
    gain = {"fitness": 0.1, "heldout_metric": 0.03, "test_metric": test, "test_ci95": interval, "exchanged": 1}
    assert words in polish_in_words(gain, Unit.of([0.5, 0.6]))


@pytest.mark.usefixtures("in_process")
class TestWhenNothingBetterIsFound:
    def test_the_blend_is_exported_as_it_is(self, tmp_path, capsys):
        run = start(config(**{**POLISHED, "evaluations": 33, "polish": 1}), tmp_path / "run")  # the blend itself
        assert summary(run)["polish"] is None
        criterion = BlendedCriterion.load(run.folder / EXPORT)
        assert not any(group.corrections for group in criterion.groups)
        assert criterion.without_corrections() is criterion
        print_result(run)
        assert "Polishing found nothing better on held-out data" in capsys.readouterr().err

    def test_as_when_nothing_can_be_polished(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("blend.objective.polish._window", lambda scores, removed: np.array([], dtype=np.int64))
        run = start(config(**POLISHED), tmp_path / "run")
        assert "there is nothing to polish" in capsys.readouterr().err
        assert run.status == "finished"


@pytest.mark.usefixtures("in_process")
class TestTogetherWithTheRest:
    def test_the_control_gets_as_many_evaluations(self, tmp_path):
        run = start(config(evaluations=40, polish=16), tmp_path / "run")
        phases = [e.phase for e in run.evaluations()]
        assert phases.count("random") == 40

    @pytest.mark.parametrize(
        "changes", [{"encoding": "mask", "strategy": "swap"}, {"encoding": "allocation"}, {"allocation": "uniform"}]
    )
    def test_every_kind_of_blend_can_be_polished(self, tmp_path, changes):
        run = start(config(**POLISHED, **changes), tmp_path / "run")
        criterion = BlendedCriterion.load(run.folder / EXPORT)
        best = run.best("search-final", "polish-final")
        assert pack(criterion.keep_mask(graph_of_task())) == best.phenotype
        before = pack(criterion.without_corrections().keep_mask(graph_of_task()))
        assert before == run.best("search-final").phenotype

    def test_in_half_precision_the_best_are_judged_again(self, tmp_path):
        run = start(config(**POLISHED, precision="bf16"), tmp_path / "run")
        half = {in_full_precision(e.phenotype, 28) for e in run.evaluations() if e.phase == "polish"}
        full = [e for e in run.evaluations() if e.phase == "polish-final"]
        assert full
        assert {e.phenotype for e in full} <= half

    def test_patience_ends_it_too(self, tmp_path):
        run = start(config(evaluations=432, polish=400, patience=1, random_search=False), tmp_path / "run")
        assert run.get("polish-ended") in ("patience", "exhausted")
        assert sum(e.phase == "polish" for e in run.evaluations()) < 400


class TestSameBytes:
    def test_interrupted_while_polishing(self, polished, tmp_path, monkeypatch, in_process):  # noqa: F811
        def after_two_generations(interruption):
            return sum(e.phase == "polish" for e in interruption.run.evaluations()) == 16

        monkeypatch.setattr(Interruption, "requested", after_two_generations)
        with pytest.raises(Interrupted):
            start(config(**POLISHED), tmp_path / "cut")
        monkeypatch.setattr(Interruption, "requested", lambda self: False)
        assert history(Run(tmp_path / "cut")) == history(polished)[: len(history(Run(tmp_path / "cut")))]
        assert_same(resume(Run(tmp_path / "cut")), polished)

    @pytest.mark.parametrize("generation", [pytest.param(1, marks=pytest.mark.slow), 3])
    def test_killed_while_polishing(self, polished, tmp_path, generation, in_process):  # noqa: F811
        asked = ["search", TASK, "--evaluations", "64", "--polish", "32", "--no-random-search", "--population", "8"]
        asked += ["--criteria", ",".join(CRITERIA), "--workers", "1", "--runs-dir", str(tmp_path), "--name", "cut"]
        command = [sys.executable, "-c", KILLED, str(8 * generation), *asked]
        assert subprocess.run(command, capture_output=True, timeout=180).returncode == -signal.SIGKILL
        cut = Run(tmp_path / "cut")
        assert cut.status == "interrupted"
        assert sum(e.phase == "polish" for e in cut.evaluations()) == 8 * generation
        assert_same(resume(cut), polished)


KILLED = """
import os, signal, sys
from blend.cli import main
from blend.runs import Run

polished, commit = int(sys.argv.pop(1)), Run.commit

def killed(run, *what):
    commit(run, *what)
    if sum(e.phase == "polish" for e in run.evaluations()) == polished:
        os.kill(os.getpid(), signal.SIGKILL)

Run.commit = killed
main()
"""


def test_the_summary_is_json(polished):
    json.dumps(summary(polished))
