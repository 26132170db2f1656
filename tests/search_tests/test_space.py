import math
import random

import pytest

from search import Choice, Real, SearchError, Space

SPACE = Space(((Choice(3), Real(0.0, 1.0, 0.2)), (Real(-2.0, 2.0, 0.5),)))


def test_genes_and_blocks():
    assert len(SPACE) == 3
    assert SPACE.genes == (Choice(3), Real(0.0, 1.0, 0.2), Real(-2.0, 2.0, 0.5))
    assert SPACE.slices == (slice(0, 2), slice(2, 3))


def test_samples_belong_to_the_space_and_reach_all_of_it():
    rng = random.Random(0)
    samples = [SPACE.sample(rng) for _ in range(300)]
    for genome in samples:
        SPACE.check(genome)
    assert {genome[0] for genome in samples} == {0.0, 1.0, 2.0}
    assert min(genome[2] for genome in samples) < -1.8
    assert max(genome[2] for genome in samples) > 1.8


def test_sampling_is_reproducible():
    assert SPACE.sample(random.Random(5)) == SPACE.sample(random.Random(5))


@pytest.mark.parametrize(
    ("genome", "clipped"),
    [([1.4, 0.5, 0.0], [1.0, 0.5, 0.0]), ([-3, 2, -9], [0.0, 1.0, -2.0]), ([math.inf, -math.inf, 1], [2.0, 0.0, 1.0])],
)
def test_clip(genome, clipped):
    assert SPACE.clip(genome) == clipped
    SPACE.check(clipped)


@pytest.mark.parametrize("genome", [[0.0, 0.0], [0.0] * 4, [math.nan, 0, 0], [0, math.nan, 0]])
def test_clip_refuses_what_has_no_nearest_genome(genome):
    with pytest.raises(SearchError, match="got"):
        SPACE.clip(genome)


@pytest.mark.parametrize(
    "genome",
    [[0, 0], [3, 0, 0], [-1, 0, 0], [0.5, 0, 0], [0, 1.1, 0], [0, 0, -2.1], [0, math.nan, 0], [math.nan, 0, 0]],
)
def test_check_refuses(genome):
    with pytest.raises(SearchError, match="genome") as caught:
        SPACE.check(genome)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Choice(0),
        lambda: Real(1.0, 1.0, 0.1),
        lambda: Real(1e6, 1e6 + 1, 1e-12),
        lambda: Real(0.0, math.inf, 0.1),
        lambda: Real(0.0, 1.0, 0.0),
        lambda: Real(0.0, 1.0, math.nan),
        lambda: Real(0.0, 1.0, 0.1, rate=1.1),
        lambda: Space(()),
        lambda: Space(((Choice(2),), ())),
    ],
)
def test_a_wrong_space_is_refused(make):
    with pytest.raises(SearchError, match="got"):
        make()
