import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from blend.budget import CostModel, check_reduction, floors, is_reachable, keep_mask, uniform
from blend.errors import InputError
from blend.pruning import PrunedNetwork
from criteria import ChannelGraph

from .small_networks import graph_of, images, macs, random_keep, random_scores, tiny, tiny_images

TINY = ChannelGraph.build(tiny(), tiny_images(2))
MACS, PARAMS = CostModel(TINY, "macs"), CostModel(TINY, "params")


def mask(stem, conv):
    return np.array([bit == "1" for bit in stem + conv])


def test_cost_solved_by_hand():
    # stem 9 · a, conv 9 · a · b, each at 16 positions; head 2 · b
    assert MACS.full == 16 * (9 * 4 + 9 * 4 * 3) + 2 * 3
    assert MACS(mask("0110", "101")) == 16 * (9 * 2 + 9 * 2 * 2) + 2 * 2
    # stem 9 a, norm 2 a, conv 9 a b, head 2 b + 2
    assert PARAMS.full == 9 * 4 + 2 * 4 + 9 * 4 * 3 + 2 * 3 + 2
    assert PARAMS(mask("1000", "011")) == 9 + 2 + 18 + 4 + 2
    assert PARAMS.reduction(mask("1000", "011")) == 1 - 35 / 160


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2"])
def test_cost_is_that_of_the_smaller_network(name):
    model, graph = graph_of(name)
    network = PrunedNetwork(model, graph)
    costs = {kind: CostModel(graph, kind) for kind in ("macs", "params")}
    for seed in range(4):
        keep = random_keep(graph, seed, share=0.3 + 0.2 * seed)
        extracted = network.extract(keep)
        assert costs["macs"](keep) == macs(extracted, images(2))
        assert costs["params"](keep) == sum(parameter.numel() for parameter in extracted.parameters())
    assert costs["macs"].full == macs(model, images(2))
    assert costs["macs"].reduction(np.ones(len(graph), dtype=bool)) == 0.0


def test_cost_of_concatenated_flattened_and_repeated_layers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(6, 6, 3, padding=1)
            self.fixed, self.head = nn.Conv2d(6, 3, 4, stride=4), nn.Linear(48, 2)

        def forward(self, x):
            joined = torch.cat([self.a(x), self.b(x)], 1)
            return self.head(self.fixed(self.c(self.c(joined))).flatten(1))

    model = Net().eval()
    graph = ChannelGraph.build(model, images(2), ignore=["a", "b", "c"])
    assert [group.name for group in graph.groups] == ["fixed"]
    keep = np.array([True, False, True])
    for kind, count in (
        ("macs", lambda m: macs(m, images(2))),
        ("params", lambda m: sum(map(torch.numel, m.parameters()))),
    ):
        assert CostModel(graph, kind)(keep) == count(PrunedNetwork(model, graph).extract(keep))


def test_unknown_cost():
    with pytest.raises(InputError, match="cost must be one of macs, params, got 'mac'; did you mean 'macs'"):
        CostModel(TINY, "mac")


def test_floors():
    assert floors(TINY, 0.5) == {"stem": 2, "conv": 2}
    assert floors(TINY, 0.0) == {"stem": 1, "conv": 1}
    assert floors(TINY) == {"stem": 1, "conv": 1}


def test_a_mask_solved_by_hand():
    scores = {"stem": np.array([3.0, 1.0, 4.0, 2.0]), "conv": np.array([2.5, 0.5, 9.0])}
    # In order of removal: conv 1, stem 1, stem 3, conv 0, stem 0; full cost 160 parameters.
    costs = [PARAMS(mask(*kept)) for kept in (("1111", "101"), ("1011", "101"), ("1010", "101"))]
    assert costs == [122, 93, 64]
    assert keep_mask(TINY, scores, 1 - 122 / 160, PARAMS).tolist() == mask("1111", "101").tolist()
    assert keep_mask(TINY, scores, 1 - 93 / 160, PARAMS).tolist() == mask("1011", "101").tolist()
    # Three must go for 84, which overshoots to 64; conv 1, the first to go, has its place back.
    assert PARAMS(mask("1010", "111")) == 84
    assert keep_mask(TINY, scores, 1 - 84 / 160, PARAMS).tolist() == mask("1010", "111").tolist()


def removable(keep, scores, floor):
    """The removed channels of each group are the lowest ones, and the floor stays."""
    for group, part in TINY.split(keep):
        if group.name not in scores:
            assert part.all()
            continue
        assert part.sum() >= floor[group.name]
        order = np.argsort(scores[group.name], kind="stable")
        assert np.array_equal(np.sort(order[: (~part).sum()]), np.flatnonzero(~part))


numbers = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, -1.0]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    scores=st.fixed_dictionaries({"stem": st.lists(numbers, min_size=4, max_size=4)},
                                 optional={"conv": st.lists(numbers, min_size=3, max_size=3)}),
    reduction=st.floats(0.001, 0.999),
    kind=st.sampled_from(["macs", "params"]),
    share=st.sampled_from([0.0, 0.3, 0.5]),
)  # fmt: skip
def test_masks_reach_the_reduction_and_are_minimal(scores, reduction, kind, share):
    scores = {name: np.array(values) for name, values in scores.items()}
    cost, floor = CostModel(TINY, kind), floors(TINY, share)
    if not is_reachable(TINY, scores, reduction, cost, floor):
        with pytest.raises(InputError, match=r"cannot be reached"):
            keep_mask(TINY, scores, reduction, cost, floor)
        return
    keep = keep_mask(TINY, scores, reduction, cost, floor)
    assert cost.reduction(keep) >= reduction
    for channel in np.flatnonzero(~keep):
        more = keep.copy()
        more[channel] = True
        assert cost.reduction(more) < reduction
    removable(keep, scores, floor)
    assert np.array_equal(keep, keep_mask(TINY, scores, reduction, cost, floor))


def test_masks_of_a_real_network_are_minimal_too():
    _, graph = graph_of("resnet20")
    cost, scores = CostModel(graph), random_scores(graph)
    for reduction in (0.1, 0.5, 0.8):
        keep = keep_mask(graph, scores, reduction, cost)
        assert cost.reduction(keep) >= reduction
        for channel in np.flatnonzero(~keep):
            more = keep.copy()
            more[channel] = True
            assert cost.reduction(more) < reduction


def test_of_equal_scores_the_first_channels_go():
    scores = {"stem": np.zeros(4), "conv": np.zeros(3)}
    keep = keep_mask(TINY, scores, 0.3, PARAMS)
    assert keep.tolist() == mask("0011", "111").tolist()


def test_a_group_without_scores_stays_whole():
    keep = keep_mask(TINY, {"conv": np.arange(3.0)}, 0.4, PARAMS)
    assert keep.tolist() == mask("1111", "001").tolist()


def test_scores_are_not_written_to():
    scores = {"stem": np.arange(4.0), "conv": np.arange(3.0)}
    keep_mask(TINY, scores, 0.5, MACS)
    assert scores["stem"].tolist() == [0, 1, 2, 3]


def test_an_impossible_reduction_says_what_is_possible():
    scores = {"stem": np.arange(4.0), "conv": np.arange(3.0)}
    most = PARAMS.reduction(mask("0001", "001"))
    assert most == 1 - 24 / 160
    with pytest.raises(
        InputError, match=r"reduction 0\.9 of params cannot be reached: .* the largest possible is 0\.850"
    ):
        keep_mask(TINY, scores, 0.9, PARAMS)
    assert keep_mask(TINY, scores, 0.85, PARAMS).sum() == 2
    with pytest.raises(InputError, match=r"largest possible is 0\.237"):
        keep_mask(TINY, {"conv": np.arange(3.0)}, 0.9, PARAMS, {"conv": 2})


@pytest.mark.parametrize("reduction", [0.0, 1.0, 1.3, -0.5, float("nan")])
def test_reductions_outside_of_the_open_interval_are_refused(reduction):
    for refuse in (check_reduction, lambda r: keep_mask(TINY, {}, r, MACS)):
        with pytest.raises(InputError, match=rf"reduction must be in \(0, 1\), got {reduction:g}"):
            refuse(reduction)


def test_uniform_takes_the_same_share_of_every_group():
    _, graph = graph_of("mobilenetv2")
    scores = {name: values * 10**i for i, (name, values) in enumerate(random_scores(graph).items())}
    keep = keep_mask(graph, uniform(scores), 0.5, CostModel(graph), floors(graph, 0.0))
    left = np.array([part.mean() for _, part in graph.split(keep)])
    sizes = np.array([group.size for group in graph.groups])
    # One ranking of (rank + 1/2) / n: shares differ by at most one channel, and the refund may give one more back.
    share = np.median(left)
    assert np.all(np.abs(left - share) <= 2 / sizes)
    for group, part in graph.split(keep):
        lowest = np.argsort(scores[group.name])[: (~part).sum()]
        assert np.array_equal(np.sort(lowest), np.flatnonzero(~part))
