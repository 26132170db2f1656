import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from criteria import (
    CRITERIA,
    Criterion,
    CriterionError,
    GroupStats,
    Note,
    ScoreTable,
    cluster,
    collect,
    normalise,
    score,
    score_table,
)

from .tiny_networks import conv_net, images


def producer(layer, scores, channels=None, size=None, group="g"):
    """A view whose l1 scores are these."""
    weight = torch.tensor(scores, dtype=torch.float64)[:, None]
    channels = None if channels is None else np.array(channels)
    return GroupStats(group, layer, size or len(scores), channels=channels, weight=weight)


def l1_of(*views, combine="mean"):
    return score_table({"g": views}, ["l1"], combine=combine).get("l1", "g")


# --- scoring -------------------------------------------------------------------------------------------------------


def test_a_single_view_keeps_its_raw_scores():
    table = score_table({"g": [producer("a", [3.0, 1.0, 2.0])]}, ["l1", CRITERIA.get("fpgm")])
    assert table.criteria == ("l1", "fpgm")
    assert table.groups == ("g",)
    scores = table.get("l1", "g")
    assert scores.dtype == np.float64
    assert scores.tolist() == [3, 1, 2]
    assert table.usable("g") == ("l1", "fpgm")
    assert table.notes == ()


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("mean", [7, 3, 5]),  # of (1.5, 0.5, 1) and (1.3, 0.7, 1), times the mean of 2 and 8
        ("sum", [13.4, 6.6, 10]),
        ("max", [10.4, 5.6, 8]),
        ("first", [3, 1, 2]),
    ],
)
def test_several_views_by_hand(combine, expected):
    first, second = producer("a", [3.0, 1.0, 2.0]), producer("b", [10.4, 5.6, 8.0])
    np.testing.assert_allclose(l1_of(first, second, combine=combine), expected, rtol=1e-12)


def test_the_mean_of_scaled_views_keeps_the_unit():
    views = producer("a", [3.0, 1.0, 2.0]), producer("b", [5.0, 9.0, 1.0])
    thousand = producer("a", [3e3, 1e3, 2e3]), producer("b", [5e3, 9e3, 1e3])
    np.testing.assert_allclose(l1_of(*thousand), 1000 * l1_of(*views), rtol=1e-12)
    louder = producer("a", [3.0, 1.0, 2.0]), producer("b", [5e3, 9e3, 1e3])
    np.testing.assert_array_equal(np.argsort(l1_of(*louder)), np.argsort(l1_of(*views)))
    np.testing.assert_allclose(l1_of(*views).mean(), 3.5)


def test_a_silent_view_changes_no_ranking():
    scores = l1_of(producer("a", [3.0, 1.0, 2.0]), producer("b", [0.0, 0.0, 0.0]))
    np.testing.assert_allclose(scores / scores.max(), [1, 1 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("mean", [2.5 / 1.5, 2.5 * 2 / 3.5, 2.5 * (2 / 1.5 + 5 / 3.5) / 2]),  # means 1.5 and 3.5, and 2.5 of both
        ("sum", [1, 2, 7]),
        ("max", [1, 2, 5]),
    ],
)
def test_views_that_carry_a_part_count_where_they_do(combine, expected):
    first, second = producer("a", [1.0, 2.0], [0, 2], 3), producer("b", [2.0, 5.0], [1, 2], 3)
    np.testing.assert_allclose(l1_of(first, second, combine=combine), expected, rtol=1e-12)


def test_channels_that_no_view_carries_have_no_score():
    first, second = producer("a", [1.0, 2.0], [0, 2], 3), producer("b", [2.0, 5.0], [1, 2], 3)
    table = score_table({"g": [first, second]}, ["l1"], combine="first")
    assert table.get("l1", "g") is None
    assert table.notes == (Note("l1", "g", "degenerate: 1 of 3 scores are not finite"),)


def test_views_that_lack_the_need_do_not_count():
    scaled = GroupStats("g", "a", 2, gamma=torch.tensor([[1.0], [-3.0]]), beta=torch.zeros(2, 1))
    bare = GroupStats("g", "b", 2, weight=torch.ones(2, 1))
    table = score_table({"g": [bare, scaled], "h": [bare]}, ["bn_scale"])
    assert table.get("bn_scale", "g").tolist() == [1, 3]
    assert table.get("bn_scale", "h") is None
    assert table.notes == (Note("bn_scale", "h", "criterion 'bn_scale' needs BatchNorm after 'b'; there is none"),)


def test_a_criterion_that_fits_nowhere_is_an_error():
    stats = {"g": [producer("a", [1.0, 2.0])], "h": [producer("b", [1.0, 2.0])]}
    with pytest.raises(CriterionError, match="criterion 'bn_scale' needs BatchNorm after 'a'; there is none"):
        score_table(stats, ["l1", "bn_scale"])
    with pytest.raises(CriterionError, match="criterion 'apoz' needs a consumer of the group; there is none"):
        score_table(stats, ["apoz"])


def test_a_criterion_that_fits_nowhere_may_have_a_note_in_each_group():
    stats = {"g": [producer("a", [1.0, 2.0])], "h": [producer("b", [1.0, 2.0])]}
    table = score_table(stats, ["l1", "bn_scale"], strict=False)
    assert table.usable("g") == table.usable("h") == ("l1",)
    assert [(note.criterion, note.group) for note in table.notes] == [("bn_scale", "g"), ("bn_scale", "h")]


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([2.0, 2.0, 2.0], "degenerate: all 3 scores are 2"),
        ([0.0, 0.0, 0.0], "degenerate: all 3 scores are 0"),
        ([1.0, 1.0 + 1e-8, 1.0], "degenerate: all 3 scores are 1"),
        ([1.0, math.nan, 2.0], "degenerate: 1 of 3 scores are not finite"),
        ([1.0, math.inf, math.inf], "degenerate: 2 of 3 scores are not finite"),
        ([4.0], "degenerate: all 1 scores are 4"),
    ],
)
def test_degenerate_scores_are_set_aside(scores, reason):
    table = score_table({"g": [producer("a", scores)], "h": [producer("b", [1.0, 1.00001])]}, ["l1"])
    assert table.get("l1", "g") is None
    assert table.usable("g") == ()
    assert table.usable("h") == ("l1",)
    assert table.notes == (Note("l1", "g", reason),)


def test_a_view_that_is_not_finite_spoils_its_group():
    table = score_table({"g": [producer("a", [1.0, math.nan]), producer("b", [1.0, 2.0])]}, ["l1"])
    assert table.notes[0].reason == "degenerate: 2 of 2 scores are not finite"


def test_scores_of_another_shape_are_an_error():
    short = Criterion("short", "test", frozenset({"weight"}), "none", lambda stats: stats.weight[1:, 0])
    with pytest.raises(CriterionError, match=r"'short' must return a tensor of shape \(3,\) for 'a', got \(2,\)"):
        score_table({"g": [producer("a", [1.0, 2.0, 3.0])]}, [short])


def test_unknown_choices():
    with pytest.raises(ValueError, match="combine must be one of mean, sum, max, first, got 'median'"):
        score_table({}, [], combine="median")
    with pytest.raises(ValueError, match="did you mean 'l1'"):
        score_table({}, ["l11"])
    table = score_table({"g": [producer("a", [1.0, 2.0])]}, ["l1"])
    with pytest.raises(CriterionError, match="criterion must be among l1, got 'l2'"):
        table.get("l2", "g")
    with pytest.raises(CriterionError, match="group must be among g, got 'h'"):
        table.get("l1", "h")


# --- the file ------------------------------------------------------------------------------------------------------


def test_a_saved_table_comes_back_bit_for_bit(tmp_path):
    model, net_graph = conv_net()
    table = score(model, net_graph, [images()], F.cross_entropy, CRITERIA, metric=lambda out, y: out[:, 0] * y)
    path = tmp_path / "scores.table"
    table.save(path)
    again = ScoreTable.load(path)
    assert (again.criteria, again.groups, again.notes) == (table.criteria, table.groups, table.notes)
    assert table.notes
    for group in table.groups:
        assert again.usable(group) == table.usable(group)
        for criterion in table.usable(group):
            assert again.get(criterion, group).tobytes() == table.get(criterion, group).tobytes()
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first


def test_a_file_that_would_run_code_is_refused(tmp_path):
    with (tmp_path / "evil.npz").open("wb") as file:
        np.savez(file, header=np.array([{"criteria": []}], dtype=object))
    with pytest.raises(CriterionError, match="allow_pickle"):
        ScoreTable.load(tmp_path / "evil.npz")


def test_a_table_as_json():
    table = ScoreTable(["l1", "l2"], ["a/b"], {("l1", "a/b"): np.array([0.1, 2])}, [Note("l2", "a/b", "why")])
    assert json.loads(json.dumps(table.to_dict())) == {
        "criteria": ["l1", "l2"],
        "groups": ["a/b"],
        "scores": {"a/b": {"l1": [0.1, 2]}},
        "notes": [{"criterion": "l2", "group": "a/b", "reason": "why"}],
    }


# --- normalisation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("rank", [0.625, 0.125, 0.875, 0.375]),
        ("minmax", [0.25, 0, 1, 0]),
        ("z", np.array([-0.25, -1.25, 2.75, -1.25]) / math.sqrt(10.75 / 4)),
    ],
)
def test_normalised_by_hand(method, expected):
    scores = np.array([2.0, 1.0, 5.0, 1.0])
    np.testing.assert_allclose(normalise(scores, method), expected, rtol=1e-12)
    assert scores.tolist() == [2, 1, 5, 1]


def test_ranks_lie_inside_of_the_unit_interval_and_break_ties_by_index():
    assert normalise(np.zeros(4), "rank").tolist() == [0.125, 0.375, 0.625, 0.875]
    ranks = normalise(np.random.default_rng(0).normal(size=100).round(1), "rank")
    assert sorted(ranks) == pytest.approx((np.arange(100) + 0.5) / 100)
    many_ties = np.tile([3.0, 1.0, 2.0], 50)
    assert all(np.all(np.diff(normalise(many_ties, "rank")[start::3]) > 0) for start in range(3))


@pytest.mark.parametrize("method", ["rank", "minmax", "z"])
def test_normalising_keeps_the_order(method):
    scores = np.random.default_rng(0).normal(size=50)
    np.testing.assert_array_equal(np.argsort(normalise(scores, method)), np.argsort(scores))
    np.testing.assert_allclose(normalise(7 * scores - 3, method), normalise(scores, method), rtol=1e-9, atol=1e-12)


def test_what_cannot_be_normalised():
    with pytest.raises(ValueError, match="method must be one of rank, minmax, z, got 'softmax'"):
        normalise(np.arange(3.0), "softmax")
    for method in ("minmax", "z"):
        with pytest.raises(CriterionError, match=f"scores must not be constant for method '{method}'"):
            normalise(np.ones(3), method)
    for bad in (np.array([1, math.nan]), np.ones((2, 2)), np.array(1.0)):
        with pytest.raises(ValueError, match="scores must be a finite vector"):
            normalise(bad, "rank")


# --- criteria with parameters --------------------------------------------------------------------------------------


def test_a_configured_criterion_is_a_key_everywhere(tmp_path):
    model, net_graph = conv_net(8)
    specifications = ["obd", "obd:probes=03", "entropy:bins=5", "entropy"]
    criteria = [CRITERIA.get(specification) for specification in specifications]
    needs = frozenset().union(*(criterion.needs for criterion in criteria))
    table = score_table(collect(model, net_graph, [images()], F.cross_entropy, needs), specifications)
    assert table.criteria == ("obd", "obd:probes=3", "entropy:bins=5", "entropy")
    assert not np.array_equal(table.get("obd", "stem"), table.get("obd:probes=3", "stem"))
    table.save(tmp_path / "table")
    assert np.array_equal(
        ScoreTable.load(tmp_path / "table").get("entropy:bins=5", "stem"), table.get("entropy:bins=5", "stem")
    )
    named = {name for found in cluster(table, "stem", k=2) for name in found.criteria}
    assert named == set(table.usable("stem"))
    assert json.loads(json.dumps(table.to_dict()))["criteria"] == list(table.criteria)


def test_the_same_criterion_twice_is_refused():
    with pytest.raises(ValueError, match="criteria must differ from one another, got 'obd' twice"):
        score_table({}, ["obd", "l1", "obd:probes=8"])


def test_nor_is_it_taken_twice_where_it_has_passes_of_its_own():
    model, graph = conv_net()
    with pytest.raises(ValueError, match="criteria must differ from one another, got 'cap' twice"):
        score(model, graph, [images(4)], F.cross_entropy, ["l1", "cap", "cap:ridge=0.01"])
