import numpy as np
import pytest

from blend.budget import CostModel, floors, keep_mask
from blend.errors import InputError
from blend.pruned.rounding import rounded_keep_mask
from criteria import ChannelGraph

from ..small_networks import graph_of, random_scores, tiny, tiny_images


def kept(graph, keep):
    return {group.name: int(part.sum()) for group, part in graph.split(keep)}


@pytest.mark.parametrize(("reduction", "multiple"), [(0.2, 2), (0.5, 2), (0.7, 2), (0.2, 4), (0.45, 4)])
def test_every_group_keeps_a_multiple_or_all(reduction, multiple):
    _, graph = graph_of("resnet20")
    cost, scores = CostModel(graph), random_scores(graph)
    keep = rounded_keep_mask(graph, scores, reduction, cost, floors(graph), multiple)
    assert cost.reduction(keep) >= reduction
    for group, part in graph.split(keep):
        assert part.all() or part.sum() % multiple == 0
        assert scores[group.name][part].min() > scores[group.name][~part].max(initial=-np.inf)


def test_no_block_can_be_given_back():
    _, graph = graph_of("resnet20")
    cost, scores = CostModel(graph), random_scores(graph, 3)
    keep = rounded_keep_mask(graph, scores, 0.5, cost, floors(graph), 2)
    for group in graph.groups:
        where, values = graph.slices[group.name], scores[group.name]
        gone = np.flatnonzero(~keep[where])
        if len(gone):
            more = keep.copy()
            more[where.start + gone[np.argsort(values[gone])[-2:]]] = True
            assert cost.reduction(more) < 0.5


def test_ones_are_what_no_rounding_gives():
    _, graph = graph_of("resnet20")
    cost, scores = CostModel(graph), random_scores(graph)
    plain = keep_mask(graph, scores, 0.4, cost)
    np.testing.assert_array_equal(rounded_keep_mask(graph, scores, 0.4, cost, floors(graph), 1), plain)


def test_solved_by_hand():
    graph = ChannelGraph.build(tiny(), tiny_images(2))
    scores = {"stem": np.array([0.1, 0.9, 0.3, 0.8]), "conv": np.array([0.5, 0.2, 0.7])}
    # Blocks: stem 0 and 2, mean 0.2; conv 1 alone, mean 0.2, 3 being no multiple; the first one is enough.
    cost = CostModel(graph, "params")
    keep = rounded_keep_mask(graph, scores, 0.3, cost, floors(graph), 2)
    assert kept(graph, keep) == {"stem": 2, "conv": 3}
    np.testing.assert_array_equal(keep[:4], [False, True, False, True])


@pytest.mark.parametrize(
    ("multiple", "reduction", "complaint"),
    [
        (8, 0.3, r"at most the number of channels of every layer that is pruned, got 8: 'stem' has 4; .*--ignore"),
        (0, 0.3, "round-to must be at least 1, got 0"),
        (2, 0.9, r"reduction 0\.9 of params cannot be reached: .* the largest possible is 0\.600"),
    ],
)
def test_refusals(multiple, reduction, complaint):
    graph = ChannelGraph.build(tiny(), tiny_images(2))
    with pytest.raises(InputError, match=complaint):
        rounded_keep_mask(
            graph, random_scores(graph), reduction, CostModel(graph, "params"), floors(graph), multiple
        )
