import pytest

from search import Choice, Real, Space
from search.diversity import diversity

SPACE = Space(((Choice(2), Choice(1), Real(-1.0, 1.0, 0.1)),))


def test_by_hand():
    genomes = [[0.0, 0.0, -1.0], [1.0, 0.0, 1.0], [0.0, 0.0, -1.0], [1.0, 0.0, 1.0]]
    assert diversity(SPACE, genomes) == pytest.approx({"unique": 0.5, "spread": 0.5, "entropy": 1.0})


def test_one_genome_has_none():
    assert diversity(SPACE, [[0.0, 0.0, 0.3]] * 3) == pytest.approx({"unique": 1 / 3, "spread": 0.0, "entropy": 0.0})


def test_no_genomes():
    assert diversity(SPACE, []) == {"unique": 0.0, "spread": 0.0, "entropy": 0.0}
