import copy

import pytest
import torch
from torch import nn

from criteria import CRITERIA, ChannelGraph, score
from criteria.evaluating import evaluating
from criteria.losses import label_free


class Keeps(nn.Module):
    """A network that keeps what it has made, for somebody to look at."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.second, self.head = nn.Conv2d(6, 5, 3), nn.Linear(5, 3)
        self.features = None

    def forward(self, x):
        self.features = self.norm(self.conv(x)).relu()
        return self.head(self.second(self.features).relu().mean((2, 3)))


def look_at(network):
    assert not network.training
    network.another = 1
    network(torch.randn(2, 1, 6, 6))
    network(torch.randn(2, 2, 6, 6))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Keeps().train()


def test_modes_and_attributes_are_put_back_also_after_an_error(network):
    network.conv.eval()
    with pytest.raises(RuntimeError, match="channels"), evaluating(network):
        look_at(network)
    assert (network.training, network.conv.training, network.norm.training) == (True, False, True)
    assert network.features is None
    assert not hasattr(network, "another")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scripted_network_gets_its_mode_back():
    network = torch.jit.script(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)))
    with evaluating(network):
        assert not network.training
    assert network.training


@pytest.mark.parametrize("name", sorted(CRITERIA.names()))
def test_scoring_leaves_nothing_in_attributes(network, name):
    inputs, targets = torch.randn(12, 1, 6, 6), torch.arange(12) % 3
    graph = ChannelGraph.build(network, inputs[:2])
    network.features = None

    def hit(outputs, targets):
        return outputs.argmax(1) == targets

    score(network, graph, [(inputs, targets)], nn.functional.cross_entropy, [name], metric=hit)
    assert network.features is None
    copy.deepcopy(network)


def test_nor_do_losses_without_labels(network):
    inputs = torch.randn(4, 1, 6, 6)
    label_free("divergence", network, [(inputs, torch.zeros(4))])
    assert network.features is None
