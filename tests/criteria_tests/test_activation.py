import numpy as np
import pytest
import torch
from torch import nn

from criteria import CRITERIA, CriterionError, GroupStats, activation, collect

from .tiny_networks import conv_net, graph, group, images, member


def test_means_and_shares_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(inplace=True), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))
    inputs = torch.tensor([[1.0, -1.0], [3.0, 0.0]]).view(1, 1, 2, 2)
    net_graph = graph(group("g", 2, [member("0", 2)], [member("2", 2)]))
    (_, consumer) = collect(model, net_graph, [(inputs, inputs)], None, {"activation"})["g"]
    assert activation.mean_activation(consumer).tolist() == [1, 0.5]  # (1, 0, 3, 0) and (0, 2, 0, 0)
    assert activation.apoz(consumer).tolist() == [0.5, 0.25]


def test_hrank_by_hand():
    eye, outer, zero = torch.eye(3), torch.ones(3, 3), torch.zeros(3, 3)
    maps = torch.stack([torch.stack([eye, outer, zero]), torch.stack([outer, outer, zero])])
    scores = activation.hrank(GroupStats("g", "conv", 3, side="consumer", maps=maps))
    assert scores.tolist() == [2, 1, 0]  # of ranks 3 and 1, 1 and 1, 0 and 0


def test_hrank_where_no_maps_are_read():
    model, net_graph = conv_net()
    views = collect(model, net_graph, [images()], None, {"maps"})
    CRITERIA.get("hrank")(views["stem"][1])
    with pytest.raises(CriterionError, match="criterion 'hrank' needs the maps read by 'head'; it reads none"):
        CRITERIA.get("hrank")(views["conv"][1])


def test_network_statistics_against_numpy():
    model, net_graph = conv_net()
    inputs, targets = images()
    views = collect(model, net_graph, [(inputs, targets)], None, {"activation", "maps"}, map_images=100)
    with torch.no_grad():
        read = model.eval()[:4](inputs).numpy()
    stem = views["stem"][1]
    np.testing.assert_allclose(activation.mean_activation(stem), read.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(activation.apoz(stem), (read != 0).mean((0, 2, 3)), rtol=1e-5)
    ranks = [[np.linalg.matrix_rank(channel) for channel in image] for image in read]
    np.testing.assert_allclose(activation.hrank(stem), np.mean(ranks, 0), rtol=1e-5)


def test_flattened_channels_are_read_as_a_whole():
    model, net_graph = conv_net()
    inputs, targets = images()
    head = collect(model, net_graph, [(inputs, targets)], None, {"activation"})["conv"][1]
    with torch.no_grad():
        read = model.eval()[:6](inputs).numpy()
    np.testing.assert_allclose(head.activation_mean, read.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
