"""The sweep's view of the layers that read channels: activations, summed up and sampled as they pass."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from criteria.errors import CriterionError
from criteria.graph import ChannelGraph, ChannelGroup, Member
from criteria.streaming import Mean, hooks, rows, widened
from criteria.views import GroupStats


class Consumers:
    """Running means of what the consumers read, and a few of the maps.

    Args:
        model: the network.
        graph: its channel groups.
        needs: names from `NEEDS`.
        seed: of the sample of maps.
        map_images: size of the sample.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, needs: frozenset[str], seed: int, map_images: int
    ) -> None:
        """Choose what to watch."""
        self.active = bool(needs & {"activation", "maps"})
        self._model, self._needs, self._seed, self._map_images = model, needs, seed, map_images
        self._layers = {member.layer for group in graph.groups for member in group.consumers}
        self._means: defaultdict[tuple[str, str], Mean] = defaultdict(Mean)
        self._maps: defaultdict[str, dict[int, Tensor]] = defaultdict(dict)
        self._random = np.random.default_rng(seed)
        self._seen = 0
        self._sample: dict[int, int] = {}

    def hooked(self) -> AbstractContextManager[None]:
        """A context in which every consumer's input is watched."""
        return hooks(self._hooks())

    def _hooks(self) -> Iterator[RemovableHandle]:
        for layer in self._layers if self.active else ():
            watch = partial(self._watch, layer)
            yield self._model.get_submodule(layer).register_forward_pre_hook(watch, with_kwargs=True)

    def begin(self, examples: int) -> None:
        """Choose a batch's share of the sample, slot → row: Vitter's algorithm R, whatever the split in batches."""
        self._sample = {}
        for row in range(examples if "maps" in self._needs else 0):
            slot = self._seen if self._seen < self._map_images else int(self._random.integers(self._seen + 1))
            if slot < self._map_images:
                self._sample[slot] = row
            self._seen += 1

    def _watch(self, layer: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        read: Tensor = (args[0] if args else kwargs["input"]).detach()
        linear = isinstance(module, nn.Linear)
        read = read.movedim(-1, 1) if linear else read
        if "activation" in self._needs:
            rest = [axis for axis in range(read.ndim) if axis != 1]
            wide = widened(read[:0]).dtype
            self._means["mean", layer].add(read.mean(rest, dtype=wide), len(read))
            nonzero = read.sign().abs_()  # several times faster to sum up than a comparison
            self._means["nonzero", layer].add(nonzero.mean(rest, dtype=wide), len(read))
        if read.ndim >= 4 and not linear:
            for slot, row in self._sample.items():
                self._maps[layer][slot] = widened(read[row].flatten(1, -2)).clone()

    def views(self, group: ChannelGroup) -> list[GroupStats]:
        """The group's views by the layers that read its channels, in the graph's order."""
        return [self._view(group, member) for member in group.consumers]

    def _view(self, group: ChannelGroup, member: Member) -> GroupStats:
        channels, positions = rows(member)

        def channelwise(statistic: str) -> Tensor | None:
            value = self._means[statistic, member.layer].value
            return None if value is None else value[positions].mean(1)

        return GroupStats(
            group=group.name,
            layer=member.layer,
            size=group.size,
            side="consumer",
            channels=channels if len(channels) < group.size else None,
            seed=self._seed,
            activation_mean=channelwise("mean"),
            activation_nonzero=channelwise("nonzero"),
            maps=self._stacked(member.layer, positions),
        )

    def _stacked(self, layer: str, positions: Tensor) -> Tensor | None:
        maps = [self._maps[layer][slot] for slot in sorted(self._maps[layer])]
        if len({tuple(sample.shape) for sample in maps}) > 1:
            raise CriterionError(f"the maps read by {layer!r} must have one size to be stacked, got several")
        return torch.stack(maps)[:, positions].flatten(2, 3) if maps else None
