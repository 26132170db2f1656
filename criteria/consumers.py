"""The sweep's view of the layers that read channels: activations, summed up and sampled as they pass."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from criteria.errors import CriterionError
from criteria.graph import ChannelGraph, ChannelGroup, Member
from criteria.streaming import ClassMoments, Maps, Mean, Reservoir, Slots, hooks, rows, widened
from criteria.views import NEEDS, GroupStats

IMAGE_MEANS = 2048
"""Of how many images ``image_means`` holds the means: all of a shorter stream, a fair sample of a longer one."""

_WATCHED = frozenset(name for name, need in NEEDS.items() if need.side == "consumer")


class Consumers:
    """Running moments of what the consumers read, the means of many images and the maps of a few.

    Args:
        model: the network.
        graph: its channel groups.
        needs: names from `NEEDS`.
        seed: of the samples.
        map_images: how many images' maps are held, if there is room for them.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, needs: frozenset[str], seed: int, map_images: int
    ) -> None:
        """Choose what to watch."""
        self.active = bool(needs & _WATCHED)
        self._model, self._needs, self._seed = model, needs, seed
        self._members: defaultdict[str, list[tuple[str, Tensor]]] = defaultdict(list)
        for group in graph.groups:
            for member in group.consumers:
                self._members[member.layer].append((group.name, rows(member)[1]))
        self._means: defaultdict[tuple[str, ...], Mean] = defaultdict(Mean)
        self._classes: defaultdict[tuple[str, str], ClassMoments] = defaultdict(ClassMoments)
        self._image_means: defaultdict[str, Slots] = defaultdict(Slots)
        self._maps = Maps(map_images, seed)
        self._samples = {"maps": Reservoir(map_images, seed), "image_means": Reservoir(IMAGE_MEANS, seed)}
        self._shares: dict[str, dict[int, int]] = {}
        self._labels: list[int] | None = None
        self._examples = 1
        self._mixed: set[str] = set()  # layers that have fewer rows than examples: theirs are something else

    def hooked(self) -> AbstractContextManager[None]:
        """A context in which every consumer's input is watched."""
        return hooks(self._hooks())

    def _hooks(self) -> Iterator[RemovableHandle]:
        for layer in self._members if self.active else ():
            watch = partial(self._watch, layer)
            yield self._model.get_submodule(layer).register_forward_pre_hook(watch, with_kwargs=True)

    def begin(self, examples: int, targets: Tensor) -> None:
        """Choose a batch's share of the samples, and read its labels if they are one class per example."""
        self._shares = {need: self._samples[need].draw(examples) for need in self._samples if need in self._needs}
        classes = targets.shape == (examples,) and not (targets.is_floating_point() or targets.is_complex())
        self._examples = examples
        self._labels = targets.tolist() if "classes" in self._needs and classes else None

    def _watch(self, layer: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        whole: Tensor = args[0] if args else kwargs["input"]
        linear = isinstance(module, nn.Linear)
        read = whole.detach().movedim(-1, 1) if linear else whole.detach()
        if len(read) < self._examples:
            self._mixed.add(layer)
        if self._needs & {"activation", "image_means", "classes"}:
            self._add_means(layer, read)
        if read.ndim >= 4 and not linear and layer not in self._mixed:
            for slot, row in self._shares.get("maps", {}).items():
                self._put_maps(layer, slot, self._one_each(read)[row].flatten(1, -2))
        if "activation_gradient" in self._needs and whole.requires_grad:
            self._add_gradient_later(layer, whole, linear)

    def _add_means(self, layer: str, read: Tensor) -> None:
        wide = widened(read[:0]).dtype
        images = read.flatten(2).mean(2, dtype=wide) if read.ndim > 2 else read.to(wide)
        if "activation" in self._needs:
            self._means["mean", layer].add(images.mean(0), len(read))
            nonzero = read.sign().abs_()  # several times faster to sum up than a comparison
            rest = [axis for axis in range(read.ndim) if axis != 1]
            self._means["nonzero", layer].add(nonzero.mean(rest, dtype=wide), len(read))
        if "image_means" in self._needs and layer not in self._mixed:
            self._image_means[layer].put(self._shares["image_means"], self._one_each(images))
        for group, positions in self._members[layer] if self._labels and len(images) == len(self._labels) else ():
            self._classes[group, layer].add(images[:, positions].mean(-1), self._labels or [])

    def _put_maps(self, layer: str, slot: int, image: Tensor) -> None:
        for group, positions in self._members[layer]:
            self._maps.put(group, layer, slot, widened(image[positions].flatten(1, 2)))

    def _one_each(self, rows: Tensor) -> Tensor:
        """One row for each example: the first of its frames, where those were folded into the batch."""
        return rows[:: max(1, len(rows) // self._examples)]

    def _add_gradient_later(self, layer: str, read: Tensor, linear: bool) -> None:
        """Have the first backward pass tell the gradient of what was read, once.

        The hook refers to the values alone: did it refer to what it is on, a graph of derivatives that no backward
        pass reaches would hold itself, where Python's garbage collector cannot see it.
        """
        values, version = read.detach(), read._version

        def add(gradient: Tensor) -> None:
            handle.remove()
            if values._version != version:
                raise CriterionError(f"what {layer!r} reads must not be changed in place to have a gradient")
            product = widened(values) * gradient.detach()
            images = product.movedim(-1, 1) if linear else product
            images = images.flatten(2).mean(2) if images.ndim > 2 else images
            images = images * len(images)  # L is the mean of the L_n
            for group, positions in self._members[layer]:
                magnitude = images[:, positions].mean(-1).abs().mean(0)
                self._means["gradient", group, layer].add(magnitude, len(images))

        handle: RemovableHandle = read.register_hook(add)  # type: ignore[no-untyped-call]

    def views(self, group: ChannelGroup) -> list[GroupStats]:
        """The group's views by the layers that read its channels, in the graph's order; they take the maps along."""
        return [self._view(group, member) for member in group.consumers]

    def _view(self, group: ChannelGroup, member: Member) -> GroupStats:
        channels, positions = rows(member)

        def channelwise(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[..., positions].mean(-1)

        mixed = member.layer in self._mixed
        images = None if mixed else channelwise(self._image_means[member.layer].value)
        maps = self._maps.take(group.name, member.layer)
        between, within = self._classes[group.name, member.layer].variances or (None, None)
        return GroupStats(
            group=group.name,
            layer=member.layer,
            size=group.size,
            side="consumer",
            channels=channels if len(channels) < group.size else None,
            seed=self._seed,
            activation_mean=channelwise(self._means["mean", member.layer].value),
            activation_nonzero=channelwise(self._means["nonzero", member.layer].value),
            activation_gradient_magnitude=self._means["gradient", group.name, member.layer].value,
            image_means=None if images is None else images.T,
            between_class_variance=between,
            within_class_variance=within,
            maps=None if mixed else maps,
        )
