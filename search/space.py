"""The space that is searched: genes, and the blocks of genes that belong together."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise

from search.errors import SearchValueError


@dataclass(frozen=True)
class Real:
    """A real number in [low, high].

    Attributes:
        low: Smallest value.
        high: Largest value, above `low`.
        sigma: Standard deviation of a mutation step of strength 1, in the unit of the value.
        spread: New values are drawn from the middle of the range ± spread; from the whole range if None.
        rate: Probability that a mutation changes it, where that of all genes is lower.
    """

    low: float
    high: float
    sigma: float
    spread: float | None = None
    rate: float = 0.0

    def __post_init__(self) -> None:
        """Check the bounds and the step."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise SearchValueError(f"low and high must be finite with low < high, got [{self.low}, {self.high}]")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise SearchValueError(f"sigma must be finite and positive, got {self.sigma}")
        if self.low + self.sigma == self.low or self.high - self.sigma == self.high:
            raise SearchValueError(f"sigma must be more than rounding of {[self.low, self.high]}, got {self.sigma}")
        if self.spread is not None and not 0 < self.spread <= (self.high - self.low) / 2:
            raise SearchValueError(f"spread must be positive and at most half the range, got {self.spread}")
        if not 0 <= self.rate <= 1:
            raise SearchValueError(f"rate must be in [0, 1], got {self.rate}")

    def sample(self, rng: random.Random) -> float:
        """Draw uniformly from the range, or from its middle part if there is a spread."""
        if self.spread is None:
            return self.clip(rng.uniform(self.low, self.high))
        middle = (self.low + self.high) / 2
        return self.clip(rng.uniform(middle - self.spread, middle + self.spread))

    def clip(self, value: float) -> float:
        """Return the nearest value within the bounds."""
        return float(min(max(value, self.low), self.high))

    def holds(self, value: float) -> bool:
        """Whether `value` is one of the gene's values; NaN never is."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Choice:
    """One of `size` unordered alternatives, stored as an integral float in 0 … size − 1.

    Attributes:
        size: Number of alternatives, at least 1.
    """

    size: int

    def __post_init__(self) -> None:
        """Check the size."""
        if self.size < 1:
            raise SearchValueError(f"size must be at least 1, got {self.size}")

    def sample(self, rng: random.Random) -> float:
        """Draw one of the alternatives, all equally likely."""
        return float(rng.randrange(self.size))

    def clip(self, value: float) -> float:
        """Return the nearest alternative."""
        return float(round(min(max(value, 0), self.size - 1)))

    def holds(self, value: float) -> bool:
        """Whether `value` is one of the gene's values; NaN never is."""
        return 0 <= value < self.size and float(value).is_integer()


Gene = Real | Choice


@dataclass(frozen=True)
class Space:
    """A product of genes, cut into blocks.

    A genome is a flat ``list[float]`` of `len(space)` values in block order.

    Attributes:
        blocks: The genes, block by block. Crossover exchanges whole blocks, so genes that only make sense together
            belong into one.
    """

    blocks: tuple[tuple[Gene, ...], ...]

    def __post_init__(self) -> None:
        """Check that there is something to search."""
        if not self.blocks or not all(self.blocks):
            raise SearchValueError(f"blocks must be non-empty and hold at least one gene each, got {self.blocks}")

    def __len__(self) -> int:
        """Return the number of genes."""
        return len(self.genes)

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """Every gene, in genome order."""
        return tuple(chain.from_iterable(self.blocks))

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The part of a genome that each block takes."""
        ends = accumulate((len(block) for block in self.blocks), initial=0)
        return tuple(slice(start, end) for start, end in pairwise(ends))

    def sample(self, rng: random.Random) -> list[float]:
        """Draw a genome uniformly."""
        return [gene.sample(rng) for gene in self.genes]

    def clip(self, genome: Sequence[float]) -> list[float]:
        """Return the nearest genome of this space: reals clipped, choices rounded and clipped.

        Raises:
            SearchError: The length is wrong or a value is NaN: there is no nearest genome.
        """
        self._check_length(genome)
        for index, value in enumerate(genome):
            if math.isnan(value):
                raise SearchValueError(f"genome[{index}] must be a number, got {value}")
        return [gene.clip(value) for gene, value in zip(self.genes, genome, strict=True)]

    def check(self, genome: Sequence[float]) -> None:
        """Raise unless `genome` belongs to this space.

        Raises:
            SearchError: The length is wrong, or a value is NaN, out of range, or not one of the alternatives.
        """
        self._check_length(genome)
        for index, (gene, value) in enumerate(zip(self.genes, genome, strict=True)):
            if not gene.holds(value):
                raise SearchValueError(f"genome[{index}] must be a value of {gene}, got {value}")

    def _check_length(self, genome: Sequence[float]) -> None:
        if len(genome) != len(self):
            raise SearchValueError(f"genome must have {len(self)} values, got {len(genome)}")
