"""CMA-ES: a normal distribution that learns where the good ones lie."""

import random
from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
from deap import cma

from search.archive import WORST_FITNESS
from search.individual import Individual
from search.novelty import GROWTH, IsKnown, novel
from search.relaxation import Point, Relaxation
from search.space import Space
from search.strategy import Strategy

FULL_UP_TO = 20
"""Coordinates up to which the whole covariance matrix is learnt; above, only its diagonal.

A matrix has n²/2 numbers to be learnt from a few hundred evaluations; a diagonal has n.
"""

_FIRST_STEP = 0.7  # in units of each gene's own sigma
_LEAST_STEP = 0.02  # below it nothing new is found: begin again from the best
_LEAST_AXIS = 1e-7  # of the longest; where genes lie at their bounds, others go on to grow until numbers are spent


class CMAES(Strategy):
    """Covariance matrix adaptation in the relaxation of the space (see `search.relaxation`).

    The first generation is that of every strategy; the distribution begins at the best of it. A point outside the box
    is replaced by the nearest one inside, and learnt from as such. A proposal that is known is drawn anew with a
    larger step. A generation cut short by a limit, or of which more than half failed, teaches the distribution
    nothing. When its steps have become too short to find anything new, or some next to nothing beside others, it
    begins again from the best.

    Up to `FULL_UP_TO` coordinates this is DEAP's `cma.Strategy`; above, the separable variant (Ros and Hansen, PPSN
    2008). Draws come from the strategy's own random state, not from numpy's.

    Args:
        space: What is searched.
        population: Number of genomes in a generation (λ).
        seed: Seed of the own random state.
        initial: As for `search.strategy.Strategy`.
    """

    def __init__(self, space: Space, *, population: int, seed: int, initial: Sequence[Sequence[float]] = ()) -> None:
        """Start without a distribution: the first generation gives its centre."""
        super().__init__(space, population=population, elite=population, seed=seed, initial=initial)
        self._relaxed = Relaxation(space)
        self._distribution: cma.Strategy | None = None
        self._points: list[Point] = []

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides the future; the distribution with it."""
        saved: dict[str, Any] | None = None
        if (d := self._distribution) is not None:
            saved = {
                "sigma": float(d.sigma),
                "updates": d.update_count,
                **{name: getattr(d, name).tolist() for name in ("centroid", "pc", "ps", "C")},
            }
        points = [point.tolist() for point in self._points]
        return super().state_dict() | {"points": points, "distribution": saved}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._points = [np.array(point) for point in state["points"]]
        self._distribution = None
        if (saved := state["distribution"]) is not None:
            self._distribution = self._begin(np.array(saved["centroid"]), saved["sigma"], np.array(saved["C"]))
            self._distribution.update_count = saved["updates"]
            self._distribution.pc, self._distribution.ps = np.array(saved["pc"]), np.array(saved["ps"])

    def _propose(self, is_known: IsKnown, count: int) -> list[list[float]]:
        distribution, points = self._distribution, list[Point]()

        def drawn(attempt: int) -> list[float]:
            points[number:] = [self._draw(distribution, self.boost * GROWTH**attempt)]
            return self._relaxed.genome(points[number])

        genomes = []
        for number in range(count):  # noqa: B007 - read by drawn
            genomes.append(novel(drawn, is_known))
        self._points = points
        return genomes

    def _draw(self, d: cma.Strategy, strength: float) -> Point:
        normal = np.array([random.gauss(0.0, 1.0) for _ in range(len(d.centroid))])
        step = d.BD @ normal if d.C.ndim == 2 else d.diagD * normal
        return self._relaxed.clip(d.centroid + d.sigma * strength * step)

    def _learn(self, told: list[Individual]) -> None:
        if self._distribution is None or self._distribution.sigma * max(self._distribution.diagD) < _LEAST_STEP:
            self._distribution = self._begin_again()
        elif sum(one.value > WORST_FITNESS for one in told) >= self._distribution.mu and len(told) == self.population:
            judged = zip(self._points, told, strict=True)
            with np.errstate(invalid="ignore", divide="ignore"):  # an eigenvalue may be 0, or less by rounding
                self._distribution.update([Individual(point.tolist(), one.value) for point, one in judged])
            if not min(self._distribution.diagD) > _LEAST_AXIS * max(self._distribution.diagD):
                self._distribution = self._begin_again()
        self._points = []

    def _begin_again(self) -> cma.Strategy:
        return self._begin(self._relaxed.point(self._survivors[0]), _FIRST_STEP)

    def _begin(self, centroid: Point, sigma: float, covariance: Point | None = None) -> cma.Strategy:
        kind = cma.Strategy if len(centroid) <= FULL_UP_TO else _Separable
        sizes = {"lambda_": self.population, "mu": max(1, self.population // 2)}
        return kind(centroid, sigma, **sizes, **({} if covariance is None else {"cmatrix": covariance}))


class _Separable(cma.Strategy):
    """CMA-ES with a diagonal covariance matrix, held as a vector `C` of shape (coordinates,).

    As in DEAP's own, to which it adds the learning rates, (n + 2) / 3 times as large, of Ros and Hansen, section 3.
    """

    def __init__(self, centroid: Point, sigma: float, **parameters: Any) -> None:
        n = len(centroid)
        self.dim, self.centroid, self.sigma, self.update_count = n, centroid, sigma, 0
        self.pc, self.ps = np.zeros(n), np.zeros(n)
        self.C = parameters.pop("cmatrix", np.ones(n))
        self.diagD = np.sqrt(self.C)
        self.chiN = sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
        self.lambda_ = parameters["lambda_"]
        self.computeParams(parameters)
        faster = (n + 2) / 3
        self.ccov1: float = min(1.0, faster * self.ccov1)
        self.ccovmu: float = min(1.0 - self.ccov1, faster * self.ccovmu)

    def update(self, population: list[Individual]) -> None:
        best = sorted(population, key=lambda one: one.fitness, reverse=True)[: self.mu]
        steps = (np.array(best) - self.centroid) / self.sigma  # (mu, n)
        mean = self.weights @ steps
        self.centroid = self.centroid + self.sigma * mean
        self.ps = (1 - self.cs) * self.ps + sqrt(self.cs * (2 - self.cs) * self.mueff) * mean / self.diagD
        self.update_count += 1
        length = float(np.linalg.norm(self.ps)) / self.chiN
        moderate = length / sqrt(1 - (1 - self.cs) ** (2 * self.update_count)) < 1.4 + 2 / (self.dim + 1)
        self.pc = (1 - self.cc) * self.pc + moderate * sqrt(self.cc * (2 - self.cc) * self.mueff) * mean
        kept = 1 - self.ccov1 - self.ccovmu + (not moderate) * self.ccov1 * self.cc * (2 - self.cc)
        self.C = kept * self.C + self.ccov1 * self.pc**2 + self.ccovmu * (self.weights @ steps**2)
        self.sigma *= np.exp((length - 1) * self.cs / self.damps)
        self.diagD = np.sqrt(self.C)
