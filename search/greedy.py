"""Greedy search: one block at a time, one gene at a time."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from search.novelty import IsKnown, novel
from search.space import Choice, Space
from search.strategy import Strategy

_SWEEPS = 4  # without a single new proposal before mutation takes over
_LEAST_STEP = 1 / 16


@dataclass(frozen=True)
class _Place:
    """Where a sweep over the blocks is.

    Attributes:
        order: The blocks in the order in which this sweep visits them.
        position: Index in `order` of the block in turn.
        move: Index of the next of its moves.
        step: Length of a step of a real, in units of its sigma; 0 in the sweep that exchanges whole blocks.
        best: The best fitness when the sweep began.
    """

    order: tuple[int, ...]
    position: int
    move: int
    step: float
    best: float


class GreedySearch(Strategy):
    """Coordinate-wise ascent from the best initial genome.

    The first sweep tries in every block, one block after the other, the values that the initial genomes have there,
    and keeps the best: if they are single criteria, that is the best criterion per group. Later sweeps try, gene by
    gene, every alternative of a choice and a step to either side of a real; a sweep without any gain halves the step,
    down to a sixteenth, after which it is whole again. What is known is passed over. When there is nothing left to try,
    the best is mutated.

    It is deterministic but for the order of the blocks, which is drawn anew for each sweep.

    Args:
        space: What is searched.
        population: Largest number of genomes in a generation. A generation never spans two blocks, so that each block
            is decided before the next.
        seed: Seed of the own random state.
        initial: As for `search.strategy.Strategy`.
    """

    adapts = False

    def __init__(self, space: Space, *, population: int, seed: int, initial: Sequence[Sequence[float]] = ()) -> None:
        """Start at generation 0 with nothing known but the initial genomes."""
        super().__init__(space, population=population, elite=1, seed=seed, initial=initial)
        self._place: _Place | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides the future; the place of the sweep with it."""
        place = None if self._place is None else {**asdict(self._place), "order": list(self._place.order)}
        return super().state_dict() | {"place": place}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        saved = state["place"]
        self._place = None if saved is None else _Place(**{**saved, "order": tuple(saved["order"])})

    @property
    def rival(self) -> list[float] | None:
        """The best genome: nothing else matters to what is tried next."""
        return self._last_survivor()

    def _propose(self, is_known: IsKnown, count: int) -> list[list[float]]:
        place = self._place or self._sweep(0.0 if self.initial else 1.0)
        for _ in range(_SWEEPS * len(place.order)):
            if place.position == len(place.order):
                place = self._sweep(self._next_step(place))
            moves = enumerate(self._moves(place.order[place.position], place.step), 1)
            index, fresh = place.move, list[list[float]]()
            for index, move in islice(moves, place.move, None):  # noqa: B007 - read below
                if move != self._survivors[0] and move not in fresh and not is_known(move):
                    fresh.append(move)
                if len(fresh) == count:
                    break
            ended = next(moves, None) is None
            place = replace(place, position=place.position + ended, move=0 if ended else index)
            if fresh:
                self._place = place
                return fresh
        mutants = [novel(lambda attempt: self._mutated(self._survivors[0], attempt), is_known) for _ in range(count)]
        self._place = self._sweep(1.0)
        return mutants

    def _sweep(self, step: float) -> _Place:
        blocks = range(len(self.space.blocks))
        return _Place(tuple(random.sample(blocks, len(blocks))), 0, 0, step, self._survivors[0].value)

    def _next_step(self, place: _Place) -> float:
        if place.step == 0.0 or place.step <= _LEAST_STEP:
            return 1.0
        return place.step if self._survivors[0].value > place.best else place.step / 2

    def _moves(self, block: int, step: float) -> Iterator[list[float]]:
        """Yield the best genome with other values in one block; as many in the same order, whatever is best."""
        best, part = list(self._survivors[0]), self.space.slices[block]
        if step == 0.0:
            yield from (best[: part.start] + genome[part] + best[part.stop :] for genome in self.initial)
        else:
            for index in range(part.start, part.stop):
                for value in self._neighbours(index, best[index], step):
                    yield [*best[:index], value, *best[index + 1 :]]

    def _neighbours(self, index: int, value: float, step: float) -> list[float]:
        gene = self.space.genes[index]
        if isinstance(gene, Choice):
            return [float(other) for other in range(gene.size)]
        return [gene.clip(value + gene.sigma * step), gene.clip(value - gene.sigma * step)]
