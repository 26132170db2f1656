"""A blended criterion as an importance of Torch-Pruning, and its importances as criteria to blend."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning
from numpy.typing import NDArray
from torch import Tensor, nn

from blend.adapters.fresh_scores import Batches, FreshScores, Loss
from blend.adapters.tracking import Survivors, distinct_ranks
from blend.blended import BlendedCriterion
from blend.budget import floors
from blend.errors import InputError
from criteria import CRITERIA, ChannelGraph, Criterion, CriterionError
from criteria.layers import WEIGHTED, widths_of_weight
from criteria.passes import Network, register_pass

Importance = Callable[..., Tensor | None]


class UnreachedRatioWarning(UserWarning):
    """A pruner has removed more or fewer channels than it was asked to."""


class BlendedImportance:
    """What a pruner of Torch-Pruning calls for the importance of a group's channels.

    Frozen scores follow the renumbering of channels when a pruner removes some in several steps. With calibration data,
    scores are recomputed by the blend's formula on the network as it is at every step.

    All importances are different, so that a threshold takes exactly as many channels as asked; the best channels of
    each group, as many as the search kept whatever happened, come last. With several steps a pruner takes one channel
    fewer for each group that had a single one left before the last of them: such a group it no longer shows nor counts.

    Args:
        criterion: The blend, or the path of its file.
        model: The network that is going to be pruned, before it is.
        example_inputs: As for the pruner.
        batches: Calibration data to recompute scores on, (inputs, targets); none, to use the frozen ones.
        loss: (outputs, targets) → mean loss of a batch, for criteria that need gradients; not used by a blend that was
            searched with a loss without labels, which is used again.

    Raises:
        InputError: If the criterion cannot be loaded or belongs to another network; with calibration data, if it has no
            formula, or one of its criteria is not registered or needs a metric.
    """

    def __init__(
        self,
        criterion: BlendedCriterion | str | Path,
        model: nn.Module,
        example_inputs: Tensor,
        batches: Batches = (),
        loss: Loss = nn.functional.cross_entropy,
    ) -> None:
        self.criterion = BlendedCriterion.of(criterion)
        graph = ChannelGraph.build(model, example_inputs, ignore=self.criterion.task.get("ignore", ()))
        frozen = None if batches else self.criterion.frozen_scores(graph)
        if frozen is not None:
            self.criterion.network.warn_of_other_weights(model)
        self.criterion.warn_of_no_compensation()
        self._fresh = FreshScores(self.criterion, graph, batches, loss) if batches else None
        self._survivors = Survivors(graph)
        self._floors = floors(graph, self.criterion.floor)
        self._ranks: dict[str, Tensor] = {}
        self._followed: tuple[Any, int] = (lambda: None, 0)  # a pruner's graph, weakly, and how much of its history
        if frozen is not None:
            self._rank(frozen)

    @property
    def removed(self) -> float:
        """The share of the channels that are gone, of all that have a score."""
        return float(1 - np.concatenate(self._scored()).mean())

    def check(self, pruner: Any, ratio: float) -> float:
        """Compares what a pruner was asked for with what it has done.

        Args:
            pruner: It has made all its steps.
            ratio: Of the channels, that it was asked to remove.

        Returns:
            The share that it has removed.

        Warns:
            UnreachedRatioWarning: They differ by more than a channel.
        """
        self._follow(pruner.DG)
        total = sum(map(len, self._scored()))
        if abs(self.removed - ratio) * total > 1:
            warnings.warn(
                f"{ratio:.4f} of {total} channels were to be removed, and {self.removed:.4f} are",
                UnreachedRatioWarning,
                stacklevel=2,
            )
        return self.removed

    def __call__(self, group: Any, **_: Any) -> Tensor | None:
        """The importance of each channel of the group's first layer; None where the blend has no scores for it.

        Raises:
            InputError: If channels were removed that this has not seen, or the pruner would remove others together than
                belong together.
        """
        graph = group._DG
        self._follow(graph)
        self._check_ties(group)
        names = graph._module2name
        length = len(group[0].idxs)
        total, count = torch.zeros(length), torch.zeros(length)
        for item in group:
            module = item.dep.target.module
            puts_out = graph.is_out_channel_pruning_fn(item.dep.handler)
            for of, channels in self._survivors.channels(names.get(module, "")) if puts_out else ():
                if item.dep.handler.__self__.get_out_channels(module) != len(channels):
                    raise InputError(
                        f"layer '{names[module]}' has lost channels by a pruner whose steps were not seen here: make a "
                        "new importance for the network as it is, with calibration data to recompute the scores"
                    )
                if not self._ranks and self._fresh is not None:
                    self._rank(self._fresh(graph.model, self._survivors.alive))
                if of not in self._ranks:  # no criterion could rank it when the blend was searched
                    continue
                numbers = torch.from_numpy(channels)[torch.as_tensor(item.idxs)]
                place, mine = torch.as_tensor(item.root_idxs), numbers >= 0
                total.index_add_(0, place[mine], self._ranks[of][numbers[mine]])
                count.index_add_(0, place[mine], torch.ones(int(mine.sum())))
        return total / count.clamp_min(1) if bool((count > 0).all()) else None

    def _check_ties(self, group: Any) -> None:
        """A pruner may count the channels behind a flip, a shuffle or a pad as if they were in their old order."""
        graph, length = group._DG, len(group[0].idxs)
        tied: dict[str, NDArray[np.int64]] = {}
        for item in group:
            layer = graph._module2name.get(item.dep.target.module, "")
            consumes = not graph.is_out_channel_pruning_fn(item.dep.handler)
            for of, channels in self._survivors.channels(layer, consumes=consumes):
                place, positions = np.asarray(item.root_idxs), np.asarray(item.idxs)
                inside = (positions < len(channels)) & (place < length)
                place, numbers = place[inside], channels[positions[inside]]
                place, numbers = place[numbers >= 0], numbers[numbers >= 0]
                known = tied.setdefault(of, np.full(length, -1))
                known[place] = np.where(known[place] < 0, numbers, known[place])
                if (known[place] != numbers).any():
                    raise InputError(
                        f"the pruner would remove others of the inputs or outputs of layer '{layer}' than those of the "
                        "channels that go: it does not follow what this network does to their order; let it ignore the "
                        "layers before, or make the network smaller by 'blend prune'"
                    )

    def _scored(self) -> list[NDArray[np.bool_]]:
        """What is left of the groups that have scores."""
        return [self._survivors.alive[group.name] for group in self.criterion.groups]

    def _follow(self, graph: Any) -> None:
        """Learns what was removed since the last time."""
        history = graph.pruning_history()
        known, seen = self._followed
        news = history[seen if known() is graph else 0 :]
        for layer, is_output, positions in news:
            self._survivors.remove(layer, is_output, positions)
        if news:
            for module, name in graph._module2name.items():
                if isinstance(module, WEIGHTED):
                    self._survivors.check_widths(name, *widths_of_weight(module))
        if news and self._fresh is not None:
            self._ranks = {}
        self._followed = (weakref.ref(graph), len(history))

    def _rank(self, scores: dict[str, NDArray[np.float64]]) -> None:
        """Ranks by the number of a channel before anything was removed; those that are gone have none.

        A group without scores comes after all others, so that it gives nothing. It is there nevertheless: a pruner
        counts what it is shown, and would take fewer channels of all others.
        """
        alive = {group.name: self._survivors.alive[group.name] for group in self.criterion.groups}
        left = {name: int(part.sum()) for name, part in alive.items()}
        ranks = distinct_ranks(
            [scores.get(name, np.full(left[name], np.inf)) for name in alive],
            [self._floors[name] if name in scores else left[name] for name in alive],
        )
        for (name, part), values in zip(alive.items(), ranks, strict=True):
            everything = torch.zeros(len(part))
            everything[torch.from_numpy(np.flatnonzero(part))] = torch.from_numpy(values).float()
            self._ranks[name] = everything


def register_importance(name: str, importance: Importance, *, gradients: bool = False) -> Criterion:
    """Makes an importance of Torch-Pruning a criterion, to be compared and blended like any other.

    Call it in the file of your task; the name can then be given to ``--criteria``.

    Args:
        name: Of the criterion.
        importance: One of its importances, or any function of a group that returns one value per channel.
        gradients: Whether it needs gradients; they are those of the mean loss over the calibration data.

    Raises:
        CriterionValueError: If the name is taken.
    """

    def scores(network: Network) -> dict[str, Tensor]:
        """Importance by Torch-Pruning, mean over the layers of a group.

        Args:
            network: the network, and calibration data where gradients are needed.

        Returns:
            Group → scores of shape (channels,), in whatever unit the importance has.
        """
        model = copy.deepcopy(network.model)
        if gradients:
            _backpropagate(model, network)
        example = network.batches[0][0][:2].to(network.device)
        graph = torch_pruning.DependencyGraph().build_dependency(model, example, verbose=False)
        found: dict[str, list[Tensor]] = {}
        for group, member in [(g, member) for g in network.graph.groups for member in g.producers]:
            layer = member.layer
            module = model.get_submodule(layer)
            pruning = graph.get_pruner_of_module(module).prune_out_channels
            positions = list(range(len(member.channels)))
            values = importance(graph.get_pruning_group(module, pruning, positions))
            if values is not None:
                found.setdefault(group.name, []).append(_by_channel(name, layer, values, member.channels, group.size))
        return {group: torch.stack(parts).mean(0) for group, parts in found.items()}

    register_pass(name, family="foreign", reference="Torch-Pruning", lacking="is left alone by it")(scores)
    return CRITERIA.get(name)


def _by_channel(name: str, layer: str, values: Tensor, channels: Any, size: int) -> Tensor:
    """Mean over the positions of each channel."""
    values = values.detach().float().cpu()
    if values.shape != (len(channels),):
        raise CriterionError(
            f"importance {name!r} must give {len(channels)} values for layer {layer!r}, got shape {tuple(values.shape)}"
        )
    owned = torch.from_numpy(channels)
    mine = owned >= 0
    total = torch.zeros(size).index_add_(0, owned[mine], values[mine])
    return total / torch.bincount(owned[mine], minlength=size)


def _backpropagate(model: nn.Module, network: Network) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    total = sum(len(inputs) for inputs, _ in network.batches)
    for inputs, targets in network.batches:
        loss = network.loss(model(inputs.to(network.device)), targets.to(network.device))
        torch.autograd.backward(loss * (len(inputs) / total))
