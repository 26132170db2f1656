import random

import numpy as np
import pytest
from deap import cma

from search import Real, Space
from search.archive import WORST_FITNESS
from search.cma_es import CMAES, FULL_UP_TO, _Separable
from search.individual import Individual


def space(genes):
    return Space(((Real(-1.0, 1.0, 0.2),) * genes,))


def ellipsoid(genome, condition=100.0):
    scales = np.logspace(0, np.log10(condition), len(genome))
    return -float(np.sum(scales * (np.array(genome) - 0.2) ** 2))


def run(genes, evaluations, population=12, seed=0, initial=()):
    strategy = CMAES(space(genes), population=population, seed=seed, initial=initial)
    while evaluations:
        genomes = strategy.ask(limit=evaluations)
        strategy.tell(genomes, [ellipsoid(genome) for genome in genomes])
        evaluations -= len(genomes)
    return strategy


def test_small_spaces_get_the_whole_matrix_and_large_ones_its_diagonal():
    for genes, shape in ((FULL_UP_TO, (FULL_UP_TO, FULL_UP_TO)), (FULL_UP_TO + 1, (FULL_UP_TO + 1,))):
        saved = run(genes, 24).state_dict()["distribution"]
        assert np.array(saved["C"]).shape == shape


@pytest.mark.parametrize(("genes", "left"), [(4, 1e-5), (10, 1e-3), (FULL_UP_TO + 10, 1e-2)])
def test_it_converges_on_a_badly_conditioned_ellipsoid(genes, left):
    for seed in range(3):
        strategy = run(genes, 1200, seed=seed, initial=[[0.0] * genes])
        assert strategy.best[1] > left * ellipsoid([0.0] * genes)


def test_a_single_coordinate_is_the_same_with_a_matrix_and_with_a_diagonal():
    rng = random.Random(0)
    full = cma.Strategy(np.array([0.3]), 0.5, lambda_=6, mu=3)
    diagonal = _Separable(np.array([0.3]), 0.5, lambda_=6, mu=3)
    for _ in range(10):
        points = [full.centroid + full.sigma * rng.gauss(0, 1) for _ in range(6)]
        told = [Individual(point.tolist(), -abs(float(point[0]) - 1.0)) for point in points]
        full.update(list(told))
        diagonal.update(list(told))
        assert diagonal.centroid == pytest.approx(full.centroid)
        assert diagonal.sigma == pytest.approx(full.sigma)
        assert diagonal.C.tolist() == pytest.approx(full.C[0].tolist())


def test_a_generation_that_was_cut_teaches_nothing_but_the_best():
    strategy = run(4, 36)
    before = strategy.state_dict()["distribution"]
    genomes = strategy.ask(limit=5)
    strategy.tell(genomes, [1.0] * 5)
    assert strategy.state_dict()["distribution"] == before
    assert strategy.best == (genomes[0], 1.0)


@pytest.mark.parametrize(("failed", "teaches"), [(6, True), (7, False)])
def test_a_generation_of_which_more_than_half_failed_teaches_nothing(failed, teaches):
    strategy = run(4, 36, population=12)
    before = strategy.state_dict()["distribution"]
    genomes = strategy.ask()
    fitnesses = [WORST_FITNESS] * failed + [ellipsoid(genome) for genome in genomes[failed:]]
    strategy.tell(genomes, fitnesses)
    assert (strategy.state_dict()["distribution"] != before) is teaches


def test_when_its_steps_are_too_short_it_begins_again_from_the_best():
    strategy = run(2, 1200)
    sigmas = []
    for _ in range(60):
        genomes = strategy.ask()
        strategy.tell(genomes, [ellipsoid(genome) for genome in genomes])
        sigmas.append(strategy.state_dict()["distribution"]["sigma"])
    begun = [number for number, sigma in enumerate(sigmas) if sigma == 0.7]
    assert begun
    assert min(sigmas) < 0.1


@pytest.mark.parametrize(("genes", "population"), [(2, 200), (4, 60), (4, 200)])
def test_it_begins_again_where_genes_stay_at_their_bounds(genes, population):
    strategy = CMAES(space(genes), population=population, seed=0)
    steps = []
    for _ in range(60):
        genomes = strategy.ask(limit=population)
        assert np.isfinite(genomes).all()
        strategy.tell(genomes, [genome[0] for genome in genomes])
        steps.append(strategy.state_dict()["distribution"]["sigma"])
        assert np.isfinite(strategy.state_dict()["distribution"]["C"]).all()
    assert steps.count(steps[0]) > 1  # begun again
    assert strategy.best[1] == 1.0
