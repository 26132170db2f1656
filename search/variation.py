"""Crossover and mutation of mixed genomes.

DEAP's conventions: operate in place, return a tuple, draw from the global `random` (see `search.strategy`, which lends
it the search's own state).
"""

import random

from deap import tools

from search.individual import Individual
from search.space import Choice, Gene, Real, Space


def cross_blocks(
    first: Individual, second: Individual, space: Space, swap: float = 0.5
) -> tuple[Individual, Individual]:
    """Exchange whole blocks, each with probability `swap`: what was tuned together stays together.

    Args:
        first: Changed in place.
        second: Changed in place.
        space: Says where the blocks are.
        swap: Probability of exchanging a block.

    Returns:
        The two individuals.
    """
    blocks = [[individual[part] for part in space.slices] for individual in (first, second)]
    tools.cxUniform(*blocks, swap)
    for individual, parts in zip((first, second), blocks, strict=True):
        individual[:] = [value for part in parts for value in part]
    return first, second


def mutate(individual: Individual, space: Space, rate: float, strength: float = 1.0) -> tuple[Individual]:
    """Change each gene with probability `rate`, and at least one.

    A real takes a gaussian step of standard deviation ``sigma × strength`` and is clipped; a choice takes another of
    its alternatives, all equally likely.

    Args:
        individual: Changed in place. It stays as it is only where no gene has a second value.
        space: The genes.
        rate: Probability of changing a gene that has none of its own above.
        strength: Factor on the steps of reals.

    Returns:
        The individual, as a tuple of one.
    """
    movable = [index for index, gene in enumerate(space.genes) if isinstance(gene, Real) or gene.size > 1]
    before = list(individual)
    # A step against a bound is clipped away, so one pass may change nothing even when a gene was picked.
    while movable and individual == before:
        picked = [i for i in movable if random.random() < _rate(space.genes[i], rate)] or [random.choice(movable)]
        for index in picked:
            individual[index] = _moved(individual[index], space.genes[index], strength)
    return (individual,)


def exchange(individual: Individual, space: Space, times: int = 1) -> tuple[Individual]:
    """Let two genes of the same kind, of one block, exchange their values.

    Args:
        individual: Changed in place, unless the genes picked have equal values.
        space: The genes.
        times: How many pairs.

    Returns:
        The individual, as a tuple of one.
    """
    pools = exchangeable(space)
    weights = [len(pool) for pool in pools]
    for _ in range(times):
        (pool,) = random.choices(pools, weights)
        first, second = random.sample(pool, 2)
        individual[first], individual[second] = individual[second], individual[first]
    return (individual,)


def exchangeable(space: Space) -> list[list[int]]:
    """Return the places of genes of the same kind in the same block, where there are at least two."""
    pools: dict[tuple[int, Gene], list[int]] = {}
    for number, part in enumerate(space.slices):
        for index in range(part.start, part.stop):
            pools.setdefault((number, space.genes[index]), []).append(index)
    return [pool for pool in pools.values() if len(pool) > 1]


def _rate(gene: Gene, rate: float) -> float:
    return max(rate, gene.rate) if isinstance(gene, Real) else rate


def _moved(value: float, gene: Gene, strength: float) -> float:
    if isinstance(gene, Choice):
        step = random.randrange(1, gene.size)
        return float((int(value) + step) % gene.size)
    return gene.clip(value + random.gauss(0.0, gene.sigma * strength))
