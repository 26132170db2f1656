import random

import numpy as np
import pytest

from search import Choice, Real, Space
from search.relaxation import Relaxation

SPACE = Space(((Choice(3), Real(0.0, 1.0, 0.25)), (Real(-1.0, 1.0, 0.2), Choice(1))))


def test_a_point_by_hand():
    relaxed = Relaxation(SPACE)
    assert len(relaxed) == 3 + 1 + 1 + 1
    assert relaxed.high.tolist() == [1.0, 1.0, 1.0, 2.0, 5.0, 1.0]
    assert relaxed.low.tolist() == [-1.0, -1.0, -1.0, -2.0, -5.0, -1.0]
    assert relaxed.point([1.0, 0.75, -0.5, 0.0]) == pytest.approx([-1.0, 1.0, -1.0, 1.0, -2.5, 1.0])


def test_the_largest_coordinate_decides_and_the_first_among_equals():
    relaxed = Relaxation(SPACE)
    assert relaxed.genome(np.array([-0.2, -0.1, -0.3, 0.0, 1.0, 0.0])) == pytest.approx([1.0, 0.5, 0.2, 0.0])
    assert relaxed.genome(np.zeros(6)) == [0.0, 0.5, 0.0, 0.0]


def test_genomes_come_back_and_every_point_has_one():
    relaxed, rng = Relaxation(SPACE), random.Random(0)
    for _ in range(100):
        genome = SPACE.sample(rng)
        point = relaxed.point(genome)
        assert relaxed.genome(point) == pytest.approx(genome, abs=1e-15)
        assert relaxed.clip(point) == pytest.approx(point, abs=1e-12)
        SPACE.check(relaxed.genome(np.array([rng.gauss(0.0, 9.0) for _ in range(6)])))
