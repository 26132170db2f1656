r"""Compensation: what reads the removed channels is corrected to do without them, by ridge least squares, unlabelled.

With x what a consumer reads, Σ its covariance and W its weights, the outputs lose :math:`W_R x_R` with the removed
channels R. Of the kept ones S they are made up for by the correction

.. math:: D = W_R \Sigma_{RS} (\Sigma_{SS} + \lambda I)^{-1}, \quad \lambda = \rho \operatorname{mean diag} \Sigma_{SS}

which minimises :math:`E \|W_R x_R - D x_S\|^2 + \lambda \|D\|^2` of centred x; what the means differ by goes into the
bias. After Xie et al., 2021, arXiv:2108.13728; the ridge is on the correction, not on the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from blend.compensation.consumer_inputs import (
    Grade,
    Reading,
    blocks_of,
    compensation_images,
    readings,
    weight_of,
    with_statistics,
)
from blend.defaults import CPU
from blend.device import visiting
from blend.pruning.chain import portions
from blend.pruning.slicing import reproducibly
from criteria.graph import ChannelGraph, Keep
from criteria.layers import is_transposed

GRADES: tuple[Grade, ...] = ("none", "channel", "patch", "sequential")
RIDGE = 0.01
"""Of the mean variance of the kept inputs; results are flat between 0.001 and 0.1."""


@dataclass(frozen=True)
class Corrected:
    """A candidate's corrected tensors.

    Attributes:
        tensors: Weights and biases of consumers in the unpruned shape; biases that a layer did not have among them.
        singular: Layers whose kept inputs determine no unique correction; the smallest one was taken.
    """

    tensors: dict[str, Tensor]
    singular: tuple[str, ...] = ()


class Compensation:
    """Corrects the consumers of any candidate, by statistics that were gathered once.

    Args:
        model: The unpruned network.
        known: Readings with statistics.
        absorbed: Layers whose outputs' means do not matter, as a BatchNorm is recalibrated behind them; all others get
            a bias where they have none.
        ridge: ρ; 0 for plain least squares.
    """

    def __init__(
        self, model: nn.Module, known: Sequence[Reading], absorbed: frozenset[str] = frozenset(), ridge: float = RIDGE
    ) -> None:
        self.known, self.absorbed, self.ridge = known, absorbed, ridge
        self.layers: dict[str, Any] = {one.layer: model.get_submodule(one.layer) for one in known}
        self._blocks = {
            name: [block.contiguous() for block in blocks_of(layer, layer.weight.detach().double().cpu())]
            for name, layer in self.layers.items()
        }
        self._filters = [one.filters(self._blocks[one.layer][one.block]) for one in known]

    @torch.no_grad()
    def __call__(self, keep: Keep, advance: Callable[[], None] = lambda: None) -> Corrected:
        """The corrected tensors of a candidate; those of consumers of which no channel goes are left out.

        Args:
            keep: The channels that stay.
            advance: Called after each reading.
        """
        blocks: dict[str, list[Tensor]] = {}
        shifts: dict[str, list[Tensor]] = {}
        singular: dict[str, None] = {}
        for one, filters in zip(self.known, self._filters, strict=True):
            kept = one.kept(keep)
            if kept.all():
                advance()
                continue
            found, shift, unique = correction(filters, one, kept, self.ridge)
            block = self._blocks[one.layer][one.block]
            blocks.setdefault(one.layer, list(self._blocks[one.layer]))[one.block] = one.weights(found, block)
            whole = shifts.setdefault(one.layer, [block.new_zeros(len(block)) for block in self._blocks[one.layer]])
            whole[one.block] = shift.view(len(block), -1).sum(1)
            singular |= {} if unique else {one.layer: None}
            advance()
        tensors: dict[str, Tensor] = {}
        for name, found_blocks in blocks.items():
            layer = self.layers[name]
            tensors[f"{name}.weight"] = weight_of(layer, found_blocks, layer.weight.shape)
            if layer.bias is not None or name not in self.absorbed:
                tensors[f"{name}.bias"] = self._bias(layer, torch.cat(shifts[name]))
        return Corrected(tensors, tuple(singular))

    @staticmethod
    def _bias(layer: Any, shift: Tensor) -> Tensor:
        if is_transposed(layer):  # of all taps, an output position meets one in stride ones
            shift = shift / math.prod(layer.stride)
        return shift if layer.bias is None else shift + layer.bias.detach().double().cpu()


def correction(filters: Tensor, one: Reading, kept: NDArray[np.bool_], ridge: float) -> tuple[Tensor, Tensor, bool]:
    """Corrected filters, what their outputs lack on average, and whether the correction is the only one.

    Args:
        filters: (filters, variables).
        one: The reading, with statistics.
        kept: (variables,).
        ridge: Over the mean variance.
    """
    if one.mean is None or one.covariance is None:
        raise ValueError(f"the reading of '{one.layer}' must have statistics, got none")
    stay, go = (torch.from_numpy(np.flatnonzero(which)) for which in (kept, ~kept))
    inputs = one.covariance[stay][:, stay]
    crossing = filters[:, go] @ one.covariance[go][:, stay]
    change, unique = ridge_solution(inputs, crossing, ridge)
    result = filters.clone()
    result[:, stay] += change
    return result, filters[:, go] @ one.mean[go] - change @ one.mean[stay], unique


def ridge_solution(inputs: Tensor, crossing: Tensor, ridge: float) -> tuple[Tensor, bool]:
    r"""Solves :math:`D (\Sigma + \lambda I) = C`; the smallest solution where there are several.

    Args:
        inputs: Σ, (s, s).
        crossing: C, (outputs, s).
        ridge: λ over the mean of Σ's diagonal.

    Returns:
        D of shape (outputs, s), and whether it is the only solution.
    """
    if not len(inputs):
        return crossing, True
    penalised = inputs + ridge * inputs.diagonal().mean() * torch.eye(len(inputs), dtype=inputs.dtype)
    factor, failed = torch.linalg.cholesky_ex(penalised)
    if failed:
        return crossing @ torch.linalg.pinv(penalised, hermitian=True), False
    return torch.cholesky_solve(crossing.T, factor).T, True


def absorbed_means(graph: ChannelGraph) -> frozenset[str]:
    """Layers whose outputs' means do not matter if BatchNorm is recalibrated: it is all that reads them."""
    return frozenset(member.layer for group in graph.groups for member in group.producers if member.norm)


def gathered(
    model: nn.Module, graph: ChannelGraph, calibration: Tensor, grade: Grade, recalibration_images: int,
    batch_size: int, device: str = CPU,
) -> tuple[list[Reading], list[str]]:  # fmt: skip
    """What a search needs to know once of all inputs of consumers, the same bits every time; and notes on the rest.

    Args:
        model: The unpruned network.
        graph: Its channel graph.
        calibration: Inputs.
        grade: ``none`` for nothing.
        recalibration_images: As many of the inputs are used.
        batch_size: Images per forward pass.
        device: What the network runs on.
    """
    if grade == "none":
        return [], []
    found, notes = readings(model, graph, grade)
    images = compensation_images(calibration, recalibration_images)
    with reproducibly(), visiting(model, device) as network:
        return with_statistics(network, found, portions(images, batch_size)), notes


def compensation(
    model: nn.Module, graph: ChannelGraph, batches: Iterable[Tensor], grade: Grade, **settings: Any
) -> tuple[Compensation, list[str]]:
    """Everything at once: a compensation for a network, and notes on what it cannot do."""
    found, notes = readings(model, graph, grade)
    return Compensation(model, with_statistics(model, found, batches), **settings), notes
