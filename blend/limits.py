"""Limits as people write them, and as they read them: when a search ends, and what it may take."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from search.archive import Evaluation
from search.novelty import EXHAUSTED

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_PART = r"(\d+(?:\.\d+)?)([smhd])"
QUANTITIES = ("metric", "fitness")
NARROWEST = 0.01
"""Width of a range of reductions."""
AROUND = 0.4
"""How far a range goes from its middle, in shares of the way to 0 or 1, whichever is nearer."""
GAIN = 0.001
"""By what share the hypervolume of a front has to grow to be worth waiting for."""


def seconds_of(text: str | float) -> float:
    """Seconds of a duration like ``90``, ``45s``, ``1.5h`` or ``1h30m``.

    Raises:
        ValueError: If it is none, or not longer than nothing.
    """
    written = str(text).strip().lower()
    if re.fullmatch(f"({_PART})+", written):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, written))
    else:
        try:
            seconds = float(written)
        except ValueError:
            seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"must be a duration like 90s, 45m, 2h or 1h30m, got '{text}'")
    return seconds


def bytes_of(text: str | int) -> int:
    """Bytes of a size like ``0``, ``512M`` or ``1.5G``, in powers of 1024.

    Raises:
        ValueError: If it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmgt]?)(i?b)?", str(text).strip().lower())
    size = math.nan if found is None else float(found[1]) * _BYTES[found[2]]
    if not math.isfinite(size):
        raise ValueError(f"must be a size like 512M, 2G or 0, got '{text}'")
    return int(size)


def reductions_of(text: str) -> tuple[float, float]:
    """Lowest and highest of a range of reductions like ``0.3:0.7``.

    Raises:
        ValueError: If it is none.
    """
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        low = high = math.nan
    if not (low > 0 and round(high - low, 9) >= NARROWEST and high < 1):
        raise ValueError(
            f"must be a number in (0, 1) or LOW:HIGH in it, with HIGH at least {NARROWEST} above LOW, got '{text}'"
        )
    return low, high


def reductions_around(middle: float) -> tuple[float, float]:
    """The range that a single reduction stands for where a front is searched: 0.5 for 0.3:0.7."""
    width = max(AROUND * min(middle, 1.0 - middle), NARROWEST / 2)
    low, high = middle - width, middle + width
    if low <= 0:
        low, high = middle / 2, middle / 2 + 2 * width
    elif high >= 1:
        low, high = (1 + middle) / 2 - 2 * width, (1 + middle) / 2
    return round(low, 6), round(high, 6)


def duration(seconds: float) -> str:
    """A duration as people write it, with its two largest units: ``1h30m``."""
    left, parts = round(seconds), []
    for unit, size in reversed(_UNITS.items()):
        count, left = divmod(left, int(size))
        parts += [f"{count}{unit}"] if count else []
    return "".join(parts[:2]) or "0s"


@dataclass(frozen=True)
class Target:
    """What the best candidate has to reach on held-out data.

    Attributes:
        quantity: ``metric`` or ``fitness``.
        value: At least that.
    """

    quantity: str
    value: float

    @classmethod
    def parse(cls, text: str | float) -> Target:
        """Reads ``metric=0.9``, ``fitness=-0.3`` or ``0.9``, which is the metric.

        Raises:
            ValueError: If it is none of these.
        """
        quantity, equals, number = str(text).rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (equals and quantity not in QUANTITIES):
            raise ValueError(f"must be a number, metric=NUMBER or fitness=NUMBER, got '{text}'")
        return cls(quantity or "metric", value)

    def __str__(self) -> str:
        return f"{self.quantity}={repr(self.value).removesuffix('.0')}"

    def is_reached(self, best: Evaluation) -> bool:
        """Whether a candidate reaches it."""
        return float(best.fitness if self.quantity == "fitness" else best.details["metric"]) >= self.value


def counted(number: int | None, noun: str) -> str:
    """So many of something, in words."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def ending(reason: str, config: Any) -> str:
    """Why a search ended, in words."""
    return {
        "evaluations": f"{_all(config.evaluations - config.polish)} spent",
        "generations": f"{counted(config.generations, 'generation')} done",
        "time": f"its time of {duration(config.time or 0.0)} is over",
        "target": f"the target {config.target} is reached",
        "patience": f"{_stagnation(config)} in {counted(config.patience, 'generation')}",
        "exhausted": f"nothing new in {counted(EXHAUSTED, 'generation')}: it knows all that it can propose",
    }[reason]


def _all(evaluations: int) -> str:
    return "the one evaluation is" if evaluations == 1 else f"all {evaluations} evaluations are"


def _stagnation(config: Any) -> str:
    return "no improvement" if config.reductions is None else f"the hypervolume grew by less than {GAIN:.1%}"
