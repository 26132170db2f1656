"""Every network is compensated in every grade: never worse than without, and nothing of it changes."""

import numpy as np
import pytest
import torch

from blend.compensation.correction import absorbed_means, compensation
from blend.compensation.sequential import sequential
from blend.pruning import PrunedNetwork, recalibrate
from blend.pruning.inference import InferenceNetwork

from . import NETWORKS, build, graph_of, inputs


def corrected_by(grade, model, graph, keep, images, absorbed=frozenset(), **settings):
    if grade == "sequential":
        return sequential(model, graph, keep, images.split(8), absorbed, **settings)[0].tensors
    return compensation(model, graph, images.split(8), grade, absorbed=absorbed)[0](keep).tensors


@pytest.mark.parametrize("name", NETWORKS)
def test_recalibrated_outputs_err_less(name):
    """As candidates are judged, of a network whose statistics are right: BatchNorm takes the means, not biases."""
    model, images = build(name), inputs(name, 64)
    recalibrate(model, [images])
    graph = graph_of(name)
    keep = np.random.default_rng(0).random(len(graph)) < 0.6
    keep[[where.start for where in graph.slices.values()]] = True
    network, absorbed = InferenceNetwork(model, graph, images), absorbed_means(graph)
    with torch.no_grad():
        expected = model(images)
        errors = {}
        for grade in ("none", "channel", "patch", "sequential"):
            settings = {"recalibrated": True} if grade == "sequential" else {}
            tensors = {} if grade == "none" else corrected_by(grade, model, graph, keep, images, absorbed, **settings)
            assert not {f"{layer}.bias" for layer in absorbed} & (set(tensors) - set(graph.shapes))
            errors[grade] = float((network.prune(keep, [images], tensors)(images) - expected).square().mean())
    # Layer by layer, errors add up otherwise than the grades see; what reads what really reaches it is ahead.
    assert max(errors["channel"], errors["patch"]) < 1.1 * errors["none"]
    assert errors["sequential"] < 0.9 * errors["none"]
    assert errors["sequential"] <= 1.01 * min(errors.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_err_less(name):
    model, images = build(name), inputs(name, 16)
    graph = graph_of(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    keep = np.random.default_rng(0).random(len(graph)) < 0.6
    keep[[where.start for where in graph.slices.values()]] = True
    network, errors = PrunedNetwork(model, graph), {}
    with torch.no_grad():
        expected = model(images)
        for grade in ("none", "channel", "patch", "sequential"):
            tensors = {} if grade == "none" else corrected_by(grade, model, graph, keep, images)
            errors[grade] = float((network.prune(keep, tensors)(images) - expected).square().mean())
            assert all(tensor.isfinite().all() for tensor in tensors.values())
        assert torch.equal(network.prune(np.ones_like(keep))(images), expected)
    assert max(errors["channel"], errors["sequential"]) < errors["none"]
    assert errors["sequential"] <= 1.1 * min(errors.values())  # what comes later errs differently, too
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet20", "plain", "conv1d", "shufflenet"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_fast_networks_take_corrections(name, precision):
    """Folded, recalibrated and cast, as candidates are, against a plain network with the same tensors."""
    model, images = build(name), inputs(name, 16)
    graph = graph_of(name)
    keep = np.random.default_rng(1).random(len(graph)) < 0.7
    keep[[where.start for where in graph.slices.values()]] = True
    tensors = corrected_by("channel", model, graph, keep, images)
    fast = InferenceNetwork(model, graph, images, precision)
    plain = PrunedNetwork(model, graph)
    with torch.no_grad():
        ready = images if precision is None else images.to(precision)
        found = fast.prune(keep, [ready], tensors)(ready).float()
        network = plain.prune(keep, tensors)
        network.load_state_dict(fast.statistics(), strict=False)
        expected = network(images)
        assert (found - expected).abs().max() <= (1e-4 if precision is None else 0.1) * expected.abs().max()
        fast.prune(keep, [ready], tensors)
        unpruned = fast.prune(np.ones_like(keep))(ready).float()
        assert (unpruned - model(images)).abs().max() <= (1e-4 if precision is None else 0.1) * expected.abs().max()
