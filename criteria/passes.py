"""Criteria that take passes of their own over the network, instead of reading the statistics of the one sweep."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from criteria.claims import known_claims
from criteria.errors import CriterionError, CriterionValueError, DoesNotApply
from criteria.evaluating import called_with
from criteria.graph import ChannelGraph, ChannelGroup, Member
from criteria.layers import is_depthwise
from criteria.registry import CRITERIA, Criterion, Registry, failing
from criteria.specification import declared
from criteria.stats import Loss
from criteria.views import GroupStats

Batches = Sequence[tuple[Tensor, Tensor]]
OnStep = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all): called after every step."""


@dataclass(frozen=True, eq=False)
class Network:
    """What a criterion with passes of its own gets to see.

    Attributes:
        model: the network, in eval mode; to be called through `outputs` only, and left as it is.
        graph: its channel groups.
        batches: calibration data, (inputs, targets), examples along the first axis.
        loss: (outputs, targets) → mean loss over the batch, a scalar.
        metric: (outputs, targets) → one value per example, higher is better; None if there is none.
        seed: of whatever is drawn at random.
        on_step: called with the number of steps done and of steps in all.
    """

    model: nn.Module
    graph: ChannelGraph
    batches: Batches
    loss: Loss
    metric: Loss | None = None
    seed: int = 0
    on_step: Callable[[int, int], None] = lambda done, total: None

    def generator(self) -> torch.Generator:
        """A fresh random generator, on the CPU, so that the numbers are the same on every device."""
        return torch.Generator().manual_seed(self.seed)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.model.parameters()).device

    @cached_property
    def _stand_ins(self) -> dict[int, Tensor]:
        return {id(parameter): parameter.detach() for parameter in self.model.parameters()}

    def outputs(self, inputs: Tensor) -> Tensor:
        """The network's outputs, of detached parameters and copies of the buffers, which a forward might write to."""
        buffers = {id(buffer): buffer.clone() for buffer in self.model.buffers()}
        result: Tensor = called_with(self.model, self._stand_ins | buffers, inputs.to(self.device))
        return result

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch.

        Raises:
            CriterionValueError: it is not a finite scalar.
        """
        loss = self.loss(outputs, targets.to(outputs.device))
        if loss.ndim or not loss.isfinite():
            raise CriterionValueError(f"loss must be a finite scalar, got {loss.detach()}")
        return loss


PassFunction = Callable[[Network], Mapping[str, Tensor]]
"""Network → group → scores of shape (channels,); groups to which the criterion does not apply are left out."""


@dataclass(frozen=True)
class PassCriterion(Criterion):
    """A criterion that takes passes of its own over the network.

    Attributes:
        function: `PassFunction`; keyword-only arguments with defaults are its parameters.
        lacking: what a group lacks that gets no scores, as the end of a sentence.
        by_metric: whether it looks at the metric, and thereby at labels.
    """

    function: Callable[..., Any]
    lacking: str = "does not apply"
    by_metric: bool = False

    @property
    def labelled(self) -> bool:
        """Whether it reads labels by itself, so that a loss without labels is not enough for it."""
        return self.by_metric

    def missing(self, stats: GroupStats) -> str | None:
        """Statistics alone never do."""
        return f"criterion {self.name!r} takes passes of its own over the network; use criteria.score"

    def scores(self, network: Network) -> dict[str, Tensor]:
        """Score every group to which the criterion applies.

        Raises:
            DoesNotApply: it applies to none.
            CriterionError: the function raised, or returned other groups or shapes.
        """
        with failing(self.name):
            found = dict(self.function(network, **self.configured))
        sizes = {group.name: group.size for group in network.graph.groups}
        for name, scores in found.items():
            if name not in sizes:
                raise CriterionError(f"criterion {self.name!r} must score the graph's groups, got {name!r}")
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            if shape != (sizes[name],):
                raise CriterionError(
                    f"criterion {self.name!r} must return a tensor of shape ({sizes[name]},) for {name!r}, got {shape}"
                )
        if not found:
            raise DoesNotApply(f"{self.reason} (nor does it to any other group)")
        return found

    @property
    def reason(self) -> str:
        """Why a group has no scores, as a sentence."""
        return f"criterion {self.name!r} {self.lacking}"


def register_pass(
    name: str,
    *,
    family: str,
    reference: str,
    lacking: str,
    expensive: bool = True,
    claims: Collection[str] = (),
    by_metric: bool = False,
    registry: Registry = CRITERIA,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a `PassFunction` to become the criterion ``name``; the function itself stays as it is.

    Args:
        name: unique name.
        family: what kind of evidence it looks at.
        reference: where the formula comes from.
        lacking: what a group lacks that gets no scores, as the end of a sentence.
        expensive: whether it costs far more than one sweep.
        claims: what it claims of its scores, see `CLAIMS`; nothing unless it is said.
        by_metric: whether it looks at the metric, and thereby at labels.
        registry: where it is entered.

    Raises:
        CriterionValueError: the name is taken, or a claim is unknown.
    """
    claimed = known_claims(name, claims)

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        declared(name, function)  # refuses parameters of a kind that cannot be given by name
        registry.add(
            PassCriterion(
                name=name,
                family=family,
                needs=frozenset(),
                reference=reference,
                function=function,
                expensive=expensive,
                lacking=lacking,
                claims=claimed,
                by_metric=by_metric,
            )
        )
        return function

    return add


def sampled(batches: Batches, images: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A seeded sample of the examples, in their order and batches; which ones does not depend on the batches.

    Raises:
        CriterionValueError: ``images`` is less than 1.
    """
    if images < 1:
        raise CriterionValueError(f"images must be at least 1, got {images}")
    sizes = [len(inputs) for inputs, _ in batches]
    order = np.random.default_rng(seed).permutation(sum(sizes))[:images]
    chosen = np.zeros(sum(sizes), dtype=bool)
    chosen[order] = True
    for (inputs, targets), part in zip(batches, np.split(chosen, np.cumsum(sizes)[:-1]), strict=True):
        if part.any():
            rows = torch.from_numpy(part)
            yield inputs[rows.to(inputs.device)], targets[rows.to(targets.device)]


def reading_groups(graph: ChannelGraph, model: nn.Module) -> Iterator[tuple[ChannelGroup, list[Member]]]:
    """Each group with the consumers that mix its channels.

    A depthwise convolution reads and hands on its channels one by one; what it makes of them is read by other
    consumers of the same group, so that it is not one itself. Groups without any consumer are left out.
    """
    for group in graph.groups:
        layers = {member.layer: model.get_submodule(member.layer) for member in group.consumers}
        mixing = [m for m in group.consumers if m.layer in graph.mixing or not is_depthwise(layers[m.layer])]
        if mixing:
            yield group, mixing
