import numpy as np
import pytest

from blend.pipeline.evidence import paired_interval, verdict


def contender(name, kind, heldout, test, allocation="global", count=200):
    right = round(test * count)
    examples = np.array([1.0] * right + [0.0] * (count - right))
    return {
        "name": name, "kind": kind, "allocation": allocation, "fitness": -1.0, "heldout_metric": heldout,
        "test_metric": test, "reduction": 0.51, "cost": 49.0, "note": "", "examples": examples,
    }  # fmt: skip


CONTENDERS = [
    contender("unpruned", "unpruned", 0.95, 0.94, ""),
    contender("blend", "blend", 0.90, 0.80),
    contender("l1", "single", 0.85, 0.60),
    contender("l1", "single", 0.70, 0.82, "uniform"),
    contender("fpgm", "single", 0.88, 0.70),
    contender("uniform-blend", "uniform_blend", 0.99, 0.99),
    contender("random-mask", "random_mask", 0.2, 0.2, "uniform"),
]


def test_the_strongest_single_criterion_on_each_split_is_the_opponent():
    found = verdict(CONTENDERS, seed=0)
    margin = found["margin"]
    assert margin["heldout"] == 0.90 - 0.88
    assert margin["heldout_over"] == "fpgm (global)"
    assert margin["test"] == 0.80 - 0.82  # a defeat is said to be one
    assert margin["test_over"] == "l1 (uniform)"
    low, high = margin["test_ci95"]
    assert low < -0.02 < high <= 0.0
    assert found["achieved_reduction"] == 0.51
    assert found["unpruned"] == {"heldout_metric": 0.95, "test_metric": 0.94, "cost": 49.0}
    assert found["best"] == {key: value for key, value in CONTENDERS[1].items() if key != "examples"}
    assert [b["name"] for b in found["baselines"]] == ["l1", "l1", "fpgm", "uniform-blend", "random-mask"]
    assert not any("examples" in baseline for baseline in found["baselines"])


def test_the_verdict_is_reproducible():
    assert verdict(CONTENDERS, seed=3) == verdict(CONTENDERS, seed=3)


def test_the_interval_covers_a_known_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        low, high = paired_interval(rng.choice([-1.0, 0.0, 1.0], size=300, p=[0.1, 0.7, 0.2]), seed)
        covered += low <= 0.1 <= high
    assert 52 <= covered <= 60  # 57 expected; below 52 with probability 1 %


def test_the_interval_is_that_of_the_normal_distribution_for_many_examples():
    differences = np.array([1.0] * 300 + [0.0] * 500 + [-1.0] * 200)
    low, high = paired_interval(differences, seed=0)
    half = 1.96 * differences.std() / 1000**0.5
    assert (low, high) == pytest.approx((0.1 - half, 0.1 + half), abs=0.1 * half)  # 5 000 resamples give 3 %


def test_constant_differences():
    assert paired_interval(np.zeros(10), seed=0) == (0.0, 0.0)
    assert paired_interval(np.full(10, 0.25), seed=0) == (0.25, 0.25)
    assert paired_interval(np.array([0.5]), seed=0) == (0.5, 0.5)
