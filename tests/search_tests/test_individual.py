import copy
import pickle

import pytest

from search.individual import Fitness, Individual


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_keeps_genome_and_fitness_through_copies(duplicate):
    again = duplicate(Individual([1.0, 2.0], 3.0))
    assert (list(again), again.value, type(again.fitness)) == ([1.0, 2.0], 3.0, Fitness)


def test_an_offspring_starts_unevaluated():
    assert not Individual(Individual([1.0], 2.0)).fitness.valid


def test_higher_is_better():
    assert Fitness((1.0,)) > Fitness((-1e30,))
