"""The whole path, really run: same seed, same bytes; stopped in any way and resumed, same bytes."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from blend.blended import BlendedCriterion
from blend.cli import run as main
from blend.config import search_config
from blend.defaults import free_name
from blend.errors import BlendError, InputError, Interrupted
from blend.evaluation import Workspace
from blend.pipeline import resume, start
from blend.problem import prepare
from blend.report import print_course, print_result, summary
from blend.runs import EXPORT, FIGURE, SCORES, Run
from blend.runs.course import course
from blend.runs.signals import Interruption
from criteria import ScoreTable
from search import WORST_FITNESS
from search.loop import evaluate_all
from tests.search_tests.toy import Inline

TASK = f"{Path(__file__).parents[1] / 'task_file.py'}:small"
CRITERIA = ("l1", "fpgm", "bn_scale", "taylor_fo", "apoz")
FEW = {"evaluations": 16, "workers": 2, "batch_size": 160, "random_search": False}  # a candidate is a single batch
BLEND = (sys.executable, "-m", "blend")


def config(**changes):
    values = {"task": TASK, "evaluations": 48, "population": 8, "criteria": CRITERIA}
    return search_config(**{**values, **changes})


def history(run):
    """Everything that was evaluated, apart from how long it took."""
    return [
        (e.number, e.phase, e.generation, e.genome, e.phenotype, e.fitness, e.details, e.cached, e.error)
        for e in run.evaluations()
    ]


@contextmanager
def without_workers():
    """Evaluates in this process: worker processes take seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blend.pipeline.order.open_executor", lambda *_: Inline())
        yield


@pytest.fixture
def in_process():
    with without_workers():
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with without_workers():
        return start(config(), tmp_path_factory.mktemp("runs") / "undisturbed")


def assert_same(run, other):
    assert history(run) == history(other)
    assert (run.folder / EXPORT).read_bytes() == (other.folder / EXPORT).read_bytes()


class TestAFinishedRun:
    def test_leaves_its_artefacts_and_no_scratch(self, undisturbed):
        left = {path.name for path in undisturbed.folder.iterdir()}
        assert {EXPORT, FIGURE, SCORES, "config.json", "run.db"} <= left
        assert "work" not in left
        assert undisturbed.status == "finished"

    def test_summary_keeps_its_promise(self, undisturbed):
        about = summary(undisturbed)
        assert set(about) >= {
            "id", "status", "task", "seed", "reduction", "achieved_reduction", "cost", "generation", "generations",
            "evaluations", "unique_evaluations", "seconds", "best", "baselines", "unpruned", "margin", "artefacts",
        }  # fmt: skip
        assert set(about["best"]) >= {"fitness", "heldout_metric", "test_metric"}
        assert all(set(b) >= {"name", "kind", "fitness", "heldout_metric", "test_metric"} for b in about["baselines"])
        assert set(about["margin"]) >= {"heldout", "test", "test_ci95"}
        assert about["evaluations"] == 48
        json.dumps(about)

    def test_has_every_kind_of_baseline_once(self, undisturbed):
        names = [(b["kind"], b["name"], b["allocation"]) for b in summary(undisturbed)["baselines"]]
        assert len(names) == len(set(names))
        for criterion in CRITERIA:
            assert ("single", criterion, "uniform") in names
            assert ("single", criterion, "global") in names
        assert {kind for kind, _, _ in names} == {"single", "uniform_blend", "random_mask", "random_search"}

    def test_is_never_worse_on_heldout_data_than_what_it_started_from(self, undisturbed):
        about = summary(undisturbed)
        started_from = [b["fitness"] for b in about["baselines"] if b["kind"] in ("single", "uniform_blend")]
        assert about["best"]["fitness"] >= max(started_from)

    def test_first_population_holds_the_baselines(self, undisturbed):
        singles = {e.phenotype for e in undisturbed.evaluations() if e.phase == "baseline"}
        first = [e for e in undisturbed.evaluations() if e.phase == "search" and e.generation == 0]
        assert sum(e.phenotype in singles for e in first) >= 12  # 5 singles and the uniform blend, two allocations

    def test_reduction_is_reached_and_hardly_exceeded(self, undisturbed):
        for evaluation in undisturbed.evaluations()[1:]:
            assert 0.5 <= evaluation.details["reduction"] < 0.6

    def test_export_reproduces_the_winner(self, undisturbed):
        from blend.evaluation import pack
        from blend.task import load_task
        from criteria import ChannelGraph

        task = load_task(TASK)
        graph = ChannelGraph.build(task.model, task.example_input)
        criterion = BlendedCriterion.load(undisturbed.folder / EXPORT)
        assert pack(criterion.keep_mask(graph)) == undisturbed.best("search").phenotype

    def test_test_data_is_opened_only_at_the_end(self, tmp_path, monkeypatch, in_process):
        opened, split = [], Workspace.split

        def opening(workspace, name, device):
            opened.append(name)
            return split(workspace, name, device)

        monkeypatch.setattr(Workspace, "split", opening)
        start(config(**FEW), tmp_path / "run")
        first = opened.index("test")
        assert set(opened[:first]) == {"heldout"}
        assert set(opened[first:]) == {"test"}

    def test_cannot_be_resumed(self, undisturbed):
        with pytest.raises(InputError, match="'undisturbed' is finished"):
            resume(undisturbed)


class TestSameBytes:
    def test_for_two_workers(self, undisturbed, tmp_path):
        assert_same(start(config(workers=2), tmp_path / "two"), undisturbed)

    def test_but_not_for_another_seed(self, undisturbed, tmp_path, in_process):
        other = start(config(seed=1, random_search=False), tmp_path / "other")
        mine, theirs = ([e[3] for e in history(run) if e[1] == "search"] for run in (other, undisturbed))
        assert mine[:8] != theirs[:8]

    @pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
    def test_interrupted_in_a_generation_and_resumed(self, undisturbed, tmp_path, number, workers):
        process = launch(tmp_path, workers)
        wait_for_generation(tmp_path / "cut", process)
        os.killpg(process.pid, number)  # as a terminal does: the workers get it, too
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "blend resume" in stderr.splitlines()[-1]
        cut = Run(tmp_path / "cut")
        assert cut.status == "interrupted"
        assert 0 < cut.counts()["evaluations"] < 48
        assert_same(resume(cut, workers=3 - workers), undisturbed)

    def test_killed_and_resumed(self, undisturbed, tmp_path, in_process):
        process = launch(tmp_path, workers=2)
        wait_for_generation(tmp_path / "cut", process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        cut = Run(tmp_path / "cut")
        assert cut.status == "interrupted"
        assert_same(resume(cut), undisturbed)

    def test_stopped_by_command_and_resumed(self, undisturbed, tmp_path, in_process):
        process = launch(tmp_path, workers=1)
        wait_for_generation(tmp_path / "cut", process)
        os.kill(process.pid, signal.SIGSTOP)  # it could else be finished before the command has started
        command = [*BLEND, "stop", "cut", "--wait", "--runs-dir", tmp_path]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as stop:
            while not Run(tmp_path / "cut").stop_requested() and stop.poll() is None:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGCONT)
            _, said = stop.communicate(timeout=60)
        assert not Run(tmp_path / "cut").is_locked()
        assert (stop.returncode, said.splitlines()[-1]) == (0, "run 'cut' is interrupted")
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert_same(resume(Run(tmp_path / "cut")), undisturbed)


KILLED = """
import os, signal, sys
from blend.cli import main
from blend.runs import Run

moment, commits, commit = sys.argv.pop(1), 0, Run.commit

def killed(run, *what):
    global commits
    commits += 1
    if commits == 3 and moment == "before":  # the first says that it runs, the second is what it gains
        os.kill(os.getpid(), signal.SIGKILL)
    commit(run, *what)
    if commits == 2 and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)

Run.commit = killed
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_every_commit_in_turn(undisturbed, tmp_path, moment):
    """Between a generation's last answer and its commit, or right after; so is every resume, until nothing is left."""
    asked = ["search", TASK, "--evaluations", "48", "--population", "8", "--criteria", ",".join(CRITERIA)]
    kills = 0
    for arguments in ([*asked, "--name", "cut"], *[["resume", "cut"]] * 50):
        command = [sys.executable, "-c", KILLED, moment, *arguments, "--workers", "1", "--runs-dir", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        kills += done.returncode == -signal.SIGKILL
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        if Run(tmp_path / "cut").status == "finished":
            break
    assert kills >= 10
    assert_same(Run(tmp_path / "cut"), undisturbed)


@pytest.mark.usefixtures("in_process")
def test_uniform_allocation_takes_the_same_share_of_every_group(tmp_path):
    run = start(config(allocation="uniform", encoding="shared", evaluations=16), tmp_path / "uniform")
    criterion = BlendedCriterion.load(run.folder / EXPORT)
    assert {group.offset for group in criterion.groups} == {0.0}
    assert run.status == "finished"


VARIETIES = [
    {"strategy": "cma", "encoding": "direct", "signed": True},
    {"strategy": "cma", "encoding": "allocation"},
    {"strategy": "aging", "encoding": "cluster"},
    {"strategy": "greedy", "encoding": "allocation", "base": "l1"},
    {"strategy": "swap", "encoding": "mask"},
    {"strategy": "random", "encoding": "shared"},
]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("left", ["nothing", "half of the scores", "scores that nobody knows to be whole"])
def test_stopped_before_its_scores_are_kept_it_goes_on_all_the_same(undisturbed, tmp_path, left):
    run = Run.create(tmp_path / "cut", config())
    scores = (undisturbed.folder / SCORES).read_bytes()
    if left != "nothing":
        (run.folder / SCORES).write_bytes(scores[: len(scores) // 2] if "half" in left else scores)
    assert resume(run).status == "finished"
    assert_same(run, undisturbed)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("evaluations", [1, 8])
def test_the_best_baseline_wins_where_the_budget_did_not_reach_it(tmp_path, evaluations):
    run = start(config(evaluations=evaluations, random_search=False), tmp_path / "short")
    about = summary(run)
    singles = [b["fitness"] for b in about["baselines"] if b["kind"] == "single"]
    assert about["best"]["fitness"] >= max(singles)
    assert len([e for e in run.evaluations() if e.phase == "search"]) == evaluations


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("changes", VARIETIES, ids=lambda changes: "-".join(map(str, changes.values())))
def test_every_strategy_and_encoding(tmp_path, changes, monkeypatch):
    asked = config(**changes, evaluations=24, random_search=False)
    whole = start(asked, tmp_path / "whole")
    about = summary(whole)
    base = changes.get("base")
    singles = [b["fitness"] for b in about["baselines"] if b["kind"] == "single" and base in (None, b["name"])]
    assert about["best"]["fitness"] >= max(singles)

    criterion = BlendedCriterion.load(whole.folder / EXPORT)
    table = ScoreTable.load(whole.folder / SCORES)
    if changes["encoding"] == "mask":
        assert all(group.candidates == () and len(set(group.scores)) > 1 for group in criterion.groups)
        with pytest.raises(InputError, match="scores must be frozen"):
            criterion.recomputed_scores(table)
    else:
        recomputed = criterion.recomputed_scores(table)
        for group in criterion.groups:
            assert recomputed[group.name].tolist() == list(group.scores)
            assert sum(abs(candidate.factor) for candidate in group.candidates) == pytest.approx(1.0)
            assert base in (None, group.candidates[0].criterion)

    monkeypatch.setattr(Interruption, "requested", lambda self: self.run.counts()["generations_done"] == 1)
    with pytest.raises(Interrupted):
        start(asked, tmp_path / "cut")
    monkeypatch.setattr(Interruption, "requested", lambda self: False)
    assert Run(tmp_path / "cut").counts()["generations_done"] == 1
    assert_same(resume(Run(tmp_path / "cut"), cache_memory=0), whole)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("limits", "ended", "words"),
    [
        ({"time": "0.001"}, "time", "its time of 0s is over"),
        ({"time": "0.000001"}, "time", "its time of 0s is over"),  # less than it takes to begin
        ({"target": "0.3"}, "target", "the target metric=0.3 is reached"),
        ({"patience": 1}, "patience", "no improvement in 1 generation"),
        ({"generations": 2}, "generations", "2 generations done"),
    ],
)
def test_the_reason_for_ending_is_recorded_and_shown(tmp_path, capsys, limits, ended, words):
    run = start(config(**limits, evaluations=400, precision="fp32"), tmp_path / "run")
    assert f"the search has ended: {words}" in capsys.readouterr().err
    about = summary(run)
    assert about["ended"] == ended
    searched = about["evaluations"]
    assert searched < 400
    assert len([e for e in run.evaluations() if e.phase == "random"]) == searched  # the control gets as many
    print_result(run)
    print_course(run)
    err = capsys.readouterr().err
    assert f"The search ended: {words}." in err
    assert "different masks" in err
    records = course(run)
    assert [record["generation"] for record in records] == list(range(about["generation"]))
    assert records[-1]["best"] == about["best"]["fitness"]
    assert 0 < records[-1]["masks"] <= records[-1]["genomes"] <= 1


@pytest.mark.usefixtures("in_process")
def test_a_stop_that_is_taken_back_at_once_has_stopped_it(tmp_path, monkeypatch):
    looks = []

    def at_the_first_look_after_two_generations(interruption):
        looks.extend([True] * (interruption.run.counts()["generations_done"] == 2))
        return len(looks) == 1

    monkeypatch.setattr(Interruption, "requested", at_the_first_look_after_two_generations)
    with pytest.raises(Interrupted):
        start(config(evaluations=64, precision="fp32"), tmp_path / "cut")
    cut = Run(tmp_path / "cut")
    assert cut.counts()["generations_done"] == 2
    assert cut.get("search-ended") is None
    assert not [e for e in cut.evaluations() if e.phase == "search-final"]
    monkeypatch.setattr(Interruption, "requested", lambda self: False)
    assert resume(cut).counts()["evaluations"] == 64


@pytest.mark.usefixtures("in_process")
def test_a_search_that_ran_out_of_time_is_not_searched_on_by_resuming(tmp_path, monkeypatch):
    asked = config(time="0.001", evaluations=400)
    monkeypatch.setattr(Interruption, "requested", lambda self: self.run.get("search-ended") is not None)
    with pytest.raises(Interrupted):
        start(asked, tmp_path / "cut")
    monkeypatch.setattr(Interruption, "requested", lambda self: False)
    before = [e for e in history(Run(tmp_path / "cut")) if e[1] == "search"]
    run = resume(Run(tmp_path / "cut"))
    assert [e for e in history(run) if e[1] == "search"] == before
    assert summary(run)["ended"] == "time"


@pytest.mark.slow
def test_two_unnamed_searches_begun_at_the_same_time_both_get_a_name(tmp_path):
    few = ["--evaluations", "8", "--population", "4", "--criteria", "l1,apoz", "--no-random-search"]
    command = [*BLEND, "search", TASK, *few, "--runs-dir", tmp_path, "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [search.communicate(timeout=120) for search in both]
    assert [search.returncode for search in both] == [0, 0], told
    names = sorted(json.loads(out)["id"] for out, _ in told)
    assert names == sorted(folder.name for folder in tmp_path.iterdir())
    assert names[1] == f"{names[0]}-2"


@pytest.mark.usefixtures("in_process")
def test_a_search_whose_name_was_taken_while_it_was_prepared_gets_another(tmp_path, monkeypatch, capsys):
    def slowly_prepared(config, **about):
        taken.append(Run.create(tmp_path / free_name(tmp_path, config), config))
        return prepare(config, **about)

    taken = []
    monkeypatch.setattr("blend.pipeline.order.prepare", slowly_prepared)
    few = ["--evaluations", "8", "--population", "4", "--criteria", "l1,apoz", "--no-random-search", "--json"]
    assert main(["search", TASK, *few, "--runs-dir", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == f"{taken[0].name}-2"
    assert {folder.name for folder in tmp_path.iterdir()} == {taken[0].name, f"{taken[0].name}-2"}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    with without_workers():
        return start(config(**FEW), tmp_path_factory.mktemp("runs") / "few")


@pytest.fixture(scope="module")
def few_in_half(tmp_path_factory):
    with without_workers():
        return start(config(**FEW, precision="bf16"), tmp_path_factory.mktemp("runs") / "half")


class TestWhatGoesWrongWithCandidates:
    """The loss tells candidates by its own value, and misbehaves for the first that is not the unpruned network."""

    SICK = """

def sick(victim: str, fault: str):
    import os, signal
    from pathlib import Path
    task, driver = small(), os.getpid()
    whole = task.model(task.heldout[0]).detach()

    def loss(outputs, targets):
        value = nn.functional.cross_entropy(outputs, targets)
        if os.getpid() == driver or (outputs[:, None] - whole).abs().amax(2).amin(1).max() < 1e-3:
            return value
        try:
            with Path(victim).open("x") as file:
                file.write(repr(value.item()))
        except FileExistsError:
            again = value.item() == float(Path(victim).read_text() or "nan")
            if fault.endswith("once") or not (again or fault.endswith("all")):
                return value
        if fault.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.startswith("raise"):
            raise MemoryError("cannot allocate")
        return value * float("nan")

    task.loss = loss
    return task
"""

    @pytest.fixture
    def sick(self, tmp_path):
        source = Path(TASK.partition(":")[0]).read_text()
        (tmp_path / "sick.py").write_text(source + self.SICK)

        def sick(fault, **changes):
            options = {"victim": str(tmp_path / "victim"), "fault": fault}
            task = f"{tmp_path / 'sick.py'}:sick"
            return config(task=task, options=options, **{**FEW, **changes})

        return sick

    @pytest.mark.parametrize("fault", ["kill-once", "raise-once"])
    def test_an_accident_leaves_no_trace(self, few, sick, tmp_path, fault):
        run = start(sick(fault), tmp_path / "run")
        assert (tmp_path / "victim").exists()
        assert history(run) == history(few)
        assert run.get("result") == few.get("result")

    @pytest.mark.parametrize("fault", ["kill", "nan"])
    def test_what_persists_is_recorded_with_its_reason_and_the_run_goes_on(self, sick, tmp_path, fault):
        run = start(sick(fault), tmp_path / "run")
        failed = [e for e in run.evaluations() if e.error is not None]
        reason = {"kill": "the worker died, exit code SIGKILL", "nan": "fitness must be finite, got nan"}[fault]
        assert failed
        assert all(reason in e.error and e.fitness == WORST_FITNESS for e in failed)
        about = summary(run)
        assert about["status"] == "finished"
        lost = {(b["name"], b["allocation"]) for b in about["failed_baselines"]}
        assert lost
        assert not lost & {(b["name"], b["allocation"]) for b in about["baselines"]}
        assert all(reason in b["reason"] for b in about["failed_baselines"])
        assert all(b["fitness"] > WORST_FITNESS for b in about["baselines"])
        print_result(run)

    def test_when_all_baselines_fail_the_run_fails(self, sick, tmp_path):
        with pytest.raises(BlendError, match=r"none of the \d+ baselines could be judged; the first: fitness must be"):
            start(sick("nan-all"), tmp_path / "run")
        run = Run(tmp_path / "run")
        assert (run.status, "none of the" in run.get("error")) == ("failed", True)


@pytest.mark.usefixtures("in_process")
class TestWhatGoesWrongForAMoment:
    """Every candidate of a phase, as where memory is short or a time limit too small: it may not outlive the moment."""

    @pytest.fixture
    def failing(self, monkeypatch):
        def failing(phase, whom=slice(None)):
            def fails(evaluate, archive, executor, phenotypes, **about):
                found = evaluate_all(evaluate, archive, executor, phenotypes, **about)
                if about["phase"] == phase:
                    lost = {"fitness": WORST_FITNESS, "details": {}, "error": "no answer within 1 s", "cached": False}
                    found[whom] = [replace(evaluation, **lost) for evaluation in found[whom]]
                return found

            monkeypatch.setattr("blend.pipeline.execution.evaluate_all", fails)

        return failing

    @pytest.mark.parametrize(
        ("phase", "whom", "told"),
        [
            ("baseline", slice(None), "the unpruned network could not be judged: no answer within 1 s"),
            ("baseline", slice(1, None), r"none of the \d+ baselines could be judged; the first: no answer within 1 s"),
            ("search-final", slice(None), "one of the best could not be judged in full precision: no answer within"),
            ("search-final", slice(1), "one of the best could not be judged in full precision: no answer within"),
        ],
    )
    def test_ends_the_process_and_not_the_run(self, few_in_half, tmp_path, monkeypatch, failing, phase, whom, told):
        asked = config(**FEW, precision="bf16")
        failing(phase, whom)
        with pytest.raises(BlendError, match=f"{told}.*; go on with: blend resume"):
            start(asked, tmp_path / "run")
        cut = Run(tmp_path / "run")
        assert (cut.status, re.match(told, cut.get("error")) is None) == ("failed", False)
        assert not [e for e in cut.evaluations() if e.phase == phase]
        monkeypatch.setattr("blend.pipeline.execution.evaluate_all", evaluate_all)
        assert_same(resume(cut), few_in_half)


@pytest.mark.usefixtures("in_process")
def test_an_export_for_which_there_is_no_room_fails_and_is_written_by_resuming(undisturbed, tmp_path, monkeypatch):
    def full(draft, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(BlendError, match=r"cannot write .*: No space left on device; go on with: ") as told:
            start(config(), tmp_path / "run")
    assert not isinstance(told.value, InputError)
    run = Run(tmp_path / "run")
    assert run.status != "finished"
    assert not (run.folder / EXPORT).exists()
    assert_same(resume(run), undisturbed)


@pytest.mark.usefixtures("in_process")
class TestWithoutASingleCriterionToCompareWith:
    HALVES = """

def halves():
    # bn_scale ranks the first group and apoz the second, and both must give channels.
    task = small()
    torch.manual_seed(3)
    task.model = nn.Sequential(
        nn.Conv2d(1, 20, 3, padding=1), nn.BatchNorm2d(20), nn.SiLU(), nn.Conv2d(20, 20, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 4),
    )
    nn.init.uniform_(task.model[1].weight)
    nn.init.uniform_(task.model[3].bias, -1.0, 0.2)
    task.model.eval()
    return task
"""

    @pytest.mark.parametrize("reductions", [{}, {"reductions": (0.92, 0.94), "strategy": "nsga2"}])
    def test_it_ends_and_says_whom_it_was_held_against(self, tmp_path, capsys, reductions):
        (tmp_path / "halves.py").write_text(Path(TASK.partition(":")[0]).read_text() + self.HALVES)
        task = f"{tmp_path / 'halves.py'}:halves"
        options = {**FEW, "task": task, "criteria": ("bn_scale", "apoz"), "reduction": 0.93, **reductions}
        run = start(config(**options), tmp_path / "run")
        assert run.status == "finished"
        about = summary(run)
        assert not [row for row in about["baselines"] if row["kind"] == "single"]
        lost = {(row["name"], row["allocation"]): row["reason"] for row in about["failed_baselines"]}
        assert lost["bn_scale", "global"] == "cannot rank all groups, and so not against each other"
        assert lost["apoz", "uniform"] == "cannot rank enough groups to reach the reduction"
        print_result(run)
        told = capsys.readouterr().err
        assert "strongest single criterion" not in told


class TestWhereItWasStarted:
    def test_relative_options_count_from_there_also_on_resume(self, undisturbed, tmp_path, monkeypatch, in_process):
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "steps.txt").write_text("30")
        task = tmp_path / "task.py"
        more = "\n\ndef from_file(steps: str):\n    return small(steps=int(open(steps).read()))\n"
        task.write_text(Path(TASK.partition(":")[0]).read_text() + more)
        arguments = ["-o", "steps=steps.txt", "--evaluations", "48", "--population", "8", "--runs-dir", "runs"]
        arguments += ["--criteria", ",".join(CRITERIA), "--name", "cut"]
        monkeypatch.chdir(tmp_path / "home")
        monkeypatch.setattr(Interruption, "requested", lambda self: self.run.counts()["generations_done"] == 1)
        assert main(["search", f"{task}:from_file", *arguments]) == 130
        monkeypatch.setattr(Interruption, "requested", lambda self: False)
        monkeypatch.chdir(tmp_path)
        run = Run(Path("home/runs/cut"))
        assert resume(run).status == "finished"
        assert Path.cwd() == tmp_path
        assert history(run) == history(undisturbed)
        assert run.artefacts()[0] == Path("home/runs/cut") / EXPORT

    def test_which_must_be_there(self, tmp_path):
        run = Run.create(tmp_path / "run", config(directory=str(tmp_path / "gone")))
        with pytest.raises(InputError, match=r"run 'run' cannot go on: '.*gone', where it was started, is gone"):
            resume(run)


class TestFirstInterrupt:
    SLOW = """

def slow(marks: str, split: int):
    import os, time
    task = small()

    def metric(outputs, targets):
        if len(targets) in (13, 29):  # of 16 + 13, as candidates are judged
            open(os.path.join(marks, "begun"), "a").close()
            time.sleep(0.5)
        return (outputs.argmax(1) == targets).float()

    splits = [(task.calibration[0], task.calibration[1]), task.heldout, task.test]
    splits[split] = tuple(part[:29] for part in splits[split])
    task.calibration, task.heldout, task.test = splits
    task.metric = metric
    return task
"""

    @pytest.mark.parametrize("split", [1, 2])
    def test_stops_in_the_baselines_and_in_the_test_pass(self, tmp_path, split):
        task = tmp_path / "slow.py"
        task.write_text(Path(TASK.partition(":")[0]).read_text() + self.SLOW)
        arguments = ["-o", f"marks={tmp_path}", "-o", f"split={split}", "--no-random-search"]
        process = launch(tmp_path, 1, f"{task}:slow", *arguments)
        deadline = time.monotonic() + 180
        cut = tmp_path / "cut"
        while not ((tmp_path / "begun").exists() and cut.exists() and (cut / "work" / "judge.pickle").exists()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
            if not cut.exists():
                (tmp_path / "begun").unlink(missing_ok=True)  # it was the check of the task
        if split == 2:
            while Run(cut).counts()["evaluations"] < 48:
                (tmp_path / "begun").unlink(missing_ok=True)
                assert time.monotonic() < deadline
                time.sleep(0.02)
            while not (tmp_path / "begun").exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130
        assert time.monotonic() - began < 6  # of about 20 networks, half a second each
        assert "blend resume" in stderr.splitlines()[-1]
        assert Run(cut).status == "interrupted"
        assert (len(Run(cut).evaluations()) < 18) is (split == 1)


def launch(folder, workers, task=TASK, *more):
    """Starts a search as a user does, in a process group of its own."""
    arguments = ["search", task, "--evaluations", "48", "--population", "8", "--workers", str(workers)]
    arguments += ["--criteria", ",".join(CRITERIA), "--runs-dir", str(folder), "--name", "cut", *more]
    return subprocess.Popen(
        [*BLEND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_generation(folder, process, generations=1):
    """Waits until so many generations of the search are committed."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "run.db").exists() and Run(folder).counts()["generations_done"] >= generations:
            return
        time.sleep(0.005)
    pytest.fail(f"no generation was committed: {process.communicate()[1] if process.poll() is not None else 'timeout'}")
