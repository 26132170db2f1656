import pytest
import torch
from torch import nn

from criteria import CRITERIA, CriterionError, GroupStats, batchnorm, collect

from .tiny_networks import conv_net, graph, group, member


def test_bn_scale_by_hand():
    stats = GroupStats("g", "conv", 3, gamma=torch.tensor([0.5, -2.0, 0.0]), beta=torch.zeros(3))
    assert batchnorm.bn_scale(stats).tolist() == [0.5, 2, 0]


def test_bn_scale_reads_the_norm_behind_the_layer():
    model, net_graph = conv_net()
    views = collect(model, net_graph, [], None, {"batchnorm"})
    assert torch.equal(CRITERIA.get("bn_scale")(views["stem"][0]), model.norm.weight.abs())
    assert torch.equal(views["stem"][0].beta, model.norm.bias)


@pytest.mark.parametrize("norm", [None, "norm"])
def test_bn_scale_without_a_scale(norm):
    model = nn.Sequential()
    model.add_module("stem", nn.Sequential())
    model.stem.add_module("conv", nn.Conv2d(1, 2, 1))
    model.add_module("norm", nn.BatchNorm2d(2, affine=False))
    view = collect(model, graph(group("g", 2, [member("stem.conv", 2, norm)])), [], None, ())["g"][0]
    message = r"^criterion 'bn_scale' needs BatchNorm after 'stem\.conv'; there is none$"
    with pytest.raises(CriterionError, match=message):
        CRITERIA.get("bn_scale")(view)
