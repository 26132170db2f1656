"""Proposals that bring something new: what is known already is proposed anew, and counted."""

from collections.abc import Callable

IsKnown = Callable[[list[float]], bool]
Propose = Callable[[int], list[float]]

GROWTH = 1.5
"""By how much a proposal that turned out to be known is varied more at the next try, and a dry generation's at the
next generation."""

EXHAUSTED = 20
"""After so many generations in a row in which nothing was new, there is nothing left to find."""

_TRIES = 8


def novel(propose: Propose, is_known: IsKnown) -> list[float]:
    """Return the first of ``propose(0)``, ``propose(1)``, … that is not known, or the last one tried."""
    for attempt in range(_TRIES):
        genome = propose(attempt)
        if not is_known(genome):
            break
    return genome


class Tally:
    """Asks whether genomes are known, and counts.

    Args:
        is_known: Whom it asks.

    Attributes:
        proposed: How often it was asked.
        known: How often the answer was yes.
    """

    def __init__(self, is_known: IsKnown) -> None:
        """Count from 0."""
        self.is_known = is_known
        self.proposed = self.known = 0

    def __call__(self, genome: list[float]) -> bool:
        """Return the answer."""
        known = self.is_known(genome)
        self.proposed += 1
        self.known += known
        return known
