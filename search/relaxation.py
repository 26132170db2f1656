"""A continuous picture of a space of mixed genes, for strategies that move in one."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search.space import Choice, Gene, Space

Point = NDArray[np.float64]

# Half the distance between the coordinate of the alternative that is chosen and those of the others, in steps.
_MARGIN = 1.0


class Relaxation:
    """Points in a box, each of which stands for a genome.

    A real is one coordinate, counted from the middle of its range in units of its ``sigma``, so that a step of length 1
    means about the same for every gene. A choice of k alternatives is k coordinates in [-1, 1], of which the largest
    decides, the first among equals: alternatives have no order, and rounding a single coordinate would give them one.

    Args:
        space: The genes.

    Attributes:
        low: Smallest coordinates, shape (dimensions,).
        high: Largest coordinates, shape (dimensions,).
    """

    def __init__(self, space: Space) -> None:
        """Lay out the coordinates."""
        self.space = space
        self.high = np.concatenate([_half_width(gene) for gene in space.genes])
        self.low = -self.high

    def __len__(self) -> int:
        """Return the number of coordinates."""
        return len(self.high)

    def point(self, genome: Sequence[float]) -> Point:
        """Return the point that stands most clearly for a genome."""
        return np.concatenate([_coordinates(g, value) for g, value in zip(self.space.genes, genome, strict=True)])

    def clip(self, point: Point) -> Point:
        """Return the nearest point in the box."""
        return np.clip(point, self.low, self.high)

    def genome(self, point: Point) -> list[float]:
        """Return the genome that a point stands for."""
        genome, start = [], 0
        for gene in self.space.genes:
            if isinstance(gene, Choice):
                genome.append(float(np.argmax(point[start : start + gene.size])))
                start += gene.size
            else:
                genome.append(gene.clip((gene.low + gene.high) / 2 + float(point[start]) * gene.sigma))
                start += 1
        return genome


def _half_width(gene: Gene) -> Point:
    if isinstance(gene, Choice):
        return np.full(gene.size, _MARGIN)
    return np.array([(gene.high - gene.low) / 2 / gene.sigma])


def _coordinates(gene: Gene, value: float) -> Point:
    if isinstance(gene, Choice):
        return np.where(np.arange(gene.size) == int(value), _MARGIN, -_MARGIN)
    return np.array([(value - (gene.low + gene.high) / 2) / gene.sigma])
