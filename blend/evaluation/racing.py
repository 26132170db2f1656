"""When to stop judging a candidate: once it is clear, from part of the data, that it falls short of a rival."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

RISK = 0.01
"""Probability, at each look, that a candidate is given up which all the data would have put above the rival.

There are many looks: of candidates that are better by a hair, one in ten is lost by the end, of 2,000 examples.
"""
CHUNK = 16
"""Examples whose mean counts as one value: of fewer, the mean is far from normal."""
LEAST = 6
"""Pairs of values before the first look: fewer say little about how much the differences vary."""
LOOK = 64
"""Examples from one look to the next: the more looks, the more candidates are given up by chance."""


def is_hopeless(candidate: Sequence[float], rival: Sequence[float], sizes: Sequence[int]) -> bool:
    """Whether a candidate, judged on part of the data, is below a rival that was judged on all.

    Both were judged on the same examples, so their differences are looked at, which vary much less than the values.
    The examples not seen yet are as good as drawn from the same population as those seen: with mean difference d and
    variance s² of n examples seen out of N, the mean difference over all lies around d with variance s² · (1/n − 1/N).
    As s² is that of k chunks only, the deviation follows a t-distribution of k − 1 degrees of freedom.

    Args:
        candidate: Mean values (higher is better) of chunks of the data, as far as they have been seen.
        rival: The same for all chunks.
        sizes: Examples in each chunk, for all chunks.
    """
    from scipy.special import stdtr  # takes a while, in every worker, and not all of them race

    if len(candidate) == len(rival):
        return False
    differences = list(_joined(candidate, rival, sizes))
    if len(differences) < LEAST:
        return False
    seen, total = sum(n for _, n in differences), sum(sizes)
    mean = math.fsum(d * n for d, n in differences) / seen
    if not mean < 0:
        return False
    spread = math.fsum(n * (d - mean) ** 2 for d, n in differences) / (len(differences) - 1)
    deviation = math.sqrt(spread * (1 / seen - 1 / total))
    return deviation == 0 or bool(stdtr(len(differences) - 1, mean / deviation) < RISK)


def _joined(candidate: Sequence[float], rival: Sequence[float], sizes: Sequence[int]) -> Iterator[tuple[float, int]]:
    """Mean differences and numbers of examples of chunks, small ones together; too few at the end wait for more."""
    total, count = 0.0, 0
    for ours, theirs, size in zip(candidate, rival, sizes, strict=False):
        total, count = total + (ours - theirs) * size, count + size
        if count >= CHUNK:
            yield total / count, count
            total, count = 0.0, 0


def estimate(candidate: Sequence[float], rival: Sequence[float], sizes: Sequence[int]) -> float:
    """What all the data would say of a candidate: the rival's value, and the mean difference on what has been seen."""
    seen = sum(sizes[: len(candidate)])
    differences = (n * (ours - theirs) for ours, theirs, n in zip(candidate, rival, sizes, strict=False))
    return weighted_mean(rival, sizes) + math.fsum(differences) / seen


def weighted_mean(values: Sequence[float], sizes: Sequence[int]) -> float:
    """Mean over examples of the means of chunks."""
    return math.fsum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)
