import math

import pytest

from search import Evolution, SearchError

from .toy import INITIAL, SPACE


def step(strategy):
    genomes = strategy.ask()
    strategy.tell(genomes, [0.0] * len(genomes))
    return genomes


def test_initial_genomes_come_first_and_clipped():
    initial = [[9.0, 5.0, -5.0] * 4, INITIAL[1]]
    genomes = Evolution(SPACE, population=8, seed=0, initial=initial).ask()
    assert genomes[:2] == [[3.0, 1.0, 0.0] * 4, INITIAL[1]]
    assert len(genomes) == 8


def test_all_initial_genomes_are_asked_even_beyond_the_population():
    strategy = Evolution(SPACE, population=2, seed=0, initial=INITIAL)
    assert step(strategy) == INITIAL
    assert len(step(strategy)) == 2


def test_one_phenotype_does_not_fill_the_survivors():
    strategy = Evolution(SPACE, population=8, seed=0, initial=[*INITIAL, *INITIAL[:1] * 5], elite=3)
    genomes = strategy.ask()
    strategy.tell(genomes, [1.0, 0.5, 0.4, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert strategy.state_dict()["fitnesses"] == [1.0, 0.5, 0.4]
    assert strategy.diversity()["unique"] == 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("population", 0),
        ("elite", 0),
        ("tournament", 0),
        ("crossover", 1.1),
        ("mutation", -0.1),
        ("initial", [[math.nan] * 12]),
    ],
)
def test_wrong_parameters_are_refused(name, value):
    with pytest.raises(SearchError, match="got"):
        Evolution(SPACE, **{"population": 4, "seed": 0, name: value})
