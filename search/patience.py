"""What went wrong with an item, perhaps by accident; and when an item that does not answer is given up."""

from collections import deque
from dataclasses import dataclass
from statistics import median

from search.errors import SearchValueError
from search.worker import Failure

AS_ASKED = 10**6  # retries, limited by the executor's parameter
PATIENCE = 3600.0  # seconds that an item may take while nothing is known of how long they take
SHORTEST = 300.0  # the least that is ever granted, as a worker may have to load everything first
GENEROSITY = 100  # and as many times the median


class Patience:
    """Seconds after which an item hangs.

    Args:
        timeout: So many. None for 100 times the median so far but at least five minutes; one hour while there is none.

    Raises:
        SearchValueError: If the timeout is not a positive number.
    """

    def __init__(self, timeout: float | None) -> None:
        """Know nothing yet."""
        if timeout is not None and not timeout > 0:
            raise SearchValueError(f"timeout must be greater than 0 seconds, got {timeout}")
        self.timeout = timeout
        self._seconds: deque[float] = deque(maxlen=1000)

    @property
    def limit(self) -> float:
        """How many there are now."""
        if self.timeout is not None:
            return self.timeout
        return max(SHORTEST, GENEROSITY * median(self._seconds)) if self._seconds else PATIENCE

    def took(self, seconds: float) -> None:
        """Learn from an item that was done."""
        self._seconds.append(seconds)


@dataclass(frozen=True)
class Trouble:
    """What went wrong with an item, perhaps by accident.

    Attributes:
        reason: One line.
        retries: How often to try again.
        counted: Whether the reason is to say how often it was tried.
    """

    reason: str
    retries: int = 1
    counted: bool = False

    def final(self, tries: int) -> Failure:
        """The failure that it is after so many tries."""
        return Failure(f"{self.reason} ({tries} of {tries} tries)" if self.counted else self.reason)


class Refused(Trouble):
    """No result, as a worker can run no item at all."""


def hangs(limit: float) -> Trouble:
    """The trouble with an item that has not answered in time."""
    return Trouble(f"no answer within {limit:g} s", counted=True)
