import pytest
import torch
import torch.nn.functional as F
from torch import nn

from criteria import CRITERIA, ChannelGraph, CriterionError, GroupStats, batchnorm, collect, score

from .tiny_networks import conv_net, graph, group, images, member


def test_bn_scale_by_hand():
    stats = GroupStats("g", "conv", 3, gamma=torch.tensor([[0.5], [-2.0], [0.0]]), beta=torch.zeros(3, 1))
    assert batchnorm.bn_scale(stats).tolist() == [0.5, 2, 0]


def test_bn_scale_of_the_places_of_conv_groups_that_go_together():
    """Two conv groups of three outputs each: channel i owns the positions i and 3 + i."""
    model = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, groups=2), nn.Flatten())
    model[1].weight.data = torch.tensor([3.0, -5.0, 0.0, -4.0, 12.0, 2.0])
    model[1].bias.data = torch.arange(6.0)
    inputs = torch.ones(2, 4, 1, 1)
    net_graph = ChannelGraph.build(model, inputs)
    view = collect(model, net_graph, [], None, {"batchnorm"})["0"][0]
    assert view.gamma.tolist() == [[3, -4], [-5, 12], [0, 2]]
    assert view.beta.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert CRITERIA.get("bn_scale")(view).tolist() == [5, 13, 2]
    table = score(model, net_graph, [(inputs, torch.tensor([0, 1]))], F.cross_entropy, ["bn_taylor", "taylor_fo"])
    assert table.get("bn_taylor", "0").tolist() == table.get("taylor_fo", "0").tolist()


def test_bn_scale_reads_the_norm_behind_the_layer():
    model, net_graph = conv_net()
    views = collect(model, net_graph, [], None, {"batchnorm"})
    assert torch.equal(CRITERIA.get("bn_scale")(views["stem"][0]), model.norm.weight.abs())
    assert torch.equal(views["stem"][0].beta, model.norm.bias[:, None])


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


def test_bn_taylor_is_the_formula_per_batch():
    model, net_graph = conv_net()
    batches = [images(8, 1), images(4, 2)]
    view = collect(model, net_graph, batches, F.cross_entropy, CRITERIA.get("bn_taylor").needs)["stem"][0]
    expected = torch.zeros(4)
    gamma, beta = model.norm.weight, model.norm.bias
    for inputs, targets in batches:
        of_gamma, of_beta = torch.autograd.grad(F.cross_entropy(model.eval()(inputs), targets), [gamma, beta])
        expected += (gamma * of_gamma + beta * of_beta).detach().square() * len(inputs) / 12
    torch.testing.assert_close(CRITERIA.get("bn_taylor")(view), expected, rtol=1e-4, atol=1e-8)


def test_bn_taylor_needs_a_batchnorm():
    model, net_graph = conv_net()
    view = collect(model, net_graph, [images()], F.cross_entropy, CRITERIA.get("bn_taylor").needs)["conv"][0]
    with pytest.raises(CriterionError, match="criterion 'bn_taylor' needs BatchNorm after 'conv'; there is none"):
        CRITERIA.get("bn_taylor")(view)
