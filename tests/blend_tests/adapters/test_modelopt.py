"""In NVIDIA ModelOpt's real FastNAS, on the CPU: what it keeps of each group are the blend's best channels."""

import copy

import numpy as np
import pytest
import torch

from blend.errors import InputError
from blend.pruning import PrunedNetwork
from criteria import ChannelGraph
from tests.networks import build, inputs

from .blends import blend_for

nas = pytest.importorskip("modelopt.torch.nas", reason="ModelOpt is not installed")
pytest.importorskip("torchprofile", reason="torchprofile, which ModelOpt counts with, is not installed")

from modelopt.torch.prune.pruning import PruneModeRegistry  # noqa: E402

from blend.adapters.modelopt import BlendedImportance  # noqa: E402

SHARES = (0.25, 0.5, 0.75, 1.0)
CHANNELS = {"*": {"channels_ratio": SHARES, "kernel_size": (), "channel_divisor": 1}}
FEATURES = {"*": {"features_ratio": SHARES, "feature_divisor": 1}}
RULES = {"nn.Conv2d": CHANNELS, "nn.Linear": FEATURES, "nn.BatchNorm2d": FEATURES}


def converted(model):
    return nas.convert(model, [("fastnas", RULES)], registry=PruneModeRegistry)


def searched(model, example, expected, folder):
    """FastNAS at 60 % of the parameters, judged by how near the outputs stay."""

    def score(network):
        with torch.no_grad():
            return -float((network(example) - expected).square().mean())

    config = {"score_func": score, "checkpoint": str(folder / "search.pth")}
    return nas.search(model, {"params": "60%"}, example, config=config)[0]


def test_of_each_group_the_blends_best_are_kept(tmp_path):
    model, example = build("resnet20"), inputs("resnet20")
    graph = ChannelGraph.build(model, example)
    blend = blend_for(model, graph)
    untouched = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(example)
    importance = BlendedImportance(blend, model, example)
    dynamic = converted(model)
    steered = importance.register(dynamic)
    smaller = searched(dynamic, example, expected, tmp_path).eval()
    keep = []
    for group in graph.groups:
        left = len(smaller.get_submodule(group.name).weight)
        assert left == group.size or group.name in steered
        best = np.argsort(-blend.frozen_scores(graph)[group.name], kind="stable")[:left]
        keep.append(np.isin(np.arange(group.size), best))
    assert not np.concatenate(keep).all()
    ours = PrunedNetwork(untouched, graph).extract(np.concatenate(keep))
    with torch.no_grad():
        assert torch.allclose(smaller(example), ours(example), atol=1e-4)


def test_without_it_other_channels_are_kept():
    model, example = build("vgg_bn"), inputs("vgg_bn")
    blend = blend_for(model, ChannelGraph.build(model, example))
    importance = BlendedImportance(blend, model, example)
    dynamic = converted(model)
    widths = {group.name: dynamic.get_submodule(group.name).get_hparam("out_channels") for group in blend.groups[:-1]}
    own = {name: width.importance.argsort() for name, width in widths.items()}
    importance.register(dynamic)
    for group in blend.groups[:-1]:
        order = widths[group.name].importance.argsort()
        assert order.tolist() == np.argsort(group.scores, kind="stable").tolist()
        assert order.tolist() != own[group.name].tolist()


def test_what_does_not_fit_is_refused():
    model, example = build("vgg_bn"), inputs("vgg_bn")
    blend = blend_for(model, ChannelGraph.build(model, example))
    with pytest.raises(InputError, match="belongs to another network"):
        BlendedImportance(blend, build("resnet20"), inputs("resnet20"))
    importance = BlendedImportance(blend, model, example)
    with pytest.raises(InputError, match=r"must be converted by modelopt\.torch\.nas\.convert"):
        importance.register(model)
