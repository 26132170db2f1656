"""The simulation behind docs/scaling.md on cases that can be solved by hand."""

from itertools import cycle
from pathlib import Path

import pytest

from tests.benchmarks.scaling import Assumptions, simulate, without_generations

FREE = Assumptions(propose=0.0, dispatch=0.0, transfer=0.0)


def timed(*seconds):
    """Draws these, over and over."""
    return cycle(seconds).__next__


def test_one_worker_takes_the_sum():
    outcome = simulate(1, 8, 24, timed(1.0, 2.0, 3.0), FREE)
    assert outcome.makespan == pytest.approx(48.0)
    assert outcome.efficiency == pytest.approx(1.0)
    assert outcome.generations == 3


def test_as_many_workers_as_candidates_take_one_time_a_generation():
    outcome = simulate(8, 8, 40, timed(7.0), FREE)
    assert (outcome.makespan, outcome.generations) == (35.0, 5)
    assert simulate(80, 8, 40, timed(7.0), FREE).makespan == 35.0
    assert simulate(80, 8, 40, timed(7.0), FREE).efficiency == pytest.approx(0.1)


def test_a_generation_waits_for_its_slowest():
    outcome = simulate(4, 4, 8, timed(1.0, 1.0, 1.0, 5.0), FREE)
    assert outcome.makespan == 10.0
    assert outcome.efficiency == pytest.approx(16 / 40)


def test_whoever_is_free_first_gets_the_next():
    assert simulate(2, 4, 4, timed(3.0, 1.0, 1.0, 1.0), FREE).makespan == 3.0  # three against one, one and one
    assert simulate(2, 4, 4, timed(1.0, 1.0, 1.0, 3.0), FREE).makespan == 4.0


def test_the_last_generation_is_cut_to_the_budget():
    outcome = simulate(4, 8, 12, timed(1.0), FREE)
    assert (outcome.makespan, outcome.generations) == (3.0, 2)


def test_overheads_add_up():
    assert simulate(3, 4, 4, timed(1.0), Assumptions(propose=0.0, dispatch=0.0, transfer=5.0)).makespan == 12.0
    assert simulate(4, 4, 8, timed(1.0), Assumptions(propose=0.5, dispatch=0.0, transfer=0.0)).makespan == 6.0
    dispatched = simulate(4, 4, 8, timed(1.0), Assumptions(propose=0.0, dispatch=0.25, transfer=0.0))
    assert dispatched.makespan == 4.0  # the fourth begins after a whole second


def test_generations_only_cost():
    free = without_generations(8, 256, FREE).makespan
    assert free <= simulate(8, 64, 256, assumptions=FREE).makespan <= simulate(8, 16, 256, assumptions=FREE).makespan


def test_times_have_the_mean_that_is_stated():
    draw = FREE.sampler()
    assert sum(draw() for _ in range(20_000)) / 20_000 == pytest.approx(FREE.mean, rel=0.01)  # 3.5 standard errors
    assert FREE.mean == pytest.approx(904.0, abs=0.1)


def test_the_document_holds_what_the_simulation_says():
    document = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
    outcome = simulate(64, 1024)
    assert f"{outcome.makespan / 3600:.3g} h, {outcome.efficiency:.2f}" in document
