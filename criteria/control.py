"""Criteria that know nothing, to hold the others against."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from criteria.registry import register
from criteria.views import GroupStats


@register("random", family="control", needs=(), reference="control", claims={"batch-split", "distinct"})
def random(stats: GroupStats) -> Tensor:
    """Uniform random numbers, fixed by the seed and the names of group and layer.

    Args:
        stats: ``seed``, ``group``, ``layer`` and the number of channels.

    Returns:
        Scores of shape (channels,), in [0, 1).

    Caution:
        A control, not a criterion: what does not beat it has learned nothing.
    """
    key = "\0".join((str(stats.seed), stats.group, stats.layer)).encode()
    generator = np.random.default_rng(list(hashlib.sha256(key).digest()))
    return torch.from_numpy(generator.random(stats.rows))
