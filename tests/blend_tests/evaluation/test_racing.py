import numpy as np
import pytest

from blend.evaluation.racing import LEAST, RISK, estimate, is_hopeless, weighted_mean

SIZES = (16,) * 30 + (20,)


def raced(candidate, rival, sizes=SIZES, look_every=4):
    """Number of chunks after which a candidate is given up; None if never."""
    looks = range(look_every, len(sizes) + 1, look_every)
    return next((n for n in looks if is_hopeless(candidate[:n], rival, sizes)), None)


def population(shift, seed, spread=0.5):
    """Chunk means of a rival and of a candidate that is better by ``shift`` on average; correlated as in life."""
    random = np.random.default_rng(seed)
    hardness = random.normal(0, 1, len(SIZES))
    rival = -1 + hardness
    return rival + shift + random.normal(0, spread, len(SIZES)) / 4, rival


def test_what_is_clearly_worse_is_given_up_early():
    given_up = [raced(*population(-0.3, seed)) for seed in range(200)]
    assert all(given_up)
    assert np.mean(given_up) < 12


def test_what_is_better_on_all_data_is_rarely_given_up():
    wrong = better = 0
    for seed in range(4000):
        candidate, rival = population(-0.02, seed)
        if weighted_mean(candidate, SIZES) > weighted_mean(rival, SIZES):
            better += 1
            wrong += raced(candidate, rival) is not None
    assert better > 500
    # Seven looks of one risk each, which are strongly correlated.
    assert 0 < wrong / better < 7 * RISK


@pytest.mark.parametrize("looked_at", [LEAST, 8, 16])
def test_a_single_look_has_the_risk_that_it_says(looked_at):
    random = np.random.default_rng(0)
    sizes, rival = (16,) * 2000, np.zeros(2000)
    wrong = sum(is_hopeless(random.normal(0, 1, looked_at), rival, sizes) for _ in range(20_000))
    assert wrong / 20_000 == pytest.approx(RISK, rel=0.25)  # about as often below as above on all that comes after


def test_what_is_better_on_all_data_has_a_better_estimate_than_its_rival_if_not_given_up():
    candidate, rival = population(0.1, 0)
    assert raced(candidate, rival) is None
    assert estimate(candidate, rival, SIZES) == pytest.approx(weighted_mean(candidate, SIZES))


def test_what_is_given_up_is_estimated_below_its_rival():
    for seed in range(200):
        candidate, rival = population(-0.2, seed)
        at = raced(candidate, rival)
        assert at is None or estimate(candidate[:at], rival, SIZES) < weighted_mean(rival, SIZES)


def test_what_differs_by_the_same_everywhere_is_given_up_at_the_first_look():
    rival = np.linspace(-2, -1, len(SIZES))
    assert raced(rival - 0.25, rival, look_every=1) == 6
    assert raced(rival, rival) is None
    assert raced(rival + 0.25, rival) is None


def test_all_data_seen_leave_nothing_to_give_up():
    candidate, rival = population(-1.0, 0)
    assert not is_hopeless(candidate, rival, SIZES)


def test_a_value_that_is_not_a_number_is_not_hopeless_but_an_error_to_come():
    rival = np.zeros(len(SIZES))
    assert not is_hopeless(rival[:10] * float("nan"), rival, SIZES)


@pytest.mark.parametrize("seen", [70, 95, 96, 111, 112, 200, 320])
def test_single_examples_count_as_the_chunks_they_make(seen):
    random = np.random.default_rng(seen)
    candidate, rival = random.exponential(1.0, (2, 320)) - [[1.2], [1.0]]
    chunks = [values[: seen // 16 * 16].reshape(-1, 16).mean(1) for values in (candidate, rival)]
    expected = seen < 320 and is_hopeless(chunks[0], np.append(chunks[1], 0.0), [16] * 20)
    assert is_hopeless(candidate[:seen], rival, [1] * 320) == expected


def test_the_rule_holds_for_what_is_far_from_normal():
    """Losses of single examples: most near zero, few large; of candidates as good as their rival few are lost."""
    wrong = better = 0
    for seed in range(1000):
        random = np.random.default_rng(seed)
        candidate, rival = -(random.exponential(1.0, (2, 512)) ** 3)
        if candidate.mean() > rival.mean():
            better += 1
            wrong += any(is_hopeless(candidate[:n], rival, [1] * 512) for n in range(64, 512, 64))
    assert wrong / better < 7 * RISK
