"""How much of a picture a front of two objectives has conquered."""

from collections.abc import Iterable


def hypervolume(points: Iterable[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Return the area between a reference and what is dominated by points; both coordinates are maximised.

    Zitzler and Thiele, PPSN 1998. A point that does not surpass the reference in both coordinates adds nothing.

    Args:
        points: Any points; dominated ones add nothing.
        reference: The corner from which is measured.

    >>> hypervolume([(1.0, 3.0), (2.0, 2.0), (1.5, 1.0)], (0.0, 0.0))
    5.0
    """
    area, (left, level) = 0.0, reference
    for x, y in sorted(points, reverse=True):
        if x > left and y > level:
            area += (x - left) * (y - level)
            level = y
    return area
