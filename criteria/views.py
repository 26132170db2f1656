"""What a criterion sees: the statistics of one layer's share of a channel group."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from criteria.errors import CriterionError

Side = Literal["producer", "consumer"]


@dataclass(frozen=True)
class Need:
    """A kind of statistic that criteria can ask for.

    Attributes:
        side: which views hold it: those of the layers that make the channels, or of those that read them.
        fields: the attributes of `GroupStats` that hold it.
        what: its name in an error, completed by the layer's name.
        absent: why a view may not hold it.
    """

    side: Side
    fields: tuple[str, ...]
    what: str
    absent: str = "it was not collected"


NEEDS: Mapping[str, Need] = MappingProxyType(
    {
        "weight": Need("producer", ("weight",), "the weights of"),
        "batchnorm": Need("producer", ("gamma", "beta"), "BatchNorm after", "there is none"),
        "weight_gradient": Need("producer", ("weight_gradient",), "the weight gradient of"),
        "gate_gradient": Need("producer", ("gate_gradient_squared",), "the gate gradient of"),
        "example_gate_gradient": Need(
            "producer", ("example_gate_gradient_squared",), "the gate gradient per example of"
        ),
        "hessian_diagonal": Need("producer", ("hessian_diagonal",), "the Hessian diagonal of"),
        "activation": Need("consumer", ("activation_mean", "activation_nonzero"), "the activations read by"),
        "maps": Need("consumer", ("maps",), "the maps read by", "it reads none, or they were not collected"),
    }
)
"""Every kind of statistic a criterion can need, by name."""


class Stat:
    """A statistic that a view may lack: reading one that is absent raises `CriterionError`."""

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn the attribute's name."""
        self.name = name

    @overload
    def __get__(self, view: None, owner: type) -> None: ...
    @overload
    def __get__(self, view: "GroupStats", owner: type) -> Tensor: ...
    def __get__(self, view: "GroupStats | None", owner: type) -> Tensor | None:
        """The tensor; on the class None, which is thereby the dataclass's default."""
        if view is None:
            return None
        value: Tensor | None = view.__dict__[self.name]
        if value is None:
            need = next(need for need in NEEDS.values() if self.name in need.fields)
            raise CriterionError(f"{self.name!r} needs {need.what} {view.layer!r}; {need.absent}")
        return value

    def __set__(self, view: "GroupStats", value: Tensor | None) -> None:
        """Store the tensor; only the dataclass's own initialisation gets here."""
        view.__dict__[self.name] = value


@dataclass(frozen=True, repr=False, eq=False)
class GroupStats:
    r"""One layer's view of a channel group; every statistic has one row per channel, in the group's order.

    L is the task's loss, a mean over the examples of a batch. z is a multiplicative gate fixed at 1 on a channel of
    the layer's output, after its BatchNorm. a is what a consumer reads: after BatchNorm, non-linearity and pooling.
    All values are float32 or better. "Averaged" is over batches, weighted by their number of examples.
    Reading a statistic that is absent raises `CriterionError`.

    Attributes:
        group: name of the channel group.
        layer: dotted name of the layer.
        size: number of channels in the group.
        side: whether the layer makes the channels or reads them.
        channels: the group's channel of each row, ascending, where a layer carries only some (C = their number);
            None where it carries all (C = size).
        seed: of the sample of maps, the probes and the `random` criterion.
        weight: (C, fan_in), the filters.
        gamma: (C,), the scale of the BatchNorm that reads the layer.
        beta: (C,), its shift.
        weight_gradient: (C, fan_in), :math:`\partial L/\partial w`, averaged.
        gate_gradient_squared: (C,), :math:`(\partial L/\partial z)^2` of each batch, then averaged.
        example_gate_gradient_squared: (C,), mean over examples n of :math:`(\partial L_n/\partial z)^2`.
        hessian_diagonal: (C, fan_in), Hutchinson's estimate of :math:`\partial^2 L/\partial w^2`, one Rademacher
            probe a batch, averaged.
        activation_mean: (C,), mean of a over images and positions.
        activation_nonzero: (C,), share of a that is not 0.
        maps: (images, C, H, W), a of a few images; the depth of 3D maps is stacked along H.
    """

    group: str
    layer: str
    size: int
    side: Side = "producer"
    channels: NDArray[np.int64] | None = None
    seed: int = 0
    weight: Stat = Stat()
    gamma: Stat = Stat()
    beta: Stat = Stat()
    weight_gradient: Stat = Stat()
    gate_gradient_squared: Stat = Stat()
    example_gate_gradient_squared: Stat = Stat()
    hessian_diagonal: Stat = Stat()
    activation_mean: Stat = Stat()
    activation_nonzero: Stat = Stat()
    maps: Stat = Stat()

    def __repr__(self) -> str:
        """Where the view is from and what it holds."""
        held = ", ".join(sorted(self.present))
        return f"GroupStats({self.group!r}, {self.layer!r}, {self.side}, {self.rows} of {self.size} channels: {held})"

    @property
    def rows(self) -> int:
        """Number of channels this layer carries, C."""
        return self.size if self.channels is None else len(self.channels)

    @property
    def present(self) -> frozenset[str]:
        """Names of the statistics this view holds."""
        return frozenset(name for need in NEEDS.values() for name in need.fields if self.__dict__[name] is not None)

    def missing(self, needs: frozenset[str]) -> str | None:
        """What of ``needs`` this view lacks and why, as the end of a sentence; None if it has all."""
        for need in (NEEDS[name] for name in sorted(needs)):
            if not self.present.issuperset(need.fields):
                return f"needs {need.what} {self.layer!r}; {need.absent}"
        return None
