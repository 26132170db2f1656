"""Random networks: whatever channels the graph calls prunable, slicing them is the same as masking them."""

import re

import numpy as np
import pytest
import torch

from blend.budget import CostModel
from blend.errors import InputError
from blend.pruning import PrunedNetwork, check_slicing
from criteria import ChannelGraph, GraphError

from .random_networks import Draw

pytestmark = pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")  # it is not used
FAST, MANY = 80, 1600
WRITTEN_FAST, WRITTEN_MANY = 20, 400


def random_keep(graph, rng):
    keep = rng.random(len(graph)) < rng.uniform(0.3, 0.8)
    for group, part in graph.split(keep):
        part[rng.permutation(group.size)[:2]] = [True, False]
    return keep


def built(draw):
    """A random network, an input, and its graph; none where it has no prunable group, and says so."""
    model, inputs = draw.network(), draw.inputs()
    try:
        return model, inputs, ChannelGraph.build(model, inputs)
    except GraphError as refusal:
        if "the network has no prunable channel group" not in str(refusal):
            raise
        return model, inputs, None


def disagreement(model, inputs, graph, seed):
    """The largest difference between masked and sliced outputs, relative to the largest output."""
    network, cost, rng = PrunedNetwork(model, graph), CostModel(graph, "params"), np.random.default_rng(seed)
    worst = 0.0
    for _ in range(2):
        keep = random_keep(graph, rng)
        with torch.no_grad():
            masked = network.mask(keep)(inputs)
            try:
                sliced = network.prune(keep)(inputs)
            except RuntimeError:  # shapes do not fit
                return np.inf
        assert cost(keep) == sum(parameter.numel() for parameter in network.shell.parameters())
        worst = max(worst, float((masked - sliced).abs().max() / masked.abs().max().clamp_min(1e-12)))
    return worst


def check(draws, refusals):
    """Masked and sliced agree, or the check before a run refuses the network: so many at most. Few have no group."""
    channels, refused = [], []
    for number, draw in enumerate(draws):
        model, inputs, graph = built(draw)
        channels.append(len(graph or ()))
        if graph is not None and not disagreement(model, inputs, graph, number) < 1e-9:
            names = "|".join(re.escape(group.name.partition("#")[0]) for group in graph.groups)
            with pytest.raises(InputError, match=rf"is not understood: leave it alone with --ignore '({names})'"):
                check_slicing(model, graph, inputs)
            refused.append((number, model))
    assert len(refused) <= refusals, refused
    assert np.count_nonzero(channels) > 0.75 * len(channels)
    assert np.mean(channels) > 8
    return len(refused)


def test_masked_and_sliced_agree():
    check(map(Draw, range(FAST)), refusals=0)


def test_sizes_that_are_written_down_are_found_out():
    assert check((Draw(seed, written=True) for seed in range(WRITTEN_FAST)), refusals=WRITTEN_FAST // 2)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(FAST, FAST + MANY, 80))
def test_masked_and_sliced_agree_on_many(start):
    """One in a hundred has a shuffle of as many groups as there are units left in it, which cannot be foreseen."""
    check(map(Draw, range(start, start + 80)), refusals=1)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(WRITTEN_FAST, WRITTEN_FAST + WRITTEN_MANY, 40))
def test_sizes_that_are_written_down_are_found_out_in_many(start):
    check((Draw(seed, written=True) for seed in range(start, start + 40)), refusals=20)
