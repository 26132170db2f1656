"""A front that is known: the last gene buys fitness with cost, the others only have to be right."""

import json
from itertools import pairwise

import pytest

from search import WORST_FITNESS, RandomSearch, Real, Space
from search.hypervolume import hypervolume
from search.nsga2 import NSGA2

GENES = 9
SPACE = Space(((Real(0.0, 1.0, 0.1),),) * GENES)
RIGHT = 0.7


def cost(genome):
    return genome[-1]


def fitness(genome):
    return -((1 - genome[-1]) ** 2) - sum((x - RIGHT) ** 2 for x in genome[:-1])


def told_to(strategy, generations):
    told = []
    for _ in range(generations):
        genomes = strategy.ask()
        strategy.tell(genomes, [fitness(genome) for genome in genomes])
        told += genomes
    return told


def volume(genomes):
    return hypervolume([(fitness(g), -cost(g)) for g in genomes], (-1.0, -1.0))


@pytest.mark.parametrize("seed", range(3))
def test_finds_the_whole_of_a_known_front(seed):
    strategy = NSGA2(SPACE, population=20, seed=seed, cost=cost)
    found = volume(told_to(strategy, 40))
    # On the front loss is (1 − cost)², and the area beyond it in the unit square ∫ 1 − (1 − c)² dc = 2/3.
    assert 0.93 * 2 / 3 < found < 2 / 3
    assert volume(told_to(RandomSearch(SPACE, population=20, seed=seed), 40)) < 0.7 * 2 / 3
    parents = strategy.state_dict()["parents"]
    assert len(parents) == 20
    costs = sorted(map(cost, parents))
    assert costs[0] < 0.05
    assert costs[-1] > 0.8
    assert max(b - a for a, b in pairwise(costs)) < 0.2


def test_without_a_cost_fitness_alone_decides():
    strategy = NSGA2(SPACE, population=20, seed=0)
    told = told_to(strategy, 40)
    assert strategy.best == max(((g, fitness(g)) for g in told), key=lambda pair: pair[1])
    assert strategy.best[1] > -0.01


def test_a_state_with_parents_survives_json_bit_for_bit():
    strategy = NSGA2(SPACE, population=20, seed=0, cost=cost)
    told_to(strategy, 7)
    state = json.loads(json.dumps(strategy.state_dict(), allow_nan=False))
    other = NSGA2(SPACE, population=20, seed=5, cost=cost)
    other.load_state_dict(state)
    for _ in range(5):
        genomes = strategy.ask()
        assert other.ask() == genomes
        for one in (strategy, other):
            one.tell(genomes, [fitness(genome) for genome in genomes])
        assert other.state_dict() == strategy.state_dict()


def test_what_failed_is_not_on_the_front_however_little_it_costs():
    strategy = NSGA2(
        SPACE, population=4, seed=0, initial=[[0.0] * GENES, [0.5] * GENES, [0.6] * GENES, [0.7] * GENES], cost=cost
    )
    genomes = strategy.ask()
    strategy.tell(genomes, [WORST_FITNESS, *map(fitness, genomes[1:])])
    offspring = strategy.ask()
    strategy.tell(offspring, [fitness(genome) for genome in offspring])
    assert [0.0] * GENES not in strategy.state_dict()["parents"]


def test_copies_of_a_point_are_one():
    strategy = NSGA2(SPACE, population=4, seed=0, initial=[[0.5] * GENES] * 4, cost=cost)
    genomes = strategy.ask()
    strategy.tell(genomes, [fitness(genome) for genome in genomes])
    assert strategy.state_dict()["parents"] == [[0.5] * GENES]


def test_hypervolume_by_hand():
    points = [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0), (1.5, 1.5), (4.0, -1.0)]
    assert hypervolume(points, (0.0, 0.0)) == 6.0
    assert hypervolume(points, (1.0, 1.0)) == 1.0
    assert hypervolume(reversed(points), (0.0, 0.0)) == 6.0
    assert hypervolume([], (0.0, 0.0)) == 0.0
