"""How different the genomes of a population are."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, pstdev

from search.space import Choice, Space


def diversity(space: Space, genomes: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return three shares, each 0 where there is nothing to compare.

    Args:
        space: The genes.
        genomes: The population.

    Returns:
        ``unique``: different genomes / genomes. ``spread``: standard deviation of a real / its range, averaged over
        the reals. ``entropy``: Shannon entropy of a choice / its largest possible value, averaged over the choices
        with more than one alternative.
    """
    if not genomes:
        return {"unique": 0.0, "spread": 0.0, "entropy": 0.0}
    spreads, entropies = [], []
    for gene, values in zip(space.genes, zip(*genomes, strict=True), strict=True):
        if not isinstance(gene, Choice):
            spreads.append(pstdev(values) / (gene.high - gene.low))
        elif gene.size > 1:
            entropies.append(_entropy(values) / math.log(gene.size))
    return {
        "unique": len(set(map(tuple, genomes))) / len(genomes),
        "spread": fmean(spreads) if spreads else 0.0,
        "entropy": fmean(entropies) if entropies else 0.0,
    }


def _entropy(values: Sequence[float]) -> float:
    return sum(-count / len(values) * math.log(count / len(values)) for count in Counter(values).values())
