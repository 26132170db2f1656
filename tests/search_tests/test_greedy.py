import pytest

from search import Choice, Real, Space
from search.greedy import GreedySearch

WORTH = [[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [2.0, 2.0, 9.0]]  # of each alternative in each block
SPACE = Space(tuple((Choice(3), Real(0.0, 1.0, 0.25)) for _ in WORTH))
EVERYWHERE = [[float(choice), 0.5] * 3 for choice in range(3)]


def judge(genome):
    choices = sum(worth[int(choice)] for worth, choice in zip(WORTH, genome[::2], strict=True))
    return choices - sum((factor - 0.625) ** 2 for factor in genome[1::2])


def step(strategy, **kwargs):
    genomes = strategy.ask(**kwargs)
    strategy.tell(genomes, [judge(genome) for genome in genomes])
    return genomes


def test_the_first_sweep_finds_the_best_of_each_block_among_the_initial_ones():
    strategy = GreedySearch(SPACE, population=3, seed=0, initial=EVERYWHERE)
    assert step(strategy) == EVERYWHERE
    assert strategy.best[0] == EVERYWHERE[2]  # 2 + 1 + 9
    seen = [step(strategy) for _ in range(3)]
    for genomes in seen:  # one block at a time, the two other alternatives
        assert len(genomes) == 2
    assert strategy.best == ([0.0, 0.5, 1.0, 0.5, 2.0, 0.5], judge([0.0, 0.5, 1.0, 0.5, 2.0, 0.5]))


def test_then_it_goes_gene_by_gene_with_steps_that_are_halved():
    strategy = GreedySearch(SPACE, population=16, seed=0, initial=EVERYWHERE)
    while strategy.best is None or strategy.best[0][1::2] != [0.625] * 3:
        step(strategy)
    assert strategy.best[0][::2] == [0.0, 1.0, 2.0]
    assert strategy.generation < 20


def test_what_is_known_is_passed_over():
    strategy = GreedySearch(SPACE, population=16, seed=0, initial=EVERYWHERE)
    step(strategy)
    known = {tuple(genome) for genome in EVERYWHERE}
    for _ in range(20):
        genomes = step(strategy, is_known=lambda genome, known=frozenset(known): tuple(genome) in known)
        assert not known & {tuple(genome) for genome in genomes}
        known |= {tuple(genome) for genome in genomes}


def test_a_generation_never_spans_two_blocks_nor_is_larger_than_the_population():
    strategy = GreedySearch(SPACE, population=2, seed=0)
    step(strategy)
    for _ in range(12):
        best = strategy.best[0]
        genomes = step(strategy)
        changed = {index // 2 for genome in genomes for index in range(6) if genome[index] != best[index]}
        assert len(changed) == 1
        assert len(genomes) <= 2


@pytest.mark.parametrize("population", [1, 2, 3, 16])
def test_a_gain_amid_a_block_loses_none_of_the_alternatives_behind_it(population):
    space = Space(((Real(0.0, 10.0, 1.0),),) * 2)
    strategy = GreedySearch(space, population=population, seed=0, initial=[[float(i), float(i)] for i in range(6)])
    tried = set()

    def worth(genome):
        first, second = genome
        return {4.0: 10.0}.get(first, 0.0) + {2.0: 9.0, 0.0: 5.0, 4.0: 4.0, 3.0: 2.0, 1.0: 1.0}.get(second, -9.0)

    while strategy.state_dict()["place"] is None or strategy.state_dict()["place"]["step"] == 0.0:
        genomes = strategy.ask(is_known=lambda genome: tuple(genome) in tried)
        assert len({tuple(genome) for genome in genomes}) == len(genomes)
        tried.update(map(tuple, genomes))
        strategy.tell(genomes, [worth(genome) for genome in genomes])
    assert strategy.best == ([4.0, 2.0], 19.0)
