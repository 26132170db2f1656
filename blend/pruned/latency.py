"""Latency as a budget: what each layer takes at any width, fitted to what passes took on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from blend.budget import AxisCounts
from blend.pruned.timing import Seconds
from criteria.graph import ChannelGraph, Keep

BLOCKS = (1, 8, 16)
"""Numbers of channels that kernels may work on at once: a layer of 17 may take as long as one of 32."""


UNPRUNED_WEIGHT = 4
"""How much more the unpruned network's passes weigh in a fit: all reductions are relative to it."""
MAX_CORRECTION = 1.25
"""By which factor one more measurement may correct a model; what is further off says more about the measurement."""
MAX_REUSED_BYTES = 2**25
"""Larger blocks go back to the system when they are freed (glibc's M_MMAP_THRESHOLD), and cost page faults anew."""


@dataclass(frozen=True)
class Passes:
    """What forward passes of pruned networks took.

    Attributes:
        masks: The networks' keep masks, the first of them with everything.
        layers: Seconds of each layer, by its name, in each of the networks.
        totals: Seconds of the whole passes.
    """

    masks: tuple[Keep, ...]
    layers: Mapping[str, Seconds]
    totals: Seconds


@dataclass(frozen=True)
class LayerLatency:
    """Seconds of one layer for one image: constant + first · m + second · n + both · m · n.

    Attributes:
        layer: Its name.
        block: What m and n are rounded up to multiples of: the positions that are left of those dimensions of the
            layer's weight that can give channels.
        constant: What it takes at any width.
        first: Seconds for each position of the first such dimension.
        second: Of the second one; 0 where there is none.
        both: Of the two multiplied; 0 where there is only one.
    """

    layer: str
    block: int
    constant: float
    first: float
    second: float
    both: float


@dataclass(frozen=True)
class RestLatency:
    """Seconds for one image of what the layers with channels to give do not account for.

    Attributes:
        constant: At any width.
        activation: For each value that a conv or linear layer puts out.
        fresh: For each of those in tensors above `MAX_REUSED_BYTES`.
    """

    constant: float
    activation: float
    fresh: float


class LatencyModel:
    """Predicted seconds of any pruned version of a network, for one image.

    No coefficient is negative, so that without a channel the network is never slower, and masks can be found by
    bisection.

    Args:
        graph: The network's channel graph.
        layers: What the layers with channels to give take.
        rest: What everything else takes, and what the layers miss.
        value_bytes: What one value of an image takes for the whole batch.
        correction: What is saved is so many times what layers and rest say; above 0.
    """

    kind = "latency"

    def __init__(
        self,
        graph: ChannelGraph,
        layers: tuple[LayerLatency, ...],
        rest: RestLatency,
        value_bytes: int,
        correction: float = 1.0,
    ) -> None:
        self.graph, self.layers, self.rest, self.correction = graph, layers, rest, correction
        self._value_bytes = value_bytes
        self._counts, self._outputs = AxisCounts(graph), _outputs(graph)
        axes = weight_axes(graph)
        terms = [term for layer in layers for term in _terms(layer, *axes[layer.layer])]
        table = np.array(terms, dtype=np.float64).reshape(-1, 4)
        self._factors, (self._block, self._first, self._second) = table[:, 0], table[:, 1:].T.astype(np.int64)
        self.full = self._sum(np.ones(len(graph), dtype=bool))

    def __call__(self, keep: Keep) -> float:
        """Predicted seconds for one image with these channels kept."""
        return self.full - self.correction * (self.full - self._sum(keep))

    def _sum(self, keep: Keep) -> float:
        """What layers and rest take by themselves."""
        counts = self._counts(keep)
        rest = astuple(self.rest) @ _rest_features(counts, self._outputs, self._value_bytes)
        rounded = np.stack([in_blocks(counts, block) for block in BLOCKS])
        work = self._factors * rounded[self._block, self._first] * rounded[self._block, self._second]
        return float(work.sum() + rest)

    def reduction(self, keep: Keep) -> float:
        """The share of the predicted seconds that a mask removes, in [0, 1)."""
        return 1.0 - self(keep) / self.full

    def record(self) -> dict[str, Any]:
        """The model as plain data, in seconds for one image."""
        return {
            "correction": self.correction, "value_bytes": self._value_bytes, "rest": asdict(self.rest),
            "layers": [asdict(layer) for layer in self.layers],
        }  # fmt: skip

    @classmethod
    def recorded(cls, graph: ChannelGraph, record: Mapping[str, Any]) -> LatencyModel:
        """What :meth:`record` has made plain data of, the same to the last bit."""
        layers = tuple(LayerLatency(**layer) for layer in record["layers"])
        return cls(graph, layers, RestLatency(**record["rest"]), record["value_bytes"], record["correction"])

    def corrected(self, keep: Keep, reduction: float) -> LatencyModel:
        """The same, so that a mask removes the share that was measured, as far as `MAX_CORRECTION` lets it."""
        predicted = self.reduction(keep)
        if predicted <= 0.0:
            return self
        correction = self.correction * min(max(reduction / predicted, 1 / MAX_CORRECTION), MAX_CORRECTION)
        return LatencyModel(self.graph, self.layers, self.rest, self._value_bytes, correction)


def fitted(graph: ChannelGraph, passes: Passes, batch_size: int, itemsize: int = 4) -> LatencyModel:
    """The model that is nearest to what passes took, by non-negative least squares.

    Each layer has its own coefficients and the block size that suits it best.

    Args:
        graph: The network's channel graph.
        passes: Of one network at different widths.
        batch_size: Images of a pass.
        itemsize: Bytes of a value.
    """
    counter, axes, outputs = AxisCounts(graph), weight_axes(graph), _outputs(graph)
    rows = [0] * (UNPRUNED_WEIGHT - 1) + list(range(len(passes.masks)))
    counts = np.stack([counter(passes.masks[row]) for row in rows])
    layers = tuple(
        _fitted_layer(name, counts, axes[name], seconds[rows] / batch_size) for name, seconds in passes.layers.items()
    )
    bare = LatencyModel(graph, layers, RestLatency(0.0, 0.0, 0.0), batch_size * itemsize)
    missed = passes.totals[rows] / batch_size - [bare(passes.masks[row]) for row in rows]
    features = np.stack([_rest_features(row, outputs, batch_size * itemsize) for row in counts])
    return LatencyModel(graph, layers, RestLatency(*_nonnegative(features, missed)[0]), batch_size * itemsize)


def in_blocks(counts: NDArray[np.int64], block: int) -> NDArray[np.int64]:
    """Kept positions rounded up to whole blocks, but for the last one, which stands for an axis that is not there."""
    rounded = -(-counts // block) * block
    rounded[..., -1] = 1
    return rounded


def weight_axes(graph: ChannelGraph) -> dict[str, tuple[int, int]]:
    """By layer, the numbers of the axes of its weight, or of what else it has; -1 for one that is not there.

    A module with a parameter of its own around other layers is no layer: its seconds are theirs.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for number, axis in enumerate(graph.axes):
        layer, _, tensor = axis.tensor.rpartition(".")
        found.setdefault(layer, {}).setdefault(tensor, []).append(number)
    around = {name[:end] for name in found if name for end, letter in [(0, "."), *enumerate(name)] if letter == "."}
    longest = {layer: [*max(tensors.values(), key=len), -1] for layer, tensors in found.items() if layer not in around}
    return {layer: (axes[0], axes[1]) for layer, axes in longest.items()}


def _terms(layer: LayerLatency, first: int, second: int) -> Iterator[tuple[float, int, int, int]]:
    """Factor, number of the block size, and the two axes whose kept positions it is multiplied with."""
    block = BLOCKS.index(layer.block)
    yield layer.constant, block, -1, -1
    yield layer.first, block, first, -1
    yield layer.second, block, second, -1
    yield layer.both, block, first, second


def _outputs(graph: ChannelGraph) -> NDArray[np.float64]:
    """For each axis, the values that one of its channels adds to what conv and linear layers put out for one image."""
    values = np.zeros(len(graph.axes) + 1)
    for number, axis in enumerate(graph.axes):
        if axis.tensor in graph.positions and not axis.consumes:
            values[number] = graph.positions[axis.tensor]
    return values


def _fitted_layer(name: str, counts: NDArray[np.int64], axes: tuple[int, int], seconds: Seconds) -> LayerLatency:
    """A layer's coefficients, with the block size that leaves the least error.

    Args:
        name: Of the layer.
        counts: Kept positions of all axes, shape (passes, axes + 1).
        axes: Numbers of the layer's.
        seconds: For one image, shape (passes,).
    """
    fits = []
    for block in BLOCKS:
        first, second = in_blocks(counts, block)[:, axes].T.astype(np.float64)
        there = float(axes[1] >= 0)  # what is not there gets no coefficient
        features = np.stack([np.ones(len(counts)), first, there * second, there * first * second], axis=1)
        coefficients, error = _nonnegative(features, seconds)
        fits.append((error, block, coefficients))
    _, block, coefficients = min(fits)
    return LayerLatency(name, block, *coefficients)


def _rest_features(counts: NDArray[np.int64], outputs: NDArray[np.float64], value_bytes: int) -> NDArray[np.float64]:
    """What `RestLatency` is multiplied with."""
    values = outputs * counts
    return np.array([1.0, values.sum(), values[values * value_bytes > MAX_REUSED_BYTES].sum()])


def _nonnegative(features: NDArray[np.float64], seconds: Seconds) -> tuple[list[float], float]:
    """Coefficients of features, shape (passes, features), and the error that they leave."""
    scale = features.max(0)
    scale[scale == 0] = 1.0
    coefficients, error = nnls(features / scale, seconds)
    return (coefficients / scale).tolist(), float(error)
