"""What a criterion sees: the statistics of one layer's share of a channel group."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from criteria.errors import CriterionError, CriterionValueError
from criteria.specification import Value, canonical, parse, typed

Side = Literal["producer", "consumer"]


@dataclass(frozen=True)
class Need:
    """A kind of statistic that criteria can ask for.

    Attributes:
        side: which views hold it: those of the layers that make the channels, or of those that read them.
        fields: the attributes of `GroupStats` that hold it.
        what: its name in an error, completed by the layer's name.
        absent: why a view may not hold it.
        parameters: how it is collected, all counts, with their defaults; a criterion sets those that it has, too.
    """

    side: Side
    fields: tuple[str, ...]
    what: str
    absent: str = "it was not collected"
    parameters: Mapping[str, int] = field(default_factory=dict)


NEEDS: Mapping[str, Need] = MappingProxyType(
    {
        "weight": Need("producer", ("weight",), "the weights of"),
        "batchnorm": Need("producer", ("gamma", "beta"), "BatchNorm after", "there is none"),
        "weight_gradient": Need("producer", ("weight_gradient",), "the weight gradient of"),
        "gate_gradient": Need("producer", ("gate_gradient_squared",), "the gate gradient of"),
        "example_gate_gradient": Need(
            "producer",
            ("example_gate_gradient_squared",),
            "the gate gradient per example of",
            "its output does not keep examples apart, or it was not collected",
        ),
        "weight_gradient_magnitude": Need(
            "producer", ("weight_gradient_magnitude",), "the weight gradient's magnitude of"
        ),
        "hessian_diagonal": Need(
            "producer", ("hessian_diagonal",), "the Hessian diagonal of", parameters={"probes": 8}
        ),
        "hessian_gradient": Need("producer", ("hessian_gradient",), "the Hessian-gradient product of"),
        "gate_curvature": Need(
            "producer", ("gate_change_squared",), "the gate's second derivative of", parameters={"probes": 8}
        ),
        "flow_gradient": Need("producer", ("flow_gradient",), "the synaptic flow through"),
        "activation": Need("consumer", ("activation_mean", "activation_nonzero"), "the activations read by"),
        "activation_gradient": Need(
            "consumer",
            ("activation_gradient_magnitude",),
            "the activations' gradient read by",
            "no layer before it makes channels, or it was not collected",
        ),
        "image_means": Need("consumer", ("image_means",), "the activations of each image read by"),
        "classes": Need(
            "consumer",
            ("between_class_variance", "within_class_variance"),
            "the activations by class read by",
            "targets are not one integer class per example, or it was not collected",
        ),
        "maps": Need("consumer", ("maps",), "the maps read by", "it reads none, or they were not collected"),
    }
)
"""Every kind of statistic a criterion can need, by name; ``hessian_diagonal:probes=4`` asks for it otherwise."""


def need_of(specification: str) -> Need:
    """The kind of statistic that a need's specification is about."""
    return NEEDS[specification.partition(":")[0]]


def bound_need(specification: str, parameters: Mapping[str, Value] = MappingProxyType({})) -> str:
    """A need's canonical specification, with those of the given parameters that it has.

    Raises:
        CriterionValueError: the need or a parameter is unknown, or a value is not a count of at least 1.
    """
    name, given = parse(specification)
    if name not in NEEDS:
        raise CriterionValueError(f"needs must be among {', '.join(NEEDS)}, got {name}")
    defaults = NEEDS[name].parameters
    values = typed(name, given, defaults) | {key: parameters[key] for key in defaults if key in parameters}
    for key, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise CriterionValueError(f"{key} must be at least 1, got {value}")
    return canonical(name, values, defaults)


def need_parameter(needs: Collection[str], name: str, parameter: str) -> dict[str, int]:
    """What a parameter of a need is in each of the specifications that ask for it: specification → value."""
    asked = sorted(spec for spec in needs if spec.partition(":")[0] == name)
    return {spec: int(typed(name, parse(spec)[1], NEEDS[name].parameters)[parameter]) for spec in asked}


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
        gamma: (C, positions), the scale of the BatchNorm that reads the layer, at each position of the layer's output
            that a channel owns: one, or several where the places of conv groups go together.
        beta: (C, positions), its shift.
        weight_gradient: (C, fan_in), :math:`\partial L/\partial w`, averaged.
        gate_gradient_squared: (C,), :math:`(\partial L/\partial z)^2` of each batch, then averaged.
        example_gate_gradient_squared: (C,), mean over examples n of :math:`(\partial L_n/\partial z)^2`.
        weight_gradient_magnitude: (C, fan_in), :math:`|\partial L/\partial w|` of each batch, then averaged.
        hessian_diagonal: (C, fan_in), Hutchinson's estimate of :math:`\partial^2 L/\partial w^2`, ``probes``
            Rademacher probes a batch, averaged.
        hessian_gradient: (C, fan_in), :math:`H g` of each batch, H and g the second and first derivatives of its loss
            with respect to all filters, then averaged.
        gate_change_squared: (C,), :math:`(-\partial L/\partial z + \frac12 \partial^2 L/\partial z^2)^2` of each batch,
            then averaged; the second derivative is Hutchinson's estimate by ``probes`` probes for every example.
        flow_gradient: (C, fan_in), :math:`\partial R/\partial |w|` of the synaptic flow R, float64.
        activation_mean: (C,), mean of a over images and positions.
        activation_nonzero: (C,), share of a that is not 0.
        activation_gradient_magnitude: (C,), mean over examples n of
            :math:`|\mathrm{mean}_{positions}\, a\, \partial L_n/\partial a|`.
        image_means: (C, images), mean of a over positions, of all images up to a bound, beyond it of a fair sample.
        between_class_variance: (C,), variance of the class means of the images' means, weighted by class size.
        within_class_variance: (C,), mean over images of the squared distance of their mean to that of their class.
        maps: (images, C, H, W), a of a few images; the depth of 3D maps is stacked along H.
        variants: statistics collected otherwise than by default: a need's specification → field → value.
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
    weight_gradient_magnitude: Stat = Stat()
    hessian_diagonal: Stat = Stat()
    hessian_gradient: Stat = Stat()
    gate_change_squared: Stat = Stat()
    flow_gradient: Stat = Stat()
    activation_mean: Stat = Stat()
    activation_nonzero: Stat = Stat()
    activation_gradient_magnitude: Stat = Stat()
    image_means: Stat = Stat()
    between_class_variance: Stat = Stat()
    within_class_variance: Stat = Stat()
    maps: Stat = Stat()
    variants: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

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

    def missing(self, needs: Collection[str]) -> str | None:
        """What of ``needs`` this view lacks and why, as the end of a sentence; None if it has all."""
        for specification in sorted(needs):
            need = need_of(specification)
            held = self.present if specification in NEEDS else self.variants.get(specification, {}).keys()
            if not set(need.fields) <= held:
                return f"needs {need.what} {self.layer!r}; {need.absent}"
        return None

    def serving(self, needs: Collection[str]) -> "GroupStats":
        """This view with the statistics as ``needs`` specify them: some ``variants`` in the place of defaults."""
        chosen = [self.variants[specification] for specification in sorted(needs) if specification in self.variants]
        if not chosen:
            return self
        return GroupStats(**(self.__dict__ | {name: value for held in chosen for name, value in held.items()}))
