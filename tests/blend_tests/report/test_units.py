import pytest

from blend.report.text import verdict_in_words
from blend.report.units import Unit


@pytest.mark.parametrize(
    ("metrics", "named", "interval"),
    [
        ([0.9, 0.0, 1.0, None], "-1.3 points", "-2.0 … +0.5"),
        ([-0.056, -0.001], "-0.01325", "-0.02 … +0.005"),
        ([31.2, 0.5], "-0.01325", "-0.02 … +0.005"),
        ([float("nan")], "-0.01325", "-0.02 … +0.005"),
    ],
)
def test_points_are_of_shares_only(metrics, named, interval):
    unit = Unit.of(metrics)
    assert unit.named(-0.01325) == named
    assert unit.interval((-0.02, 0.005)) == interval


@pytest.mark.parametrize(("unpruned", "words"), [(0.9, "+10.0 points on test data"), (21.0, "+0.1 on test data")])
def test_a_verdict_tells_its_margin_in_the_unit_of_the_metric(unpruned, words):
    metrics = {"heldout_metric": unpruned, "test_metric": unpruned}
    margin = {"test": 0.1, "heldout": 0.1, "test_ci95": (0.05, 0.15), "test_over": "l1", "heldout_over": "l1"}
    about = {
        "margin": margin, "best": metrics, "unpruned": metrics, "achieved_reduction": 0.5, "cost": {"kind": "macs"},
        "reduction": 0.5, "evaluations": 1, "unique_evaluations": 2, "seconds": 1.0, "baselines": [{"kind": "single"}],
    }  # fmt: skip
    said = verdict_in_words(about)
    assert f"The blend wins: {words}" in said
    assert "1 evaluation, 2 of them computed" in said
