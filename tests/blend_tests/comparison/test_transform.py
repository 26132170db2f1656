"""Global rankings of a comparison, and what is done to scores before them."""

import json
from pathlib import Path

import numpy as np
import pytest

from blend import problem
from blend.budget import CostModel
from blend.cli import run
from blend.comparison.compare import _contenders, compare
from blend.comparison.transform import Transform, group_costs, parse_transform
from blend.config import search_config
from blend.errors import InputError
from blend.evaluation import Judge, Settings
from blend.objective.baselines import Contest
from criteria.transforms import balanced

from .test_compare import TASK

CRITERIA = ("l1", "taylor_fo", "grasp")


@pytest.fixture(scope="module")
def config():
    return search_config(task=TASK, criteria=CRITERIA, reduction=0.5, allocation="global")


@pytest.fixture(scope="module")
def prepared(config):
    return problem.prepare(config)


def shares(prepared, transform, criterion="l1"):
    """What the pruned network keeps of each group."""
    chosen, _ = _contenders(prepared, transform)
    mask = next(baseline for baseline in chosen if baseline.name == criterion).masks[0]
    return {group.name: float(np.mean(part)) for group, part in prepared.graph.split(mask)}


def lines(folder, content):
    (folder / "lines.json").write_text(json.dumps(content))
    return parse_transform(f"affine:file={folder / 'lines.json'}")


def test_the_accuracy_is_that_of_the_global_ranking(config, prepared):
    report = compare(config)
    assert (report["allocation"], report["transform"]) == ("global", "none")
    task = prepared.task
    judge = Judge(task.model, prepared.graph, task.loss, task.metric, prepared.splits.calibration.inputs, Settings())
    for name in CRITERIA:
        baseline = next(b for b in prepared.baselines if (b.name, b.allocation) == (name, "global"))
        row = next(row for row in report["results"] if row["name"] == name)
        expected = judge.judge(baseline.masks[0], prepared.splits.heldout)
        assert (row["heldout_metric"], row["reduction"]) == (expected["metric"], expected["reduction"])


def test_balanced_scores_are_ranked_as_the_library_balances_them(prepared):
    scores = {group: prepared.table.get("l1", group) for group in prepared.clusters}
    plain = Contest._keep(prepared.contest, balanced(scores))
    chosen, _ = _contenders(prepared, parse_transform("balanced"))
    np.testing.assert_array_equal(chosen[0].masks[0], plain)
    assert shares(prepared, parse_transform("balanced")) != shares(prepared, parse_transform("none"))


def test_resource_aware_scores_keep_more_of_what_is_cheap(prepared):
    costs = group_costs(prepared.graph, prepared.cost)
    cheap, dear = sorted(costs, key=costs.__getitem__)
    aware = shares(prepared, parse_transform("resource_aware:strength=100"), "taylor_fo")
    plain = shares(prepared, parse_transform("none"), "taylor_fo")
    assert shares(prepared, parse_transform("resource_aware:strength=0"), "taylor_fo") == plain
    assert aware[cheap] >= plain[cheap]
    assert aware[dear] <= plain[dear]


def test_a_groups_cost_is_what_its_absence_saves(prepared):
    # 8 x 8 pictures: 12 channels of 3 x 3 x 1, read by 16 of 3 x 3 x 12, then 4 outputs of 16 channels at 2 x 2.
    first, second = 64 * 12 * 9, 64 * 16 * 12 * 9
    costs = group_costs(prepared.graph, prepared.cost)
    assert costs == {"features.0": first + second, "features.3": second + 4 * 16 * 4}
    assert set(group_costs(prepared.graph, CostModel(prepared.graph, "params"))) == set(costs)


def test_affine_lines_decide_how_much_a_group_gives(prepared, tmp_path):
    plain = shares(prepared, parse_transform("none"))
    assert shares(prepared, lines(tmp_path, {})) == plain
    for lifted, other in (("features.0", "features.3"), ("features.3", "features.0")):
        found = shares(prepared, lines(tmp_path, {lifted: {"shift": 1e6}}))
        assert found[lifted] >= 0.9  # but for what the other one, at its floor, could not give
        assert found[other] <= plain[other]
        assert found[other] < 0.5
    scaled = shares(prepared, lines(tmp_path, {"features.0": {"scale": 1e6}}))
    assert scaled["features.0"] >= 0.9


def test_what_cannot_be_transformed_has_a_reason_and_no_numbers(config):
    report = compare(config, parse_transform("resource_aware"))
    rows = {row["name"]: row for row in report["results"]}
    assert rows["grasp"]["heldout_metric"] is None
    assert rows["grasp"]["note"].startswith("transform 'resource_aware' does not apply: scores of group 'features.")
    assert "must be at least 0, got -" in rows["grasp"]["note"]
    assert rows["l1"]["heldout_metric"] is not None
    assert report["recommended"]["best"] != "grasp"


def test_what_cannot_rank_all_groups_has_no_global_ranking(tmp_path):
    source = (Path(__file__).parents[1] / "task_file.py").read_text()
    (tmp_path / "task.py").write_text(source.replace("nn.BatchNorm2d(16)", "nn.Identity()"))
    task = f"{tmp_path / 'task.py'}:small"
    report = compare(search_config(task=task, criteria=("l1", "bn_scale"), allocation="global"))
    assert report["results"][1]["note"] == "cannot rank all groups, and so not against each other"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("none", "none"),
        ("balanced", "balanced"),
        ("resource_aware", "resource_aware"),
        ("resource_aware:strength=1.0", "resource_aware"),
        ("resource_aware:strength=2", "resource_aware:strength=2.0"),
    ],
)
def test_reports_name_a_transform_with_what_differs_from_its_defaults(text, name):
    assert parse_transform(text).name == name


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("balance", "transform must be one of none, balanced, resource_aware, affine, got 'balance'; did you mean"),
        ("balanced:strength=1", "parameter of 'balanced' must be none, for it has none, got 'strength'"),
        ("resource_aware:strength=-1", "parameter 'strength' of 'resource_aware' must be at least 0, got -1.0"),
        ("resource_aware:strength=much", "parameter 'strength' of 'resource_aware' must be of type float, got 'much'"),
        ("resource_aware:lambda=1", "parameter of 'resource_aware' must be one of strength, got 'lambda'"),
        ("affine", "transform 'affine' must be given its lines as affine:file=FILE.json, got 'affine'"),
        ("affine:file=nowhere.json", "transform 'affine' cannot read 'nowhere.json': No such file"),
    ],
)
def test_a_wrong_transform_is_refused_before_any_work(capsys, text, complaint):
    assert run(["compare", "textures", "--allocation", "global", "--transform", text]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([], "does not hold lines for groups: document: Input should be an object"),
        ({"a": {"scale": 0}}, "a.scale: Input should be greater than 0"),
        ({"a": {"scael": 1}}, "a.scael: Extra inputs are not permitted"),
        ({"a": {"shift": "up"}}, "a.shift: Input should be a valid number"),
    ],
)
def test_lines_that_are_none_are_refused(tmp_path, content, complaint):
    with pytest.raises(InputError, match=complaint):
        lines(tmp_path, content)


def test_lines_for_a_group_that_there_is_not_are_refused(config, tmp_path):
    found = lines(tmp_path, {"features.1": {"shift": 1}})
    with pytest.raises(InputError, match=r"the network has no group 'features.1' to transform; did you mean 'features"):
        compare(config, found)


def test_a_transform_without_a_global_ranking_is_refused(capsys):
    assert run(["compare", "textures", "--transform", "balanced"]) == 2
    assert (
        "transform 'balanced' changes nothing with allocation 'uniform', where every group gives the same share: use "
        "allocation 'global'"
    ) in capsys.readouterr().err
    assert run(["compare", "textures", "--allocation", "globl"]) == 2
    assert "allocation must be 'global' or 'uniform', got 'globl'; did you mean 'global'?" in capsys.readouterr().err


def test_no_transform_fits_any_allocation():
    for allocation in ("uniform", "global"):
        Transform().check_allocation(allocation)
