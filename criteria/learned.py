"""Criteria that train a few numbers for each channel, and nothing else, to tell how much it matters."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from criteria.errors import CriterionValueError
from criteria.graph import ChannelGroup, Member
from criteria.passes import Network, register_pass
from criteria.scores import combined_scores
from criteria.specification import above, at_least, one_of, share
from criteria.streaming import Mean, hooks, rows, widened

STEEPEST = 10.0
"""Longest gradient of a step: networks that are not normalised would throw the weights to infinity."""
_CALMER = "lower the learning rate, or what holds the weights down (decay, sparsity)"
_LACKING = "needs a layer that makes the group's channels; there is none"
_Key = tuple[str, str]  # names of group and layer
_Draw = Callable[[int, int, int, torch.Generator], Tensor]


def _uniform(bound: float, count: int, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(count, generator=generator) - 1) * bound


def _logistic(count: int, generator: torch.Generator) -> Tensor:
    """Chaotic numbers in (0, 1): the orbit of x ← 4 x (1 − x) after a hundred steps."""
    value = 0.1 + 0.8 * float(torch.rand(1, dtype=torch.float64, generator=generator))
    orbit = []
    for _ in range(100 + count):
        value = 4 * value * (1 - value)
        orbit.append(value)
    return torch.tensor(orbit[100:], dtype=torch.float32)


INITIALISATIONS: Mapping[str, _Draw] = {
    "ones": lambda count, fan_in, fan_out, generator: torch.ones(count),
    "uniform": lambda count, fan_in, fan_out, generator: torch.rand(count, generator=generator),
    "chaotic": lambda count, fan_in, fan_out, generator: _logistic(count, generator),
    "he": lambda count, fan_in, fan_out, generator: torch.randn(count, generator=generator) * math.sqrt(2 / fan_in),
    "lecun_uniform": lambda count, fan_in, fan_out, generator: _uniform(math.sqrt(3 / fan_in), count, generator),
    "xavier": lambda count, fan_in, fan_out, generator: _uniform(math.sqrt(6 / (fan_in + fan_out)), count, generator),
}
"""How importance weights begin: (count, fan_in and fan_out of the layer, generator) → shape (count,)."""


@register_pass(
    "learned_scale",
    family="learned",
    reference="Sawant et al., Appl. Sci. 12(21) 11184, 2022",
    lacking=_LACKING,
    claims={"distinct"},  # first weights are drawn for each place, and a step is a batch
)
def learned_scale(
    network: Network,
    *,
    initialisation: Annotated[str, one_of(INITIALISATIONS)] = "uniform",
    steps: Annotated[int, at_least(1)] = 30,
    learning_rate: Annotated[float, above(0)] = 0.1,
    momentum: Annotated[float, share()] = 0.9,
    decay: Annotated[float, at_least(0)] = 0.1,
) -> dict[str, Tensor]:
    r"""Size of an importance weight that multiplies the filter's output, :math:`|m_i|`, after a few steps of SGD.

    All weights of all layers learn together, everything else is frozen, and the weight stands behind BatchNorm, where
    0 takes the filter away. Decay lets weights fall that the loss does not hold up. Several producers of a group have
    weights of their own, combined as the views of a group are (mean after scaling each to mean 1).

    Args:
        network: the network, its loss, and calibration data, of which each step takes the next batch.
        initialisation: one of `INITIALISATIONS`: ``uniform`` in (0, 1), ``chaotic`` (logistic map), ``he``,
            ``lecun_uniform``, ``xavier`` (by the fans of the filter's layer), or ``ones``.
        steps: of SGD, at least one: before the first, the weights are what they were drawn as.
        learning_rate: of SGD.
        momentum: of SGD.
        decay: of the weights: half of it times their squared norm is added to the loss.

    Returns:
        Group → scores of shape (channels,), without unit.

    Raises:
        CriterionValueError: a parameter is out of range, or the loss is not a finite scalar.

    Caution:
        A few steps of training depend on the learning rate and on the first weights; hold it against `random`.
    """
    if initialisation not in INITIALISATIONS:
        raise CriterionValueError(f"initialisation must be one of {', '.join(INITIALISATIONS)}, got {initialisation!r}")
    generator = network.generator()
    gates: dict[_Key, tuple[Tensor, ...]] = {}
    for group, member in _producers(network):
        weight = _module(network, member.layer).weight
        fans = (weight[0].numel(), weight.shape[0] * weight[0, 0].numel())
        count = len(rows(member)[0])
        weights = INITIALISATIONS[initialisation](count, *fans, generator)
        gates[group.name, member.layer] = (weights.to(network.device).requires_grad_(),)
    leaves = [leaf for (leaf,) in gates.values()]
    optimiser = torch.optim.SGD(leaves, learning_rate, momentum=momentum, weight_decay=decay)
    _train(network, optimiser, steps, _gated(network, lambda key, output: gates[key][0]), lambda: 0.0)
    return _of_groups(network, {key: weights.detach().abs() for key, (weights,) in gates.items()})


@register_pass("se_gate", family="learned", reference="Chang et al., 2020, arXiv:2010.01251", lacking=_LACKING)
def se_gate(
    network: Network,
    *,
    squeeze: Annotated[int, at_least(1)] = 4,
    steps: Annotated[int, at_least(1)] = 30,
    learning_rate: Annotated[float, above(0)] = 0.01,
    sparsity: Annotated[float, at_least(0)] = 0.1,
) -> dict[str, Tensor]:
    r"""Mean output of a squeeze-and-excitation gate behind the layer, after brief training.

    The gate is :math:`\sigma(W_2 \mathrm{relu}(W_1 \bar a + b_1) + b_2)`, with :math:`\bar a` the mean over positions
    of the layer's output after BatchNorm, which is multiplied by twice the gate: all gates begin at ½ and thereby leave
    the network as it is. All gates learn together (Adam), everything else is frozen. Several producers of a group have
    gates of their own, combined as the views of a group are.

    Args:
        network: the network, its loss, and calibration data, of which each step takes the next batch.
        squeeze: channels of the layer for each hidden unit of its gate.
        steps: of Adam.
        learning_rate: of Adam.
        sparsity: this times the mean over layers of the mean gate is added to the loss, so that gates fall that the
            loss does not hold up.

    Returns:
        Group → scores of shape (channels,), in (0, 1): the mean over the calibration data after training.

    Raises:
        CriterionValueError: a parameter is out of range, or the loss is not a finite scalar.

    Caution:
        A gate learns to weigh channels for each example; after brief training its mean says little.
    """
    if squeeze < 1:
        raise CriterionValueError(f"squeeze must be at least 1, got {squeeze}")
    excitations = {
        (group.name, member.layer): _Excitation(network, member, squeeze, generator)
        for generator in [network.generator()]
        for group, member in _producers(network)
    }
    gated = _gated(network, lambda key, output: 2 * excitations[key](output))
    leaves = [leaf for excitation in excitations.values() for leaf in excitation.leaves]

    def penalty() -> Tensor:
        return sparsity * torch.stack([gate.last.mean() for gate in excitations.values()]).mean()

    _train(network, torch.optim.Adam(leaves, learning_rate), steps, gated, penalty)
    means = {key: Mean() for key in excitations}
    with torch.no_grad(), hooks(gated()):
        for inputs, _ in network.batches:
            network.outputs(inputs)
            for key, mean in means.items():
                mean.add(excitations[key].last.mean(0), len(inputs))
    return _of_groups(network, {key: mean.value for key, mean in means.items() if mean.value is not None})


class _Excitation:
    """A squeeze-and-excitation gate for one producer's share of a group."""

    def __init__(self, network: Network, member: Member, squeeze: int, generator: torch.Generator) -> None:
        channels, self._positions = rows(member)
        self._linear = isinstance(_module(network, member.layer), nn.Linear)
        count = len(channels)
        hidden = max(1, count // squeeze)
        start = (torch.randn(hidden, count, generator=generator) * math.sqrt(2 / count), torch.zeros(hidden),
                 torch.zeros(count, hidden), torch.zeros(count))  # fmt: skip
        self.leaves = [tensor.to(network.device).requires_grad_() for tensor in start]
        self.last = torch.empty(0)

    def __call__(self, output: Tensor) -> Tensor:
        """The gate of each example and channel, of shape (n, C); kept as ``last``."""
        output = widened(output.movedim(-1, 1) if self._linear else output)
        squeezed = output.flatten(2).mean(2) if output.ndim > 2 else output
        squeezed = squeezed[:, self._positions.to(output.device)].mean(2)
        inner, bias, outer, offset = (leaf.to(squeezed.dtype) for leaf in self.leaves)
        self.last = torch.sigmoid((squeezed @ inner.T + bias).relu() @ outer.T + offset)
        return self.last


def _producers(network: Network) -> Iterator[tuple[ChannelGroup, Member]]:
    return ((group, member) for group in network.graph.groups for member in group.producers)


def _module(network: Network, name: str) -> Any:
    return network.model.get_submodule(name)


def _gated(network: Network, gate: Callable[[_Key, Tensor], Tensor]) -> Callable[[], Iterable[Any]]:
    """Puts hooks on by which every producer's output, after BatchNorm, is multiplied by (key, output) → (..., C)."""

    def handle(key: _Key, member: Member) -> Any:
        channels, positions = rows(member)
        order = torch.full((len(member.channels),), len(channels))  # positions of no channel of the group read a 1
        for row, owned in enumerate(positions):
            order[owned] = row
        linear = isinstance(_module(network, member.layer), nn.Linear)

        def multiply(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            gates = torch.nn.functional.pad(gate(key, output), (0, 1), value=1.0)[..., order.to(output.device)]
            ones = [1] * (output.ndim - 2)
            shape = [*gates.shape[:-1], *ones, len(order)] if linear else [*gates.shape, *ones]
            return output * gates.view(shape).to(output.dtype)

        return _module(network, member.norm or member.layer).register_forward_hook(multiply)

    return lambda: (handle((group.name, member.layer), member) for group, member in _producers(network))


def _train(
    network: Network,
    optimiser: torch.optim.Optimizer,
    steps: int,
    gated: Callable[[], Iterable[Any]],
    penalty: Callable[[], Tensor | float],
) -> None:
    """Take steps down the gradient of loss plus penalty, a batch each; a gradient longer than `STEEPEST` is cut."""
    if steps < 1:
        raise CriterionValueError(f"steps must be at least 1, got {steps}")
    leaves: list[Tensor] = [leaf for part in optimiser.param_groups for leaf in part["params"]]
    with torch.enable_grad(), hooks(gated()):
        for done, (inputs, targets) in enumerate(islice(cycle(network.batches), steps), 1):
            try:
                loss = network.mean_loss(network.outputs(inputs), targets) + penalty()
            except CriterionValueError as error:
                raise CriterionValueError(f"{error} at step {done}; {_CALMER}" if done > 1 else str(error)) from error
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient
            torch.nn.utils.clip_grad_norm_(leaves, STEEPEST)
            optimiser.step()
            if not all(leaf.isfinite().all() for leaf in leaves):
                raise CriterionValueError(f"training must stay finite, got infinity or NaN at step {done}; {_CALMER}")
            network.on_step(done, steps)


def _of_groups(network: Network, learned: Mapping[_Key, Tensor]) -> dict[str, Tensor]:
    """Group → the learned numbers of its producers in one."""
    return {group.name: _of_group(group, group.producers, learned) for group in network.graph.groups}


def _of_group(group: ChannelGroup, members: Sequence[Member], learned: Mapping[_Key, Tensor]) -> Tensor:
    scores = np.zeros((len(members), group.size))
    carried = np.zeros(scores.shape, dtype=np.bool_)
    for row, member in enumerate(members):
        channels, _ = rows(member)
        scores[row, channels] = learned[group.name, member.layer].cpu().double().numpy()
        carried[row, channels] = True
    return torch.from_numpy(scores[0] if len(members) == 1 else combined_scores(scores, carried, "mean"))
