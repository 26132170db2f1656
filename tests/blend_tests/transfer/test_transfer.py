"""`blend transfer`: the same numbers as judged by other ways, what is refused, and what the command says and draws."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from blend.budget import CostModel, floors, keep_mask
from blend.cli import run
from blend.config import search_config
from blend.errors import InputError
from blend.evaluation import Judge, Settings
from blend.pipeline.evidence import paired_interval
from blend.problem import prepare
from blend.transfer.figure import draw_transfer
from blend.transfer.places import FROZEN, RECOMPUTED, mask_or_reason, parse_reductions, parse_task, pool
from blend.transfer.text import answer, print_transfer
from blend.transfer.trial import transfer
from search.errors import SearchError

from ..adapters.blends import blend_for

SOURCE = Path(__file__).parents[1] / "task_file.py"
CRITERIA = ("l1", "taylor_fo", "apoz")
WIDER = '''

class WiderNetwork(SmallNetwork):
    def __init__(self, width):
        super().__init__()
        self.features[0], self.features[1] = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.features[3] = nn.Conv2d(width, 16, 3, padding=1)


def wider(width: int = 20):
    torch.manual_seed(0)
    task = small()
    task.model = WiderNetwork(width).eval()
    return task


class RenamedNetwork(nn.Sequential):
    def __init__(self, other):
        super().__init__()
        self.body, self.flat, self.head = other.features, nn.Flatten(), other.head


def renamed():
    task = small()
    task.model = RenamedNetwork(task.model).eval()
    return task


def bare():
    task = small()
    for name, module in task.model.features.named_children():
        if isinstance(module, nn.BatchNorm2d):
            setattr(task.model.features, name, nn.Identity())
    return task


def swapped():
    task = small()
    task.test, task.heldout = task.heldout, task.test
    return task
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("transfer") / "task.py"


@pytest.fixture(scope="module")
def small(file):
    file.write_text(SOURCE.read_text() + WIDER)
    return f"{file}:small"


@pytest.fixture(scope="module")
def prepared(small):
    return prepare(search_config(task=small, criteria=CRITERIA))


@pytest.fixture(scope="module")
def blend(prepared, file):
    """A blend with made-up factors for the small task's network, as its search would export it."""
    graph, identity = prepared.graph, prepared.identity
    task = {
        "name": "task:small", "options": {}, "ignore": [],
        "splits": {split.name: {"examples": len(split), "hash": identity[split.name]} for split in prepared.splits},
    }  # fmt: skip
    made = blend_for(prepared.task.model, graph, criteria=CRITERIA[:2], table=prepared.table, task=task)
    clusters = tuple(g.model_copy(update={"clusters": (("l1", "taylor_fo"), ("apoz",))}) for g in made.groups)
    made = made.model_copy(update={"groups": clusters})
    made.save(file.with_name("a.blend.json"))
    return made


@pytest.fixture(scope="module")
def path(blend, file):
    return file.with_name("a.blend.json")


@pytest.fixture(scope="module")
def report(path, small, file):
    tasks = [small, f"{small},seed=1", f"{file}:wider,width=24", f"{file}:renamed"]
    return json.loads(json.dumps(transfer(path, tasks, (0.3, 0.6), workers=1)))


def results(report, label):
    return next(task for task in report["tasks"] if task["label"] == label)["results"]


def test_the_searched_network_gives_what_its_own_scores_and_formula_give(report, blend, prepared):
    """Judged by another way: frozen scores, ranked here, in this process."""
    task, graph, cost = prepared.task, prepared.graph, CostModel(prepared.graph)
    judge = Judge(task.model, graph, task.loss, task.metric, prepared.splits.calibration.inputs, Settings())
    for result in results(report, "task:small"):
        keep = keep_mask(graph, blend.frozen_scores(graph), result["reduction"], cost, floors(graph, 0.1))
        loss, heldout = judge.measure(keep, prepared.splits.heldout)
        _, test = judge.measure(keep, prepared.splits.test)
        for way in ("frozen", "recomputed"):  # the weights are the same, so that fresh scores are, too
            assert result[way]["reduction"] == pytest.approx(cost.reduction(keep))
            assert result[way]["heldout_metric"] == pytest.approx(heldout.mean())
            assert result[way]["fitness"] == pytest.approx(-loss, rel=1e-5)
            assert result[way]["test_metric"] == pytest.approx(test.mean())


def test_what_the_search_has_asked_for_and_another_network_has_nothing_for_is_left_out(blend, file, capsys):
    clusters = tuple(g.model_copy(update={"clusters": (("l1", "taylor_fo"), ("bn_scale",))}) for g in blend.groups)
    ignoring = blend.model_copy(update={"groups": clusters, "task": {**blend.task, "ignore": ["stem.*", "head"]}})
    ignoring.save(file.with_name("ignoring.blend.json"))
    [task] = transfer(file.with_name("ignoring.blend.json"), [f"{file}:bare"], (0.3,), workers=1)["tasks"]
    [result] = task["results"]
    assert {row["name"] for row in result["singles"]} == {"l1", "taylor_fo"}
    assert "belongs to another network" in result["frozen"]["reason"]
    assert "test_metric" in result["recomputed"]
    said = capsys.readouterr().err
    assert "note: no layer is called like 'stem.*' here" in said
    assert "note: bn_scale in all" in said


def test_the_opponents_are_those_of_a_search_under_both_allocations(report, prepared):
    judged = {(row["name"], row["allocation"]): row for row in results(report, "task:small")[1]["singles"]}
    assert set(judged) == {(name, how) for name in CRITERIA for how in ("global", "uniform")}
    task, problem = prepared.task, prepared.at(0.6)
    judge = Judge(task.model, problem.graph, task.loss, task.metric, problem.splits.calibration.inputs, Settings())
    for one in problem.baselines:
        if one.kind == "single":
            expected = judge.measure(one.masks[0], problem.splits.test)[1].mean()
            assert judged[one.name, one.allocation]["test_metric"] == pytest.approx(expected)


def test_the_margin_is_over_the_strongest_on_test_with_its_paired_interval(report, blend, prepared):
    result = results(report, "task:small")[0]
    strongest, margin = result["singles"][0], result["frozen"]["margin"]
    assert strongest["test_metric"] == max(row["test_metric"] for row in result["singles"])
    assert margin["test"] == pytest.approx(result["frozen"]["test_metric"] - strongest["test_metric"])
    assert margin["test_over"] == f"{strongest['name']} ({strongest['allocation']})"
    task, problem = prepared.task, prepared.at(0.3)
    judge = Judge(task.model, problem.graph, task.loss, task.metric, problem.splits.calibration.inputs, Settings())
    title = strongest["name"], strongest["allocation"]
    single = next(b for b in problem.baselines if (b.name, b.allocation) == title)
    masks = blend.keep_mask(problem.graph, 0.3), single.masks[0]
    mine, theirs = (judge.measure(mask, problem.splits.test)[1] for mask in masks)
    assert margin["test_ci95"] == pytest.approx(paired_interval(mine - theirs, blend.seed))
    for case in (case for task in report["tasks"] for case in task["results"]):
        for entry in (case[kind] for kind in ("frozen", "recomputed", "uniform_blend") if "margin" in case[kind]):
            low, high = entry["margin"]["test_ci95"]
            assert entry["verdict"] == ("wins" if low > 0 else "loses" if high < 0 else "not told apart")


def test_other_weights_keep_the_frozen_ranking_and_get_a_fresh_one(report, blend, small):
    elsewhere = next(task for task in report["tasks"] if task["label"] == "task:small,seed=1")
    assert [task["network"] for task in report["tasks"]] == [
        "the searched one", "other weights", "another layout", "another layout",
    ]  # fmt: skip
    problem = prepare(search_config(task=small, options={"seed": "1"}, criteria=CRITERIA))
    scores = {"frozen": blend.frozen_scores(problem.graph), "recomputed": blend.recomputed_scores(problem.table)}
    assert not all(np.array_equal(scores["frozen"][g], scores["recomputed"][g]) for g in scores["frozen"])
    task = problem.task
    judge = Judge(task.model, problem.graph, task.loss, task.metric, problem.splits.calibration.inputs, Settings())
    for way, ranked in scores.items():
        keep = keep_mask(problem.graph, ranked, 0.6, problem.cost, problem.floor)
        expected = judge.measure(keep, problem.splits.test)[1].mean()
        assert elsewhere["results"][1][way]["test_metric"] == pytest.approx(expected)


def test_another_width_is_refused_frozen_and_scored_by_the_formula(report):
    for result in results(report, "task:wider,width=24"):
        assert "'features.0.weight' has shape (24, 1, 3, 3) here and (12, 1, 3, 3) there" in result["frozen"]["reason"]
        assert result["recomputed"]["reduction"] >= result["reduction"]


def test_other_names_are_refused_in_both_ways_and_the_rest_goes_on(report):
    for result in results(report, "task:renamed"):
        assert "reason" in result["frozen"]
        assert result["recomputed"]["reason"] == "the blend has no formula for group 'body.0' of this network"
        assert len(result["singles"]) == 6


def test_a_criterion_that_cannot_rank_a_group_is_named(blend, tmp_path):
    silent = blend.groups[0].candidates[0].model_copy(update={"criterion": "bn_scale"})
    groups = (blend.groups[0].model_copy(update={"candidates": (silent,)}), *blend.groups[1:])
    (tmp_path / "task.py").write_text(SOURCE.read_text().replace("nn.BatchNorm2d(12)", "nn.Identity()"))
    problem = prepare(search_config(task=f"{tmp_path / 'task.py'}:small", criteria=("l1", "bn_scale", "taylor_fo")))
    reason = mask_or_reason(blend.model_copy(update={"groups": groups}), problem, RECOMPUTED)
    assert reason == "criterion 'bn_scale' has no usable scores in group 'features.0'"


def test_a_formula_needs_its_groups(blend, prepared):
    table = prepared.table
    fewer = type(table)(table.criteria, table.groups[1:], {}, [])
    with pytest.raises(InputError, match=r"the network has no group 'features\.0', which the blend has a formula for"):
        blend.recomputed_scores(fewer)


def test_the_pool_is_all_that_was_searched_among(blend):
    assert pool(blend) == ("l1", "taylor_fo", "apoz")
    baselines = [{"name": "hrank", "kind": "single"}, {"name": "random-mask", "kind": "random_mask"}]
    assert pool(blend.model_copy(update={"metrics": {"baselines": baselines}}))[0] == "hrank"


def test_options_behind_a_task_go_before_those_of_all():
    assert parse_task("textures,seed=1", {"seed": "0", "width": "8"}) == ("textures", {"seed": "1", "width": "8"})
    assert parse_task("my/task.py:mine", {"a": "1,2"}) == ("my/task.py:mine", {"a": "1,2"})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (",seed=1", "a task must begin with its name, got ',seed=1'"),
        ("textures,seed", "option must look like key=value, got 'seed'"),
        ("textures,seed=1,seed=2", "option 'seed' was given twice"),
    ],
)
def test_a_task_that_is_none(text, complaint):
    with pytest.raises(InputError, match=complaint):
        parse_task(text, {})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0.3,half", "reductions must be numbers with commas between them, got 'half'"),
        ("0.3,1.3", r"reduction must be in \(0, 1\), got 1\.3"),
        ("0.3,nan", r"reduction must be in \(0, 1\), got nan"),
        ("0.3,0.30", "reductions must be different from one another, got 0.3 twice"),
    ],
)
def test_reductions_that_are_none(text, complaint):
    with pytest.raises(InputError, match=complaint):
        parse_reductions(text)


def test_what_is_wrong_is_told_before_anything_is_judged(path, small, file, capsys):
    def told(*arguments):
        code = run(["transfer", str(path), *arguments, "--workers", "1"])
        err = capsys.readouterr().err
        assert "held-out  " not in err
        return code, err.strip().splitlines()[-1]

    code, last = told("texture")
    assert code == 2
    assert "did you mean 'textures'" in last
    assert told() == (2, "error: tasks must name at least one task, got none")
    for twice in ((small, small), (small, "--tasks", small)):
        assert told(*twice) == (2, "error: tasks must be different from one another, got 'task:small' twice")
    code, last = told(small, "--reductions", "0.3,0.99")
    assert code == 2
    assert last.startswith("error: task:small: reduction 0.99 of macs cannot be reached")
    assert "the largest possible is 0.9" in last
    assert told(f"{file}:swapped") == (
        2, "error: task:swapped: its test data are the held-out data of the search, which would flatter the blend",
    )  # fmt: skip
    assert told(small, "--figure", "it.html") == (2, "error: figure must end in .png, .svg, .pdf, got 'it.html'")


def test_the_command_prints_json_a_table_and_draws(path, small, tmp_path, capsys):
    figure = tmp_path / "it.svg"
    command = ["transfer", str(path), f"{small},seed=1", "--workers", "1", "--json", "--figure", str(figure)]
    assert run(command) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    (task,) = report["tasks"]
    assert [result["reduction"] for result in task["results"]] == [0.5]  # the file's own
    assert (report["searched"]["task"], task["options"]) == ("task:small", {"seed": "1"})
    assert f"{task['results'][0]['recomputed']['test_metric']:.3f}" in err
    assert err.strip().splitlines()[-3:] == list(answer(report))
    texts = {"".join(e.itertext()).strip() for e in ElementTree.parse(figure).iter("{http://www.w3.org/2000/svg}text")}
    assert {"task:small,seed=1 (other weights)", "frozen", "recomputed", "uniform blend"} <= texts


def test_workers_that_can_judge_nothing_end_it_in_a_line(path, small, capsys, monkeypatch):
    def unfit(*_, **__):
        raise SearchError("no candidate can be evaluated: no room")

    monkeypatch.setattr("blend.transfer.trial.evaluate_all", unfit)
    assert run(["transfer", str(path), small]) == 3
    assert capsys.readouterr().err.splitlines()[-1] == "error: no candidate can be evaluated: no room"


def test_the_words_count_wins_and_losses_and_name_each_reason_once(report, capsys, tmp_path):
    cases = [case for task in report["tasks"] for case in task["results"]]
    wins = sum(case["recomputed"].get("verdict") == "wins" for case in cases)
    assert f"Recomputed: beats every single criterion on test data in {wins} of 6 cases" in list(answer(report))[1]
    assert list(answer(report))[1].endswith("; not usable in 2.")
    print_transfer(report)
    err = capsys.readouterr().err
    assert err.count("— task:renamed, recomputed: the blend has no formula for group 'body.0' of this network") == 1
    for name in ("one.svg", "two.svg"):
        draw_transfer(report, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_scores_without_a_formula_stay_frozen(blend, prepared):
    groups = tuple(group.model_copy(update={"candidates": ()}) for group in blend.groups)
    without = blend.model_copy(update={"groups": groups})
    reason = mask_or_reason(without, prepared, RECOMPUTED)
    assert reason.startswith("scores must be frozen: those of group 'features.0'")
    assert np.array_equal(mask_or_reason(without, prepared, FROZEN), blend.keep_mask(prepared.graph))
