"""What forward passes take: networks in turns, on one thread, so that a noisy machine is equally noisy for all.

What counts is the thread's processor time: on an idle machine the same as time on the wall, on a busy one without what
other processes take.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor, nn

from blend.pruning import reproducibly
from criteria.evaluating import evaluating
from search.machine import processor

LEAST_ROUNDS = 6
"""Fewer give no interval of the median with 95 % confidence."""
Clock = Callable[[], float]
Seconds = NDArray[np.float64]


def seconds_in_turns(
    networks: Sequence[nn.Module],
    inputs: Tensor,
    rounds: int,
    clock: Clock = time.thread_time,
    budget: float = math.inf,
) -> Seconds:
    """Seconds of a forward pass of each network, again and again, in evaluation mode on one thread.

    In every round each network has its turn, behind another one than in the round before; one round goes uncounted.

    Args:
        networks: The networks.
        inputs: A batch.
        rounds: How often, at least once.
        clock: Tells the time.
        budget: Seconds after which no round begins, once there are `LEAST_ROUNDS`.

    Returns:
        Shape (rounds, networks), with as many rounds as there were.
    """
    seconds = np.empty((rounds, len(networks)))
    with reproducibly(), evaluating(*networks), torch.no_grad():
        for network in networks:
            network(inputs)
        for number in range(rounds):
            if number >= LEAST_ROUNDS and seconds[:number].sum() >= budget:
                return seconds[:number]
            for place in np.roll(np.arange(len(networks)), number).tolist():
                began = clock()
                networks[place](inputs)
                seconds[number, place] = clock() - began
    return seconds


def median_interval(values: Sequence[float] | Seconds, confidence: float = 0.95) -> tuple[float, float, float]:
    """The median, and the narrowest pair of order statistics that holds it with at least some confidence.

    Nothing is assumed of the distribution: the number of values below the median is binomial (Conover, *Practical
    Nonparametric Statistics*, 1999, section 3.2). Fewer than six values are too few for 95 %; their range is given.

    Args:
        values: Independent measurements, at least one.
        confidence: In (0, 1).

    Returns:
        Median, lower and upper end.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    number, risk = len(ordered), 1 - confidence
    cut = max((k for k in range(number // 2) if 2 * binom.cdf(k, number, 0.5) <= risk), default=0)
    return float(np.median(ordered)), float(ordered[cut]), float(ordered[-1 - cut])


def batch_of(inputs: Tensor, size: int) -> Tensor:
    """So many inputs, the first ones; again from the beginning where there are fewer."""
    return inputs[torch.arange(size) % len(inputs)]


def conditions() -> dict[str, Any]:
    """What seconds depend on besides the network: to be kept beside them."""
    return {"threads": 1, "torch": torch.__version__, "cpu": processor()}
