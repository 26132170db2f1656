import pytest
import torch

from criteria import GroupStats, collect, magnitude

from .tiny_networks import two_linear


def test_norms_by_hand():
    stats = GroupStats("g", "conv", 3, weight=torch.tensor([[3.0, -4.0], [0.0, 1.0], [0.0, 0.0]]))
    assert magnitude.l1(stats).tolist() == [7, 1, 0]
    assert magnitude.l2(stats).tolist() == [5, 1, 0]


def test_norms_of_a_network():
    model, graph = two_linear()
    (producer, _) = collect(model, graph, [], None, {"weight"})["first"]
    assert magnitude.l1(producer).tolist() == [3, 4]
    assert magnitude.l2(producer).tolist() == pytest.approx([5**0.5, 10**0.5])
