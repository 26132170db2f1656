import numpy as np
import pytest

from criteria.transforms import affine, balanced, resource_aware


def groups():
    return {"a": np.array([1.0, 3.0]), "b": np.array([10.0, 20.0, 30.0])}


def test_balanced_by_hand():
    # Means 2 and 20, of which the mean is 11.
    scaled = balanced(groups())
    np.testing.assert_allclose(scaled["a"], [5.5, 16.5])
    np.testing.assert_allclose(scaled["b"], [5.5, 11, 16.5])


def test_resource_aware_by_hand():
    # Costs 2 and 4: softmax of -1/2 and -1 is 1 / (1 + e^-½) = 0.62245933 and 0.37754067.
    scaled = resource_aware(groups(), {"a": 2, "b": 4}, strength=2)
    np.testing.assert_allclose(scaled["a"], np.array([1, 3]) * (1 + 2 * 0.6224593312), rtol=1e-9)
    np.testing.assert_allclose(scaled["b"], np.array([10, 20, 30]) * (1 + 2 * 0.3775406688), rtol=1e-9)


def test_resource_aware_keeps_cheap_groups_and_knows_no_unit():
    alike = {"cheap": np.ones(2), "dear": np.ones(2)}
    scaled = resource_aware(alike, {"cheap": 1, "dear": 100}, strength=1)
    assert scaled["cheap"].min() > scaled["dear"].max()
    again = resource_aware(alike, {"cheap": 1e6, "dear": 1e8}, strength=1)
    np.testing.assert_allclose(again["dear"], scaled["dear"], rtol=1e-12)


def test_a_strength_of_nothing_changes_nothing():
    for group, values in resource_aware(groups(), {"a": 1, "b": 2}, strength=0).items():
        np.testing.assert_array_equal(values, groups()[group])


def test_affine_by_hand():
    moved = affine(groups(), {"a": 2, "b": 0.1}, {"a": -1, "b": 5})
    np.testing.assert_allclose(moved["a"], [1, 5])
    np.testing.assert_allclose(moved["b"], [6, 7, 8])


def test_nothing_changes_inside_of_a_group_nor_what_was_given():
    given = {"a": np.random.default_rng(0).uniform(size=9), "b": np.random.default_rng(1).uniform(size=5)}
    copies = {group: values.copy() for group, values in given.items()}
    costs = {"a": 3, "b": 1}
    for transformed in (
        balanced(given),
        resource_aware(given, costs, strength=3),
        affine(given, costs, costs),
    ):
        for group, values in transformed.items():
            np.testing.assert_array_equal(np.argsort(values), np.argsort(given[group]))
            np.testing.assert_array_equal(given[group], copies[group])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: balanced({}), "scores must hold at least one group, got none"),
        (lambda: balanced({"a": np.array([-1.0, 0.5])}), "group 'a' must have a positive mean .* got -0.25"),
        (lambda: balanced({"a": np.array([np.nan])}), "scores of group 'a' must be a finite vector"),
        (lambda: resource_aware(groups(), {"a": 1}, strength=1), r"cost must be given .* got \['b'\]"),
        (lambda: resource_aware(groups(), {"a": 1, "b": 0}, strength=1), "cost of group 'b' must be posit"),
        (lambda: resource_aware(groups(), {"a": 1, "b": 1}, strength=-1), "strength must be at least 0, got -1"),
        (lambda: resource_aware({"a": np.array([-1.0])}, {"a": 1}, strength=1), "must be at least 0, got -1"),
        (lambda: affine(groups(), {"a": 1, "b": -1}, {"a": 0, "b": 0}), "scale of group 'b' must be positive"),
        (lambda: affine(groups(), {"a": 1, "b": 1}, {"a": 0, "b": np.inf}), "shift of group 'b' must be fin"),
    ],
)  # fmt: skip
def test_what_cannot_be_transformed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
