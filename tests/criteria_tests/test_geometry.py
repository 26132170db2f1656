import numpy as np
import torch

from criteria import GroupStats, geometry


def test_fpgm_by_hand():
    stats = GroupStats("g", "conv", 3, weight=torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(geometry.fpgm(stats), [5, 10, 5], atol=1e-7)  # a 0 out of a cancellation in float64


def test_fpgm_is_lowest_at_the_geometric_median():
    corners = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [0.0, 0.0]]) + 100
    scores = geometry.fpgm(GroupStats("g", "conv", 5, weight=corners))
    assert scores.argmin() == 4
    assert torch.allclose(scores[4], torch.tensor(4 * 2**0.5, dtype=torch.float64), rtol=1e-6)


def test_fpgm_agrees_with_a_loop_over_many_near_duplicates():
    weight = 10 + 1e-3 * torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    expected = [sum((row.double() - other.double()).norm() for other in weight) for row in weight]
    # Distances near 5e-3 out of squares near 3e3: cancellation costs 3e3 * 1e-16 / 5e-3**2 = 1e-8 of them.
    np.testing.assert_allclose(geometry.fpgm(GroupStats("g", "conv", 40, weight=weight)), expected, rtol=1e-6)
