import math
import random
from dataclasses import replace

import pytest

from search import WORST_FITNESS, Archive, Evaluation, SearchError


def evaluation(number, fitness, phenotype=None, phase="search", cached=False, error=None, **details):
    phenotype = phenotype or bytes([number])
    return Evaluation(number, phase, 0, (float(number),), phenotype, fitness, details, 0.1, cached, error)


def test_finds_the_first_evaluation_of_a_phenotype():
    first, again = evaluation(0, 1.0, b"a"), evaluation(1, 1.0, b"a", cached=True)
    archive = Archive([first, again])
    assert archive.get(b"a", "search") is first
    assert archive.holds(b"a")
    assert not archive.holds(b"b")
    assert archive.get(b"b", "search") is None
    assert (len(archive), list(archive)) == (2, [first, again])


def test_its_own_evaluation_goes_before_those_of_other_phases_and_what_these_gave_up_is_none():
    given_up, whole = evaluation(0, 1.0, b"a", share=0.5), evaluation(1, 2.0, b"b")
    own = evaluation(2, 3.0, b"a", phase="random")
    archive = Archive([given_up, whole])
    assert archive.get(b"a", "search") is given_up
    assert archive.get(b"a", "random") is None
    assert archive.get(b"b", "random") is whole
    assert (archive.holds(b"b", "search"), archive.holds(b"b", "random")) == (True, False)
    archive.add(own)
    assert archive.get(b"a", "random") is own
    assert archive.get(b"a", "search") is given_up
    assert archive.get(b"a", "polish") is own


def test_history_and_best_of_a_phase():
    a, b, c = evaluation(0, 1.0), evaluation(1, 3.0, phase="random"), evaluation(2, 2.0)
    archive = Archive([a, b, c])
    assert archive.history("search") == [a, c]
    assert archive.history() == [a, b, c]
    assert archive.best("search") is c
    assert archive.best() is b
    assert archive.best("other") is None


def test_a_failure_is_never_the_best():
    archive = Archive([evaluation(0, WORST_FITNESS, error="lost")])
    assert archive.best() is None
    assert archive.front("cost") == []


@pytest.mark.parametrize("fitness", [math.nan, math.inf, -math.inf])
def test_refuses_what_is_not_finite(fitness):
    archive = Archive()
    with pytest.raises(SearchError, match="fitness must be finite"):
        archive.add(evaluation(0, fitness))
    assert len(archive) == 0


def test_front_by_hand():
    points = [(1.0, 5.0), (3.0, 2.0), (2.0, 2.0), (3.0, 2.0), (4.0, 9.0), (3.5, 9.0), (0.0, 1.0)]
    archive = Archive(evaluation(i, fitness, cost=cost) for i, (fitness, cost) in enumerate(points))
    assert [e.number for e in archive.front("cost")] == [6, 1, 4]


def test_front_names_the_missing_cost():
    with pytest.raises(SearchError, match="'latency' is not in number 0"):
        Archive([evaluation(0, 1.0, cost=1.0)]).front("latency")


def test_a_front_that_is_asked_for_now_and_then_is_that_of_everything():
    rng = random.Random(0)
    archive, everything = Archive(), []
    for number in range(200):
        everything.append(evaluation(number, rng.randrange(12), cost=rng.randrange(12), phase="ab"[number % 2]))
        archive.add(everything[-1])
        if rng.random() < 0.2:
            for phase in ("a", None):
                assert archive.front("cost", phase) == Archive(everything).front("cost", phase)


def test_the_newest_generation_is_the_last_that_brought_a_phenotype_to_its_phase():
    archive = Archive()
    assert archive.newest("search") == -1
    for generation, phenotype, newest in ((0, b"a", 0), (1, b"a", 0), (2, b"b", 2), (3, b"a", 2)):
        archive.add(replace(evaluation(len(archive), 1.0, phenotype), generation=generation))
        assert archive.newest("search") == newest
    archive.add(evaluation(4, 1.0, b"b", phase="random"))
    assert (archive.newest("search"), archive.newest("random")) == (2, 0)
