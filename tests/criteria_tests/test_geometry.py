import numpy as np
import pytest
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


def view(weight):
    return GroupStats("g", "conv", len(weight), weight=torch.as_tensor(weight))


def random_filters(count, size, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_fermat_by_hand_at_a_data_point():
    # The middle of a cross is one of the filters: Weiszfeld's weights are infinite there.
    cross = [[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [0.0, -4.0], [0.0, 0.0]]
    np.testing.assert_allclose(geometry.fermat(view(cross)), [1, 2, 3, 4, 0], atol=1e-12)


def test_fermat_by_hand_in_an_equilateral_triangle():
    corners = [[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]]
    np.testing.assert_allclose(geometry.fermat(view(corners)), [3**-0.5] * 3, rtol=1e-6)


def test_fermat_with_duplicates_that_outweigh_the_others():
    np.testing.assert_allclose(geometry.fermat(view([[0.0, 0.0]] * 3 + [[3.0, 4.0]])), [0, 0, 0, 5], atol=1e-12)


def test_fermat_of_filters_on_a_line_is_halfway_between_the_middle_two():
    line = [[1.0, 2.0], [3.0, 6.0], [0.0, 0.0], [2.0, 4.0]]  # at 1, 3, 0, 2 times (1, 2): the median is 1.5
    np.testing.assert_allclose(geometry.fermat(view(line)), np.array([0.5, 1.5, 1.5, 0.5]) * 5**0.5)
    np.testing.assert_allclose(geometry.fermat(view([*line, [7.0, 14.0]])), np.array([1, 1, 2, 0, 5]) * 5**0.5)
    np.testing.assert_allclose(geometry.fermat(view([[1.0, 5.0], [4.0, 1.0]])), [2.5, 2.5])
    assert geometry.fermat(view([[2.0, 1.0]] * 4)).tolist() == [0] * 4


def test_fermat_leaves_a_data_point_that_is_not_the_solution():
    # Four corners and a filter near, but not at, their middle, which pulls the solution; numpy gradient below 1e-6.
    points = np.array([[1, 1], [-1, 1], [1, -1], [-1, -1], [0.9, 0.2], [0.9, 0.1]], dtype=np.float64)
    place = geometry.fermat_point(torch.tensor(points), 1000).numpy()
    away = place - points
    assert np.linalg.norm((away / np.linalg.norm(away, axis=1, keepdims=True)).sum(0)) < 1e-6
    np.testing.assert_allclose(geometry.fermat(view(points)), np.linalg.norm(away, axis=1))


def test_fermat_is_stationary_for_many_filters():
    points = random_filters(40, 20).double()
    away = geometry.fermat_point(points, 1000) - points
    assert (away / away.norm(dim=1, keepdim=True)).sum(0).norm() < 1e-5


def test_cosine_by_hand():
    # Cosines: 0 and -1 and 0 with the others; a filter of zeros is unlike all.
    weight = [[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [0.0, 0.0]]
    np.testing.assert_allclose(geometry.cosine(view(weight)), [4, 3, 4, 3], atol=1e-12)


def test_whc_by_hand():
    # 2 · (1 · 1 + 3 · 0), 1 · (2 · 1 + 3 · 1), 3 · (2 · 0 + 1 · 1), and nothing of a filter of zeros.
    weight = [[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [0.0, 0.0]]
    np.testing.assert_allclose(geometry.whc(view(weight)), [2, 5, 3, 0], atol=1e-12)


def test_against_numpy_from_the_formula():
    weight = random_filters(12, 7)
    w = weight.double().numpy()
    norms = np.sqrt((w**2).sum(1))
    cosines = (w @ w.T) / np.outer(norms, norms)
    distances = np.sqrt(((w[:, None] - w[None]) ** 2).sum(2))
    np.testing.assert_allclose(geometry.fpgm(view(weight)), distances.sum(1), rtol=1e-9)
    np.testing.assert_allclose(geometry.cosine(view(weight)), (1 - cosines).sum(1), rtol=1e-9)
    expected = norms * ((1 - np.abs(cosines)) * norms).sum(1)
    np.testing.assert_allclose(geometry.whc(view(weight)), expected, rtol=1e-9)


def test_a_duplicate_lowers_the_distances_of_its_twin():
    weight = random_filters(10, 6)
    twin = weight.clone()
    twin[3] = weight[7]
    for criterion in (geometry.fpgm, geometry.cosine, geometry.whc):
        assert criterion(view(twin))[7] < criterion(view(weight))[7]


@pytest.mark.parametrize("size", [2, 12, 40, 130])
@pytest.mark.parametrize("fan_in", [27, 150, 577])
@pytest.mark.parametrize("criterion", [geometry.fpgm, geometry.fermat, geometry.cosine, geometry.whc])
def test_equal_filters_are_exactly_equally_far_from_each_other(criterion, size, fan_in):
    # However a processor adds up: else its rounding would rank them.
    weight = random_filters(1, fan_in).expand(size, fan_in)
    assert criterion(view(weight)).tolist() == [0] * size
