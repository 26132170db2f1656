"""What is saved, loaded into a fresh network of the class, computes what the masked network does."""

import numpy as np
import pytest
import torch

from blend.budget import CostModel, floors, keep_mask
from blend.identity import NetworkIdentity
from blend.pruned.saved import RECORD, WEIGHTS, PruningRecord, cuts, load_pruned, removed_channels, write_weights
from blend.pruning import PrunedNetwork
from criteria import ChannelGraph

from . import NETWORKS, build, inputs

REDUCTIONS = (0.3, 0.5, 0.7)
FEW = [(name, REDUCTIONS[number % 3]) for number, name in enumerate(NETWORKS)]
ALL = [(name, reduction) for name in NETWORKS for reduction in REDUCTIONS]


def chosen(graph, reduction):
    """A random mask at a reduction, or as near to it as the network allows."""
    rng = np.random.default_rng(0)
    scores = {group.name: rng.random(group.size) for group in graph.groups}
    cost = CostModel(graph)
    least = np.concatenate([np.argsort(np.argsort(-scores[g.name])) < floors(graph)[g.name] for g in graph.groups])
    return keep_mask(graph, scores, min(reduction, cost.reduction(least)), cost)


def save(network, model, graph, keep, folder):
    write_weights(network, graph.fingerprint, folder / WEIGHTS)
    record = PruningRecord(
        groups=removed_channels(graph, keep), cuts=cuts(graph, keep, model),
        network=NetworkIdentity(layout=graph.fingerprint, weights="", shapes=graph.shapes),
        criterion={}, pruning={}, stages=(), task={}, versions={},
    )  # fmt: skip
    (folder / RECORD).write_text(record.model_dump_json())


def check(name, reduction, folder):
    model, images = build(name), inputs(name)
    graph = ChannelGraph.build(model, images)
    keep = chosen(graph, reduction)
    assert not keep.all()
    save(PrunedNetwork(model, graph).extract(keep), model, graph, keep, folder)
    loaded = load_pruned(folder, lambda: build(name, seed=1))
    with torch.no_grad():
        masked = PrunedNetwork(model, graph).mask(keep)(images)
        difference = (loaded(images) - masked).abs().max()
    assert difference <= 1e-4 * masked.abs().max().clamp_min(1)
    assert sum(p.numel() for p in loaded.parameters()) == CostModel(graph, "params")(keep)


@pytest.mark.parametrize(("name", "reduction"), FEW)
def test_saved_network_is_the_masked_one(name, reduction, tmp_path):
    check(name, reduction, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reduction"), ALL)
def test_every_saved_network_is_the_masked_one(name, reduction, tmp_path):
    check(name, reduction, tmp_path)
