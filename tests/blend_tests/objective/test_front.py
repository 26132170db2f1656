"""A front of reductions: fitness against cost in one run, exactly resumed, shown and exported point by point."""

import json
import os
import signal

import pytest

from blend.blended import BlendedCriterion
from blend.blended.formula import Blender
from blend.budget import CostModel, floors
from blend.cli import run as command
from blend.doctor.run_folder import examine_run
from blend.errors import InputError, Interrupted
from blend.evaluation import HeldoutEvaluation, Workspace, pack, unpack
from blend.objective.encoding import MaskEncoding
from blend.objective.front import FrontEncoding, FrontObjective
from blend.pipeline import resume, start
from blend.pipeline.contenders import contenders
from blend.problem import prepare
from blend.report import print_course, print_result, runs_table, summary
from blend.runs import EXPORT, FIGURE, FINAL, SEARCH, Run, export_at
from blend.runs.course import conquered, course
from blend.runs.signals import Interruption
from blend.task import load_task
from criteria import ChannelGraph
from search.archive import WORST_FITNESS, Archive, Evaluation
from tests.search_tests.toy import Inline

from ..pipeline.test_pipeline import TASK, assert_same, config, history, in_process, launch, wait_for_generation  # noqa: F401
from ..small_networks import graph_of, random_table

FRONT = {"strategy": "nsga2", "reduction": "0.3:0.7", "evaluations": 100}
SHOWN = (0.3, 0.4, 0.5, 0.6, 0.7)


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blend.pipeline.order.open_executor", lambda *_: Inline())
        return start(config(**FRONT), tmp_path_factory.mktemp("runs") / "front")


def test_the_last_gene_is_the_reduction_and_costs_what_the_mask_costs():
    _, graph = graph_of("resnet20")
    blender, cost = Blender(random_table(graph, ["one", "two"])), CostModel(graph)
    masks = MaskEncoding(blender, [group.name for group in graph.groups])
    encoding = FrontEncoding(masks, 0.3, 0.7)
    assert encoding.space.blocks[:-1] == masks.space.blocks
    genes = [0.01 * index % 1.0 for index in range(len(masks.space))]
    assert encoding.decode([*genes, 0.4]) == masks.decode(genes)
    evaluate = HeldoutEvaluation(Workspace("nowhere", "none", "0"))
    objective = FrontObjective(encoding, blender, graph, cost, floors(graph), 0.5, evaluate)
    for reduction in (0.3, 0.45, 0.7):
        genome = [*genes, reduction]
        assert objective.requested(genome) == reduction
        keep = unpack(objective.phenotype(genome), len(graph))
        assert objective.cost_of(genome) == cost(keep)
        assert reduction <= cost.reduction(keep) < reduction + 0.01


def judged(number, phase, fitness, reduction, error=None):
    details = {} if error else {"reduction": reduction, "cost": 1 - reduction, "metric": 0.5}
    return Evaluation(number, phase, 0, (0.0,), bytes([number]), fitness, details, 0.0, False, error)


def test_hypervolume_by_hand():
    before = [judged(0, "baseline", -1.0, 0.0), judged(1, "baseline", -3.0, 0.5)]
    found = [(-2.0, 0.5), (-2.5, 0.8), (-2.2, 0.4), (-1.5, 0.2)]  # the third is dominated, the last removes too little
    candidates = [judged(2 + i, "search", *pair) for i, pair in enumerate(found)]
    failed = judged(6, "search", WORST_FITNESS, 0.9, error="it died")
    archive = Archive([*before, *candidates, failed, judged(7, "random", -1.0, 0.7)])
    # A picture 0.4 wide and 2 high, of which 0.2 x 1 and, up to its edge, 0.2 x 0.5 more.
    assert conquered(archive, "search", (0.3, 0.7)) == pytest.approx((0.2 * 1.0 + 0.2 * 0.5) / 0.8)
    assert conquered(archive, "random", (0.3, 0.7)) == pytest.approx(1.0)
    assert conquered(Archive([judged(0, "baseline", -1.0, 0.0)]), "search", (0.3, 0.7)) == 0.0


class TestAFinishedFront:
    def test_shows_a_blend_for_every_reduction_with_its_opponents(self, front):
        about = summary(front)
        json.dumps(about)
        assert about["reductions"] == (0.3, 0.7)
        assert tuple(row["reduction"] for row in about["front"]) == SHOWN
        assert [row["fitness"] for row in about["front"]] == sorted(
            (r["fitness"] for r in about["front"]), reverse=True
        )
        for row in about["front"]:
            assert row["achieved_reduction"] >= row["reduction"]
            assert row["single"]["reduction"] >= row["reduction"]
            assert row["random_search"]["reduction"] >= row["reduction"]
            assert row["margin"]["test"] == pytest.approx(row["test_metric"] - row["single"]["test_metric"])
        assert about["best"]["fitness"] == about["front"][2]["fitness"]
        assert about["achieved_reduction"] == about["front"][2]["achieved_reduction"] >= 0.5

    def test_is_nowhere_worse_on_heldout_data_than_what_it_started_from(self, front):
        for point in front.get("front"):
            started_from = [b["fitness"] for b in point["baselines"] if b["kind"] in ("single", "uniform_blend")]
            assert len(started_from) == 12
            assert point["best"]["fitness"] >= max(started_from)

    def test_first_generation_holds_the_baselines_at_every_reduction(self, front):
        first = [e for e in front.evaluations() if e.phase == SEARCH and e.generation == 0]
        assert {e.genome[-1] for e in first} == set(SHOWN)
        assert all(e.cached for e in first)  # they were judged as baselines
        assert [e.genome[-1] for e in first[:5]] == list(SHOWN)  # also in a search that ends in its first generation

    def test_no_candidate_is_raced(self, front):
        assert all("share" not in e.details for e in front.evaluations())

    def test_the_control_samples_reductions_too(self, front):
        control = [e for e in front.evaluations() if e.phase == "random"]
        assert len(control) == summary(front)["evaluations"] == 100
        reductions = [e.genome[-1] for e in control]
        assert min(reductions) < 0.35 < 0.65 < max(reductions)

    def test_hypervolume_never_falls_and_is_shown_beside_the_controls(self, front, capsys):
        records = {phase: [record["hypervolume"] for record in course(front, phase)] for phase in ("search", "random")}
        for volumes in records.values():
            assert volumes == sorted(volumes)
        assert summary(front)["hypervolume"] == {phase: volumes[-1] for phase, volumes in records.items()}
        archive = Archive(front.evaluations())
        assert records["search"][-1] == conquered(archive, "search", (0.3, 0.7)) > 0
        print_result(front)
        print_course(front)
        err = capsys.readouterr().err
        assert f"{records['search'][-1]:.4f} (random search: {records['random'][-1]:.4f})" in err
        assert "front: the front, macs of task_file:small removed" in err
        assert " volume " in err
        assert list(runs_table([summary(front)]).columns[3].cells) == ["0.3:0.7"]

    def test_every_export_reproduces_its_blend(self, front):
        task = load_task(TASK)
        graph = ChannelGraph.build(task.model, task.example_input)
        for reduction in SHOWN:
            criterion = BlendedCriterion.load(front.folder / export_at(reduction))
            fit = front.best(FINAL[SEARCH], reduction=reduction)
            assert pack(criterion.keep_mask(graph)) == fit.phenotype
            assert criterion.reduction == fit.genome[-1]
            assert criterion.metrics["best"]["fitness"] == fit.fitness
        middle, main = (BlendedCriterion.load(front.folder / name) for name in (export_at(0.5), EXPORT))
        assert main.groups == middle.groups
        names = [path.name for path in front.artefacts()]
        assert names == [EXPORT, *map(export_at, SHOWN), FIGURE, "scores.npz"]

    def test_a_point_is_exported_by_its_reduction(self, front, tmp_path, capsys):
        file = tmp_path / "light.blend.json"
        export = ["export", str(front.folder), str(file), "--reduction"]
        assert command([*export, "0.45"]) == 2
        assert "reduction must be one of 0.3, 0.4, 0.5, 0.6, 0.7, got 0.45" in capsys.readouterr().err
        assert not file.exists()
        assert command([*export, "0.6"]) == 0
        assert BlendedCriterion.load(file) == BlendedCriterion.load(front.folder / export_at(0.6))

    def test_passes_examination_until_a_file_is_exchanged(self, front):
        exports = {finding.name: finding for finding in examine_run(front.folder)}["export"]
        assert exports.outcome == "pass"
        assert "front at 5 reductions" in exports.reason
        file, other = (front.folder / export_at(reduction) for reduction in (0.7, 0.3))
        right = file.read_bytes()
        file.write_bytes(other.read_bytes())
        try:
            exports = {finding.name: finding for finding in examine_run(front.folder)}["export"]
        finally:
            file.write_bytes(right)
        assert exports.outcome == "fail"
        assert export_at(0.7) in exports.reason


def assert_same_front(run, other):
    assert_same(run, other)
    for reduction in SHOWN:
        name = export_at(reduction)
        assert (run.folder / name).read_bytes() == (other.folder / name).read_bytes()
    for phase in ("search", "random"):
        assert course(run, phase) == course(other, phase)
        assert run.get(f"{phase}-state") == other.get(f"{phase}-state")


class TestSameBytes:
    @pytest.mark.usefixtures("in_process")
    @pytest.mark.parametrize("generations", [1, 3])
    def test_stopped_and_resumed(self, front, tmp_path, monkeypatch, generations):
        done = {"generations_done": generations}
        monkeypatch.setattr(Interruption, "requested", lambda self: self.run.counts().items() >= done.items())
        with pytest.raises(Interrupted):
            start(config(**FRONT), tmp_path / "front")
        monkeypatch.setattr(Interruption, "requested", lambda self: False)
        assert summary(Run(tmp_path / "front"))["front"] is None
        assert_same_front(resume(Run(tmp_path / "front")), front)

    @pytest.mark.slow
    def test_killed_and_resumed_with_two_workers(self, front, tmp_path):
        more = ["--strategy", "nsga2", "--reduction", "0.3:0.7", "--evaluations", "100"]
        process = launch(tmp_path, 2, TASK, *more)
        wait_for_generation(tmp_path / "cut", process, generations=2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        cut = Run(tmp_path / "cut")
        assert cut.status == "interrupted"
        assert cut.counts()["generations_done"] > 1
        assert summary(cut)["front"] is None
        assert_same_front(resume(cut), front)


@pytest.mark.usefixtures("in_process")
def test_patience_is_with_the_hypervolume(tmp_path, capsys):
    run = start(config(**{**FRONT, "evaluations": 2000, "patience": 2, "precision": "fp32"}), tmp_path / "front")
    volumes = [record["hypervolume"] for record in course(run)]
    assert summary(run)["ended"] == "patience"
    assert volumes[-1] < 1.001 * volumes[-3]
    grown = [now >= 1.001 * before for before, now in zip(volumes, volumes[2:], strict=False)]
    assert all(grown[:-1])
    assert "the hypervolume grew by less than 0.1% in 2 generations" in capsys.readouterr().err


@pytest.mark.usefixtures("in_process")
def test_a_front_in_half_precision_is_compared_in_full(tmp_path):
    run = start(config(**{**FRONT, "evaluations": 70, "precision": "bf16", "random_search": False}), tmp_path / "front")
    searched = {e.phenotype[:-1] for e in run.evaluations() if e.phase == SEARCH}
    final = [e for e in run.evaluations() if e.phase == FINAL[SEARCH]]
    assert final
    assert {e.phenotype for e in final} <= searched
    assert [row["reduction"] for row in summary(run)["front"]] == list(SHOWN)
    assert set(summary(run)["hypervolume"]) == {"search"}


@pytest.mark.usefixtures("in_process")
def test_a_highest_reduction_that_cannot_be_reached_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(InputError, match=r"reduction 0\.99 of macs cannot be reached"):
        start(config(**{**FRONT, "reduction": "0.5:0.99"}), tmp_path / "front")
    assert not (tmp_path / "front").exists()


def test_a_control_that_never_removed_so_much_is_listed_as_failed():
    problem = prepare(config(**FRONT)).at(0.7)
    masks = [mask for baseline in problem.baselines for mask in baseline.masks]
    whole = [True] * len(problem.graph)
    details = {"reduction": 0.71, "cost": 1, "metric": 0.5}
    made = [
        Evaluation(i, "baseline", 0, None, pack(mask), -1.0, details, 0.0, False, None)
        for i, mask in enumerate([whole, *masks])
    ]
    for phase, reduction in ((FINAL[SEARCH], 0.71), ("random-final", 0.69)):
        made.append(judged(200 + len(made) % 50, phase, -0.5, reduction))
    found, failed = contenders(problem, Archive(made))
    assert [one["kind"] for one in found].count("random_search") == 0
    assert failed == [
        {
            "name": "random-search", "kind": "random_search", "allocation": "global",
            "reason": "no valid candidate of reduction 0.7",
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--reduction", "0.3:0.7"], "strategy must be 'nsga2' for a range of reductions, got 'ga'"),
        (["--reduction", "0.7:0.3", "--strategy", "nsga2"], "reduction must be a number in (0, 1) or LOW:HIGH"),
        (["--polish", "10", "--strategy", "nsga2"], "polish must be 0 with strategy 'nsga2', as a front is not one"),
        (["--target", "0.9", "--strategy", "nsga2"], "target must be left out with strategy 'nsga2'"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, complaint, capsys, tmp_path):
    assert command(["search", "digits", "--runs-dir", str(tmp_path / "runs"), *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
