"""In torchao's real structured sparsifier: the network that it makes smaller is the one that slicing makes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from blend.errors import InputError
from blend.identity import OtherWeightsWarning
from blend.pruning import PrunedNetwork
from criteria import ChannelGraph
from tests.networks import build, inputs

from .blends import blend_for

pytest.importorskip("torchao", reason="torchao is not installed")

from blend.adapters.torchao import BlendedSparsifier


def biased():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.PReLU(6),
        nn.MaxPool2d(2), nn.Conv2d(6, 5, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 7),
        nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 4),
    ).eval()  # fmt: skip


CASES = {
    "vgg_bn": (lambda: build("vgg_bn"), lambda: inputs("vgg_bn")),
    "resnet20": (lambda: build("resnet20"), lambda: inputs("resnet20")),
    "biased": (biased, lambda: torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))),
}


def made(name):
    factory, example = CASES[name]
    model, example = factory(), example()
    graph = ChannelGraph.build(model, example)
    return model, graph, example, blend_for(model, graph)


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("reduction", [0.2, 0.3])
@pytest.mark.parametrize("name", CASES)
def test_it_makes_the_very_network_that_slicing_makes(name, reduction):
    model, graph, example, blend = made(name)
    untouched = copy.deepcopy(model)
    sparsifier = BlendedSparsifier(blend, model, example, reduction)
    sparsifier.prepare(model, sparsifier.layers)
    sparsifier.step()
    smaller = sparsifier.prune()
    expected = PrunedNetwork(untouched, graph).extract(sparsifier.keep)
    assert shapes(smaller) == shapes(expected)
    with torch.no_grad():
        assert torch.allclose(smaller(example), expected(example), atol=1e-5)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in untouched.parameters())


@pytest.mark.parametrize("name", ["vgg_bn", "biased"])
def test_where_every_channel_has_a_chain_the_mask_is_the_blends_own(name):
    model, graph, example, blend = made(name)
    sparsifier = BlendedSparsifier(blend, model, example)
    assert sparsifier.left_alone == ()
    assert np.array_equal(sparsifier.keep, blend.keep_mask(graph))


def test_coupled_channels_stay_and_the_others_reach_the_reduction():
    model, graph, example, blend = made("resnet20")
    sparsifier = BlendedSparsifier(blend, model, example, 0.3)
    coupled = {group.name for group in graph.groups if len(group.producers) > 1}
    assert coupled <= set(sparsifier.left_alone) < {group.name for group in graph.groups}
    kept = {group.name: part.all() for group, part in graph.split(sparsifier.keep)}
    assert all(kept[name] for name in sparsifier.left_alone)
    with pytest.raises(InputError, match=r"reduction 0\.9 of macs cannot be reached: .* the largest possible is 0\."):
        BlendedSparsifier(blend, model, example, 0.9)


def test_masked_it_can_be_trained_before_it_is_made_smaller():
    model, _, example, blend = made("vgg_bn")
    sparsifier = BlendedSparsifier(blend, model, example)
    sparsifier.prepare(model, sparsifier.layers)
    sparsifier.step()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(example).square().mean().backward()
    optimiser.step()
    names = [layer["tensor_fqn"].removesuffix(".weight") for layer in sparsifier.layers]
    masked = {name: model.get_submodule(name).weight.detach().flatten(1) for name in names}
    smaller = sparsifier.prune()
    for name, filters in masked.items():
        assert len(smaller.get_submodule(name).weight) == int(filters.any(1).sum()) < len(filters)
    assert smaller(example).shape == (len(example), 4)


def test_what_does_not_fit_is_refused(tmp_path):
    model, _, example, blend = made("vgg_bn")
    blend.save(tmp_path / "a.blend.json")
    with pytest.raises(InputError, match="belongs to another network"):
        BlendedSparsifier(str(tmp_path / "a.blend.json"), build("resnet20"), inputs("resnet20"))
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.warns(OtherWeightsWarning):
        BlendedSparsifier(str(tmp_path / "a.blend.json"), model, example)


def test_a_network_that_cannot_be_traced_is_refused():
    class Branching(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.sum() < 1e9 else -x)

    model = Branching(*biased()).eval()
    example = CASES["biased"][1]()
    blend = blend_for(model, ChannelGraph.build(model, example))
    with pytest.raises(InputError, match=r"torchao prunes what torch\.fx can trace, and not this network: TraceError"):
        BlendedSparsifier(blend, model, example)


def test_layers_inside_what_cannot_be_traced_are_left_alone():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
            self.hidden, self.head = nn.Linear(16, 24), nn.Linear(24, 4)

        def forward(self, x):
            return self.head(self.hidden(self.encoder(x).mean(1)).relu())

    torch.manual_seed(0)
    model, example = Encoder().eval(), torch.randn(2, 5, 16)
    graph = ChannelGraph.build(model, example)
    untouched, blend = copy.deepcopy(model), blend_for(model, graph)
    sparsifier = BlendedSparsifier(blend, model, example, reduction=0.02)
    assert sparsifier.left_alone == ("encoder.linear1",)
    sparsifier.prepare(model, sparsifier.layers)
    sparsifier.step()
    with torch.no_grad():
        smaller, expected = sparsifier.prune(), PrunedNetwork(untouched, graph).extract(sparsifier.keep)
        assert torch.allclose(smaller(example), expected(example), atol=1e-5)
    assert smaller.hidden.out_features < 24
