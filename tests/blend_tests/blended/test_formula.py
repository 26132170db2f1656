import numpy as np
import pytest

from blend.blended.formula import Blender, GroupFormula, normalised, reproducing_offsets
from blend.budget import CostModel, keep_mask
from blend.errors import InputError
from criteria import ChannelGraph, ScoreTable

from ..small_networks import graph_of, random_scores, tiny, tiny_images

TABLE = ScoreTable(
    ["a", "b"],
    ["g", "h"],
    {
        ("a", "g"): np.array([10.0, 30.0, 20.0, 40.0]),
        ("b", "g"): np.array([4.0, 1.0, 2.0, 0.0]),
        ("a", "h"): np.array([0.0, 5.0]),
    },
)


def scores(normalisation="rank", offset=0.0, **factors):
    blender = Blender(TABLE, normalisation)
    return blender.scores({"g": GroupFormula(normalised(factors), offset)})["g"].tolist()


def test_factors_are_proportions():
    assert normalised({"a": 3.0, "b": 0.0, "c": 1.0}) == (("a", 0.75), ("c", 0.25))
    assert normalised({"a": 0.3, "b": 0.1}) == normalised({"a": 0.6, "b": 0.2})
    assert normalised({"a": 0.0, "b": 0.0}) == (("a", 0.5), ("b", 0.5))
    assert normalised({"a": 0.0, "b": 0.0}) == normalised({"a": 1.0, "b": 1.0})
    assert normalised({"a": -3.0, "b": 1.0}) == (("a", -0.75), ("b", 0.25))


def test_blends_solved_by_hand():
    assert scores(a=1.0) == [0.125, 0.625, 0.375, 0.875]
    assert scores(b=0.2) == [0.875, 0.375, 0.625, 0.125]
    # Ranks a = (1, 5, 3, 7) / 8 and b = (7, 3, 5, 1) / 8 with 3 : 1 give (10, 18, 14, 22) / 32.
    assert Blender(TABLE).blended("g", GroupFormula((("a", 0.75), ("b", 0.25)))).tolist() == [
        10 / 32,
        18 / 32,
        14 / 32,
        22 / 32,
    ]
    assert scores(a=0.3, b=0.1) == [0.125, 0.625, 0.375, 0.875]
    # Equal factors: all ranks are 4 / 8, so that the order of the channels decides.
    assert scores(a=0.5, b=0.5) == [0.125, 0.375, 0.625, 0.875]
    # Min-max: a = (0, 2/3, 1/3, 1), b = (1, 1/4, 1/2, 0), summed (1, 11/12, 10/12, 1): of equals the last.
    assert scores("minmax", a=1.0, b=1.0) == [0.625, 0.375, 0.125, 0.875]
    # z: a = (-3, 1, -1, 3) / √5, b = (9, -3, 1, -7) / √35 (mean 7/4, deviation √35/4); factors 1 : 3.
    expected = np.array([-3, 1, -1, 3]) / 5**0.5 + 3 * np.array([9, -3, 1, -7]) / 35**0.5
    blended = Blender(TABLE, "z").blended("g", GroupFormula((("a", 0.25), ("b", 0.75))))
    np.testing.assert_allclose(blended, expected / 4, rtol=1e-14)  # a few roundings
    assert scores("z", a=1.0, b=3.0) == [0.875, 0.375, 0.625, 0.125]


def test_only_the_offset_compares_groups():
    formula = {"g": GroupFormula((("a", 1.0),), 0.25), "h": GroupFormula((("a", 1.0),), -0.5)}
    both = Blender(TABLE).scores(formula)
    assert both["g"].tolist() == [0.375, 0.875, 0.625, 1.125]
    assert both["h"].tolist() == [-0.25, 0.25]


def test_a_criterion_alone_keeps_the_order_that_normalising_would_lose():
    tiny_scores = np.array([3e-20, 1e-20, 2e-20, 1.0])
    table = ScoreTable(["fine"], ["g"], {("fine", "g"): tiny_scores})
    blender = Blender(table, "z")
    assert len(set(blender.normalised_part("fine", "g"))) == 2  # rounding has made three of them equal
    ranked = blender.scores({"g": GroupFormula((("fine", 1.0),))})["g"]
    assert ranked.tolist() == [0.625, 0.125, 0.375, 0.875]


def test_a_criterion_without_scores_is_refused():
    for speaking in ((("b", 1.0),), (("a", 0.5), ("b", 0.5))):
        with pytest.raises(InputError, match="criterion 'b' has no usable scores in group 'h'"):
            Blender(TABLE).scores({"h": GroupFormula(speaking)})


def test_reproducing_offsets_solved_by_hand():
    graph = ChannelGraph.build(tiny(), tiny_images(2))
    keep = np.array([True, False, False, True, True, True, False])
    assert reproducing_offsets(graph, keep) == {"stem": -0.5, "conv": -1 / 3}


@pytest.mark.parametrize("reduction", [0.2, 0.5, 0.75])
def test_reproducing_offsets_take_as_many_channels_as_the_mask(reduction):
    _, graph = graph_of("resnet20")
    cost, raw = CostModel(graph), random_scores(graph)
    keep = keep_mask(graph, raw, reduction, cost)
    table = ScoreTable(["raw"], list(raw), {("raw", group): values for group, values in raw.items()})
    offsets = reproducing_offsets(graph, keep)
    formula = {group: GroupFormula((("raw", 1.0),), offset) for group, offset in offsets.items()}
    assert len({round(offset, 6) for offset in offsets.values()}) > 3
    assert np.array_equal(keep_mask(graph, Blender(table).scores(formula), reduction, cost), keep)
