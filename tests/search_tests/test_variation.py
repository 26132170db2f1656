import random

import pytest

from search import Choice, Real, Space
from search.individual import Individual
from search.variation import cross_blocks, exchange, exchangeable, mutate

SPACE = Space(((Choice(3), Real(0.0, 1.0, 0.2)), (Real(-2.0, 2.0, 0.5), Choice(1)), (Choice(2),)))
LOW, HIGH = [0.0, 0.0, -2.0, 0.0, 0.0], [2.0, 1.0, 2.0, 0.0, 1.0]


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)


def test_crossover_exchanges_whole_blocks_in_place():
    seen = set()
    for _ in range(100):
        first, second = Individual(LOW), Individual(HIGH)
        assert cross_blocks(first, second, SPACE) == (first, second)
        for part in SPACE.slices:
            assert (first[part], second[part]) in [(LOW[part], HIGH[part]), (HIGH[part], LOW[part])]
        seen.add(tuple(first))
    assert len(seen) == 8  # each of the three blocks on its own


@pytest.mark.parametrize(("swap", "expected"), [(0.0, LOW), (1.0, HIGH)])
def test_crossover_probability(swap, expected):
    first, _ = cross_blocks(Individual(LOW), Individual(HIGH), SPACE, swap)
    assert first == expected


@pytest.mark.parametrize("start", [LOW, HIGH])
@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_mutation_changes_at_least_one_gene_and_stays_in_the_space(start, rate):
    for _ in range(200):
        individual = Individual(start)
        assert mutate(individual, SPACE, rate) == (individual,)
        assert individual != start
        assert individual[3] == 0.0
        SPACE.check(individual)


def test_mutation_rate_is_the_share_of_changed_genes():
    space = Space(((Choice(4),) * 200,))
    changed = sum(value != 0 for value in mutate(Individual([0.0] * 200), space, 0.3)[0])
    assert 40 <= changed <= 80  # 60 ± 3 standard deviations of 6.5


def test_a_gene_may_change_more_often_than_the_others():
    space = Space(((Real(0.0, 1.0, 0.1),) * 9, (Real(0.0, 1.0, 0.1, rate=0.5),)))
    changed = [mutate(Individual([0.5] * 10), space, 0.1)[0] for _ in range(400)]
    often, seldom = (sum(genome[index] != 0.5 for genome in changed) for index in (9, 0))
    assert 150 <= often <= 250  # 200 ± 5 standard deviations of 10
    assert 15 <= seldom <= 75  # a little more than 40, as one gene changes at least
    always = (mutate(Individual([0.5] * 10), space, 1.0)[0] for _ in range(20))
    assert all(genome[9] != 0.5 for genome in always)


def test_a_mutated_choice_takes_every_other_value():
    space = Space(((Choice(4),),))
    assert {mutate(Individual([1.0]), space, 1.0)[0][0] for _ in range(100)} == {0.0, 2.0, 3.0}


def test_strength_scales_the_steps():
    space = Space(((Real(-1e6, 1e6, 2.0),),))

    def step(strength):
        return sum(abs(mutate(Individual([0.0]), space, 1.0, strength)[0][0]) for _ in range(500)) / 500

    assert step(1.0) == pytest.approx(1.6, rel=0.15)  # E|N(0, 2)| = 2 √(2/π)
    assert step(10.0) == pytest.approx(16.0, rel=0.15)


def test_a_space_of_one_point_stays():
    space = Space(((Choice(1),),))
    assert mutate(Individual([0.0]), space, 1.0) == ([0.0],)


def test_an_exchange_is_between_genes_of_the_same_kind_in_the_same_block():
    real = Real(0.0, 1.0, 0.2)
    space = Space(((real, Choice(2), real, real), (real, Choice(2), Choice(2)), (real,)))
    assert exchangeable(space) == [[0, 2, 3], [5, 6]]
    start = [0.1, 0.0, 0.2, 0.3, 0.4, 0.0, 1.0, 0.5]
    seen = set()
    for _ in range(200):
        individual = Individual(start)
        assert exchange(individual, space) == (individual,)
        seen.add(tuple(index for index in range(8) if individual[index] != start[index]))
    assert seen == {(0, 2), (0, 3), (2, 3), (5, 6)}
