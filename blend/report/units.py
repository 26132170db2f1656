"""What differences of a metric are told in: points where it is a share, like an accuracy, else as they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """How differences of a metric are written.

    Attributes:
        factor: What they are multiplied by.
        form: How numbers are formatted.
        name: Of the unit; "" where it is the metric's own.
    """

    factor: float = 1.0
    form: str = "+.4g"
    name: str = ""

    @classmethod
    def of(cls, metrics: Iterable[float | None]) -> Unit:
        """Points, hundredths of a share, if all that is known of a metric is from 0 to 1."""
        known = [metric for metric in metrics if metric is not None]
        return cls(100.0, "+.1f", "points") if all(0.0 <= metric <= 1.0 for metric in known) else cls()

    def __call__(self, difference: float) -> str:
        """A difference without the unit's name."""
        return format(self.factor * difference, self.form)

    def interval(self, bounds: Iterable[float]) -> str:
        """Both ends of an interval."""
        return " … ".join(map(self, bounds))

    def named(self, difference: float) -> str:
        """A difference with the unit's name."""
        return f"{self(difference)} {self.name}".rstrip()
