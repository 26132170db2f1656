"""Paired timing: the two sides alternate, so that a noisy machine is equally noisy for both."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """One measured ratio.

    Attributes:
        what: What was measured.
        ours: Median of our side, in the unit.
        peer: Median of the other side, or the limit.
        ratio: Median of the pairs' ratios, ours to theirs unless ``what`` says otherwise.
        unit: Of ``ours`` and ``peer``.
        against: What the other side is.
    """

    what: str
    ours: float
    peer: float
    ratio: float
    unit: str
    against: str

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def paired(
    what: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    against: str,
    rounds: int = 7,
    warm_up: bool = True,
) -> Row:
    """Times two functions in turn, after one warm-up each unless they take so long that it makes no difference."""
    if warm_up:
        ours(), peer()
    pairs = [(_seconds(ours), _seconds(peer)) for _ in range(rounds)]
    return Row(
        what,
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
        "s",
        against,
    )


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
