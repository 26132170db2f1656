"""The conformance suite over networks of every kind: all criteria on all of them behind the slow marker."""

from functools import lru_cache

import pytest
import torch
from torch import nn

from criteria import CRITERIA, ChannelGraph, CriterionError
from criteria.conformance import conformance
from criteria.specimens import Specimen
from criteria.trial import scored

from . import NETWORKS, build, inputs
from .blocks import conv_bn

EXAMPLES = 12


def vgg_bn():
    features = [conv_bn(3, 5), nn.ReLU(), conv_bn(5, 6), nn.ReLU(), nn.MaxPool2d(2), conv_bn(6, 7), nn.ReLU()]
    return nn.Sequential(*features, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(28, 9), nn.ReLU(), nn.Linear(9, 4))


SHORTER = {"vgg_bn": vgg_bn}  # the built-in one has hundreds of channels even where it is narrow
FIXED = ("vit", "vit_mlp", "unet", "unet3d", "conv1d", "mlp", "plain")  # their sizes are what they are made for

NO_NORM = ("plain", "groupnorm", "convnext", "vit_mlp", "vit", "grouped_transposed", "input_coupled")
NO_MAPS = ("conv1d", "mlp", "convnext", "vit_mlp", "vit")
NOTHING_TO_READ = {
    "bn_scale": NO_NORM, "bn_taylor": NO_NORM, "hrank": NO_MAPS, "chip": NO_MAPS, "discriminant": ("unet", "unet3d"),
}  # fmt: skip
"""Criterion → networks in no group of which it finds what it needs."""

PAIRS = [(c.name, n) for c in CRITERIA for n in NETWORKS if n not in NOTHING_TO_READ.get(c.name, ())]


def few(pairs):
    """Each criterion on one network, going round, and on whatever network has not had its turn."""
    chosen = []
    for criterion in reversed(dict.fromkeys(criterion for criterion, _ in pairs)):  # the dearest last, on small ones
        networks = [network for name, network in pairs if name == criterion]
        turns = {network: sum(network == taken for _, taken in chosen) for network in networks}
        chosen.append((criterion, min(networks, key=turns.__getitem__)))
    return chosen


@lru_cache
def specimen(name):
    model = build(name, SHORTER.get(name)).double()
    images = inputs(name, EXAMPLES).double()
    images = images if name in FIXED else images[..., :8, :8]
    with torch.no_grad():
        outputs = model(images)
    targets = torch.arange(EXAMPLES) % outputs.shape[1]
    if outputs.ndim > 2:  # a class for each pixel
        targets = torch.randint(outputs.shape[1], outputs[:, 0].shape, generator=torch.Generator().manual_seed(0))
    return Specimen(name, model, ChannelGraph.build(model, images[:2]), images, targets)


def assert_conforms(criterion, network):
    result = conformance(criterion, on=[specimen(network)])
    assert result.passed, [f"{check.name}: {check.reason}" for check in result.failures]
    assert result.relative_cost > 0


@pytest.mark.parametrize(("criterion", "network"), few(PAIRS))
def test_conforms(criterion, network):
    assert_conforms(criterion, network)


@pytest.mark.slow
@pytest.mark.parametrize(("criterion", "network"), PAIRS)
def test_conforms_on_every_network(criterion, network):
    assert_conforms(criterion, network)


def test_each_criterion_and_each_network_has_its_turn():
    assert {criterion for criterion, _ in few(PAIRS)} == set(CRITERIA.names())
    assert {network for _, network in few(PAIRS)} == set(NETWORKS)


@pytest.mark.parametrize(("criterion", "network"), [(c, n) for c, names in NOTHING_TO_READ.items() for n in names])
def test_what_finds_nothing_to_read_says_of_which_layer(criterion, network):
    layers = {name for name, _ in specimen(network).model.named_modules() if name}
    with pytest.raises(CriterionError, match=rf"^criterion '{criterion}' needs .*; .* \(nor does any other") as refusal:
        scored(CRITERIA.get(criterion), specimen(network))
    assert any(f"'{layer}'" in str(refusal.value) for layer in layers)
