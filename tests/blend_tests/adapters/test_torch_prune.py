"""In ``torch.nn.utils.prune``: masked as if the channels were not there, and permanent zeros afterwards."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from blend.adapters.torch_prune import BlendedStructured, mask, permanent
from blend.errors import InputError
from blend.pruning import PrunedNetwork
from criteria import ChannelGraph
from tests.networks import build, inputs

from .blends import blend_for


@pytest.mark.parametrize("name", ["resnet20", "resnext", "mobilenetv2", "densenet", "unet3d", "mlp", "groupnorm"])
@pytest.mark.parametrize("reduction", [0.3, 0.7])
def test_masked_is_pruned(name, reduction):
    model, example = build(name), inputs(name)
    graph = ChannelGraph.build(model, example)
    blend = blend_for(model, graph, floor=0.0)
    smaller = PrunedNetwork(model, graph).extract(blend.keep_mask(graph, reduction))
    names = set(model.state_dict())
    keep = mask(model, blend, example, reduction)
    assert np.array_equal(keep, blend.keep_mask(graph, reduction))
    with torch.no_grad():
        masked, expected = model(example), smaller(example)
        assert torch.allclose(masked, expected, atol=1e-4)
        permanent(model)
        assert set(model.state_dict()) == names
        assert not prune.is_pruned(model)
        assert torch.equal(model(example), masked)
    for group, part in graph.split(keep):
        for member in group.producers:
            weight = model.get_submodule(member.layer).weight
            rows = weight.flatten(1) if not isinstance(model.get_submodule(member.layer), TRANSPOSED) else None
            if rows is not None:
                gone = (member.channels >= 0) & ~part[member.channels]
                assert not rows[torch.from_numpy(gone)].any()


TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def test_masked_networks_can_be_trained_and_stay_masked():
    model, example = build("resnet20"), inputs("resnet20")
    graph = ChannelGraph.build(model, example)
    blend = blend_for(model, graph)
    keep = mask(model, blend, example)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(example).square().mean().backward()
    optimiser.step()
    permanent(model)
    smaller = PrunedNetwork(model, graph).extract(keep)
    with torch.no_grad():
        assert torch.allclose(model(example), smaller(example), atol=1e-4)


def test_it_goes_together_with_other_masks():
    layer = nn.Conv2d(3, 4, 1)
    prune.l1_unstructured(layer, "weight", amount=2)
    BlendedStructured.apply(layer, "weight", np.array([True, False, True, True]), 0)
    assert not layer.weight[1].any()
    assert int((layer.weight == 0).sum()) >= 3


def test_what_does_not_fit_is_refused():
    model, example = build("resnet20"), inputs("resnet20")
    blend = blend_for(model, ChannelGraph.build(model, example))
    with pytest.raises(InputError, match="keep must have 4 values for dimension 0, got 3"):
        BlendedStructured.apply(nn.Conv2d(3, 4, 1), "weight", np.ones(3, dtype=bool), 0)
    with pytest.raises(InputError, match="belongs to another network"):
        mask(build("vgg_bn"), blend, inputs("vgg_bn"))
    untouched = copy.deepcopy(model)
    mask(model, blend, example)
    with pytest.raises(InputError, match="masked already"):
        mask(model, blend, example)
    permanent(untouched)
    assert all(torch.equal(a, b) for a, b in zip(untouched.parameters(), build("resnet20").parameters(), strict=True))
