import pytest

from search import SearchError, Space
from search.swap import SwapSearch

from .toy import ORDER, ORDERS, SPACE, hits


def test_values_only_change_places_inside_their_block():
    strategy = SwapSearch(ORDER, population=8, seed=0, initial=ORDERS)
    for _ in range(10):
        genomes = strategy.ask(lambda genome: False)
        strategy.tell(genomes, [hits(genome) for genome in genomes])
        for genome in genomes:
            assert [sorted(genome[part]) for part in ORDER.slices] == [sorted(ORDERS[0][part]) for part in ORDER.slices]


def test_a_child_of_one_parent_differs_by_one_exchange():
    strategy = SwapSearch(ORDER, population=8, seed=0, initial=ORDERS[:1], crossover=0.0)
    genomes = strategy.ask()
    strategy.tell(genomes, [0.0] * len(genomes))
    for genome in genomes[1:]:
        places = [index for index in range(36) if genome[index] != ORDERS[0][index]]
        assert len(places) == 2
        assert places[0] // 9 == places[1] // 9


def test_a_space_in_which_nothing_can_change_places_is_refused():
    for space in (SPACE, Space(((SPACE.genes[0],), (SPACE.genes[0],)))):
        with pytest.raises(SearchError, match="two genes of the same kind"):
            SwapSearch(space, population=4, seed=0)
