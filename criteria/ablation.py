"""Criteria that remove each channel in turn and look: what the cheap ones are held against."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from criteria.claims import DEFAULT_CLAIMS
from criteria.errors import CriterionError
from criteria.graph import Member
from criteria.passes import Network, reading_groups, register_pass, sampled
from criteria.specification import at_least
from criteria.streaming import hooks

_LACKING = "needs a convolution or linear layer that mixes the group's channels; there is none"


@register_pass(
    "loss_ablation",
    family="ablation",
    reference="Molchanov et al., CVPR 2019, arXiv:1906.10771",
    lacking=_LACKING,
    claims=DEFAULT_CLAIMS - {"dead-last"},  # signed: without some channels the network does better
)
def loss_ablation(network: Network, *, images: Annotated[int, at_least(1)] = 128) -> dict[str, Tensor]:
    r"""Rise of the loss without a channel, :math:`L_{-i} - L`.

    A channel is taken away where it is read: its values are 0 at the input of every consumer, which is what slicing
    it out does, whatever stands between (a depthwise convolution, a bias, a non-linearity that is not 0 at 0).

    Args:
        network: the network, its loss, and calibration data.
        images: how many examples, a seeded sample, each pass is over; there is one pass for each channel.

    Returns:
        Group → scores of shape (channels,), in the unit of the loss; negative where the network does better without.

    Raises:
        CriterionValueError: ``images`` is less than 1, or the loss is not a finite scalar.

    Caution:
        Needs a forward pass for every channel; and channels that stand in for one another look superfluous, each
        alone.
    """
    return _ablation(network, images, network.mean_loss)


@register_pass(
    "accuracy_ablation",
    family="ablation",
    reference="Abbasi-Asl and Yu, 2017, arXiv:1705.07356",
    lacking=_LACKING,
    by_metric=True,
    claims=DEFAULT_CLAIMS - {"dead-last", "distinct"},  # signed, and in steps of one example
)
def accuracy_ablation(network: Network, *, images: Annotated[int, at_least(1)] = 128) -> dict[str, Tensor]:
    r"""Fall of the metric without a channel, :math:`M - M_{-i}`.

    A channel is taken away as in `loss_ablation`.

    Args:
        network: the network, its metric, and calibration data.
        images: how many examples, a seeded sample, each pass is over; there is one pass for each channel.

    Returns:
        Group → scores of shape (channels,), in the unit of the metric; many are alike where it is a share of a few
        examples.

    Raises:
        CriterionError: there is no metric.
        CriterionValueError: ``images`` is less than 1.

    Caution:
        Needs a forward pass for every channel, and steps of one example tie many channels: many images, or the loss
        instead.
    """
    metric = network.metric
    if metric is None:
        raise CriterionError("criterion 'accuracy_ablation' needs a metric; give one to score(metric=...)")

    def harm(outputs: Tensor, targets: Tensor) -> Tensor:
        return -metric(outputs, targets.to(outputs.device)).double().mean()

    return _ablation(network, images, harm)


def _ablation(network: Network, images: int, harm: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Group → rise of the mean harm without each channel."""
    batches = list(sampled(network.batches, images, network.seed))
    groups = list(reading_groups(network.graph, network.model))
    total = 1 + sum(group.size for group, _ in groups)
    done = 0

    def measured() -> float:
        nonlocal done
        harms = [float(harm(network.outputs(inputs), targets)) * len(inputs) for inputs, targets in batches]
        done += 1
        network.on_step(done, total)
        return sum(harms) / sum(len(inputs) for inputs, _ in batches)

    scores = {}
    with torch.no_grad():
        whole = measured()
        for group, consumers in groups:
            changes = []
            for channel in range(group.size):
                with _blinded(network.model, consumers, channel):
                    changes.append(measured() - whole)
            scores[group.name] = torch.tensor(changes, dtype=torch.float64)
    return scores


def _blinded(model: nn.Module, consumers: list[Member], channel: int) -> AbstractContextManager[None]:
    """A context in which no consumer sees a channel."""

    def handles() -> Iterator[Any]:
        for member in consumers:
            layer = model.get_submodule(member.layer)
            unseen = torch.from_numpy(member.channels == channel)

            def blind(module: nn.Module, args: Any, kwargs: Any, unseen: Tensor = unseen) -> tuple[Any, Any]:
                name = None if args else "input"
                read = kwargs["input"] if name else args[0]
                trailing = 0 if isinstance(module, nn.Linear) else read.ndim - 2
                seen = read.masked_fill(unseen.to(read.device).view(-1, *[1] * trailing), 0)
                return (args, {**kwargs, name: seen}) if name else ((seen, *args[1:]), kwargs)

            yield layer.register_forward_pre_hook(blind, with_kwargs=True)

    return hooks(handles())
