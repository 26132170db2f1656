import pytest

from blend.config import search_config
from blend.limits import Target, bytes_of, duration, ending, reductions_around, reductions_of, seconds_of
from search.archive import Evaluation


@pytest.mark.parametrize(
    ("text", "seconds", "again"),
    [
        ("90", 90, "1m30s"), (45, 45, "45s"), ("45s", 45, "45s"), ("2h", 7200, "2h"), ("1.5h", 5400, "1h30m"),
        ("1h30m", 5400, "1h30m"), ("1d2h3m", 93780, "1d2h"), (" 2H ", 7200, "2h"), ("0.2", 0.2, "0s"),
    ],
)  # fmt: skip
def test_durations(text, seconds, again):
    assert seconds_of(text) == seconds
    assert duration(seconds_of(text)) == again


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "0s", "nan", "inf", "2 h", "1h30", "h"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match=f"must be a duration like 90s, 45m, 2h or 1h30m, got '{text}'"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [(0, 0), ("0", 0), (1073741824, 2**30), ("512M", 2**29), ("1.5g", 3 * 2**29), ("2 GiB", 2**31), ("10kb", 10240)],
)
def test_sizes(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "nan", "1x", "M", "1.G", 400 * "9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=f"must be a size like 512M, 2G or 0, got '{text}'"):
        bytes_of(text)


@pytest.mark.parametrize(
    ("text", "again"),
    [("0.9", "metric=0.9"), (1, "metric=1"), ("metric=0.5", "metric=0.5"), ("fitness=-3e-1", "fitness=-0.3")],
)
def test_targets(text, again):
    assert str(Target.parse(text)) == again
    assert Target.parse(again) == Target.parse(text)


@pytest.mark.parametrize("text", ["", "much", "nan", "loss=1", "=1", "metric=", "metric=inf"])
def test_what_is_no_target_is_refused(text):
    with pytest.raises(ValueError, match="must be a number, metric=NUMBER or fitness=NUMBER"):
        Target.parse(text)


def test_a_target_is_reached_by_what_it_names():
    best = Evaluation(0, "search", 0, (0.0,), b"", -0.4, {"metric": 0.8}, 0.0, False, None)
    assert Target.parse("0.8").is_reached(best)
    assert not Target.parse("0.81").is_reached(best)
    assert Target.parse("fitness=-0.4").is_reached(best)
    assert not Target.parse("fitness=-0.39").is_reached(best)


def test_every_reason_has_words():
    config = search_config(task="digits", generations=9, time="1h30m", target=0.9, patience=5)
    reasons = ("evaluations", "generations", "time", "target", "patience", "exhausted")
    words = {reason: ending(reason, config) for reason in reasons}
    assert words["time"] == "its time of 1h30m is over"
    assert len(set(words.values())) == 6
    front = search_config(task="digits", strategy="nsga2", patience=5)
    assert ending("patience", front) == "the hypervolume grew by less than 0.1% in 5 generations"


def test_a_range_of_reductions():
    assert reductions_of("0.3:0.7") == (0.3, 0.7)
    for percent in range(1, 99):
        low, high = percent / 100, (percent + 1) / 100
        assert reductions_of(f"{low}:{high}") == (low, high)
    for wrong in ("0.3", "0.3:", "0.7:0.3", "0.3:0.305", "0:0.5", "0.5:1", "nan:0.5", "a:b", "0.1:0.2:0.3"):
        with pytest.raises(ValueError, match=r"must be a number in \(0, 1\) or LOW:HIGH"):
            reductions_of(wrong)


def test_the_range_around_a_reduction_stays_inside():
    assert reductions_around(0.5) == (0.3, 0.7)
    assert reductions_around(0.25) == (0.15, 0.35)
    assert reductions_around(0.9) == (0.86, 0.94)
    assert reductions_around(0.01) == (0.005, 0.015)
    assert reductions_around(0.005) == (0.0025, 0.0125)
    assert reductions_around(0.995) == (0.9875, 0.9975)
