import pytest

from search import SearchError
from search.aging import AgingEvolution

from .toy import INITIAL, SPACE


def test_the_oldest_leave_however_good_they_are():
    strategy = AgingEvolution(SPACE, population=3, seed=0, initial=INITIAL, lifetime=2)
    told = []
    for generation in range(4):
        genomes = strategy.ask()
        strategy.tell(genomes, [10.0 - generation] * 3)
        told += genomes
        assert strategy.state_dict()["queue"] == told[-6:]
    assert strategy.best == (INITIAL[0], 10.0)  # remembered, but no parent any more


def test_of_one_age_the_worst_leave_first():
    initial = [[float(choice), 0.0, 1.0] * 4 for choice in range(4) for _ in range(2)]
    strategy = AgingEvolution(SPACE, population=2, seed=0, initial=initial, lifetime=2)
    genomes = strategy.ask()
    fitnesses = [3.0, 7.0, 1.0, 5.0, 0.0, 4.0, 6.0, 2.0]
    strategy.tell(genomes, fitnesses)
    assert strategy.state_dict()["queue_fitnesses"] == [4.0, 5.0, 6.0, 7.0]


def test_a_child_is_a_mutant_of_one_parent():
    strategy = AgingEvolution(SPACE, population=30, seed=0, initial=INITIAL, mutation=0.01, tournament=1.0)
    genomes = strategy.ask()
    strategy.tell(genomes, [float(genome == INITIAL[2]) for genome in genomes])
    for child in strategy.ask():
        assert 1 <= sum(a != b for a, b in zip(child, INITIAL[2], strict=True)) <= 3


@pytest.mark.parametrize(("name", "value"), [("lifetime", 0), ("tournament", 0.0), ("mutation", 1.1)])
def test_wrong_parameters_are_refused(name, value):
    with pytest.raises(SearchError, match=f"{name} must be .*got {value}"):
        AgingEvolution(SPACE, population=3, seed=0, **{name: value})
