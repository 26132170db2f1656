"""Networks cut into parts, so that a candidate can begin behind those that it has in common with an earlier one.

What a part makes of the same inputs depends on the channels that its layers and those before hold, and on nothing else.
Begun with the very values that the earlier candidate had there, a pass gives the same bits as from the beginning.

Parts are also what images go through in portions: few at once where their maps are large, so that what one layer writes
is still in a cache when the next one reads it, and many where maps are small, so that weights are read seldom.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import reduce
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from blend.pruning.norms import Norm, recalibrate_together
from blend.pruning.prefixes import PrefixCache, Snapshot
from criteria.graph import ChannelGraph, Indices, Keep

_RECALIBRATION = "recalibration"
_PORTION_BYTES = 2**23
"""What the largest map of a part takes for a portion of images; twice as much goes through as a whole."""
_ROUNDINGS = 128
"""How far a part's values may lie from those of all images at once, in roundings of the largest."""
_ALIKE = 4
"""How many times as large as another a map has to be to go through in other portions."""


class Chain(nn.Module):
    """A network in parts, from each of which a single value goes on to the next.

    Args:
        parts: Each is called with what the one before returns. No BatchNorm is in two of them.
        channels: For each part, the channels of a graph that its tensors depend on; none where there is no cache.

    Attributes:
        cache: Keeps what parts make; None to begin at the beginning each time.
        map_bytes: For each part, what its largest map takes for one image; none to take all images at once.
    """

    def __init__(self, parts: Sequence[nn.Module], channels: Sequence[Indices] = ()) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.cache: PrefixCache | None = None
        self.map_bytes: tuple[float, ...] = ()
        self._channels = channels
        self._norms = [[module for module in part.modules() if isinstance(module, Norm)] for part in parts]
        self._salt = os.urandom(8)  # others may use the same cache
        self._keys: list[bytes] = []
        self._shared = 0

    def begin(self, keep: Keep) -> None:
        """Takes note that the parts' tensors have been sliced to these channels."""
        if self.cache is None:
            return
        digest, self._keys = blake2b(self._salt, digest_size=16), []
        for channels in self._channels:
            digest.update(b"|" + keep[channels].tobytes())  # where there are none, the key is another one, too
            self._keys.append(digest.digest())
        self._shared = sum([self.cache.meets_again(key) for key in self._keys])

    def portion(self, example: Tensor) -> None:
        """Has images go through in portions from now on, if the parts make the same of them then, up to rounding.

        Args:
            example: What the network was recalibrated on last, unpruned; in single or double precision.
        """
        map_bytes: list[float] = []
        value: Any = example
        for part, norms in zip(self.parts, self._norms, strict=True):
            some = value.clone().tensor_split([1])  # one image alone shows most; a part may write to what it reads
            before, value = value.nbytes, part(value)
            if not _is_whole(value, [part(images) for images in some], [len(images) for images in some]):
                return
            map_bytes.append(max(before, value.nbytes, *(norm.largest for norm in norms)) / len(example))
        self.map_bytes = tuple(map_bytes)

    def recalibrate(self, images: Sequence[Tensor]) -> None:
        """As :func:`blend.pruning.norms.recalibrate_together`; with a cache, always with the same images."""
        done, (values, known) = self._found(_RECALIBRATION) or (0, (images, []))
        for norm, statistics in zip(self._norms_of(0, done), known, strict=True):
            norm.norm.running_mean.copy_(statistics[0])
            norm.norm.running_var.copy_(statistics[1])
        made: list[Snapshot] = []
        whole = [(0, len(self.parts), 0)]
        recalibrate_together(lambda value: self._go_on(value, whole, done, made), values, self._norms_of(done))
        if self.cache is not None and made:
            norms = [wrapped.norm for wrapped in self._norms_of(0, self._shared)]
            known = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
            values = [snapshot.tensor for snapshot in made]
            self.cache.put((self._keys[self._shared - 1], _RECALIBRATION), (values, known), made)

    def forward(self, inputs: Tensor, name: Hashable = None) -> Any:
        """The network's outputs.

        Args:
            inputs: Of the network.
            name: Always stands for the same inputs, in every candidate; None for inputs that have none.
        """
        stretches = _stretches(self.map_bytes, len(inputs)) if self.map_bytes else [(0, len(self.parts), 0)]
        done, value = self._found(name) or (0, inputs)
        made: list[Snapshot] = []
        outputs = self._go_on(value, stretches, done, made)
        if self.cache is not None and name is not None and made:
            kept = [snapshot.tensor for snapshot in made]
            self.cache.put((self._keys[self._shared - 1], name), kept[0] if len(kept) == 1 else kept, made)
        return outputs

    def _found(self, name: Hashable) -> tuple[int, Any] | None:
        """How many parts need not be run, and what the last of them has made of these inputs."""
        if self.cache is not None and name is not None:
            for done in range(self._shared, 0, -1):
                if (value := self.cache.get((self._keys[done - 1], name))) is not None:
                    return done, value
        return None

    def _go_on(self, value: Any, stretches: Iterable[Stretch], done: int, made: list[Snapshot]) -> Any:
        """Runs the parts that are not done; what the last of those makes that earlier candidates have had is noted.

        Args:
            value: What the last part that is done has made; of each portion, where these are not joined there.
            stretches: Of all parts.
            done: How many parts have been run.
            made: Is added to.
        """
        parts, shared = list(self.parts), self._shared
        for first, last, count in stretches:
            if last <= done:
                continue
            begin, joined = max(first, done), list[Any]()
            middle = shared if begin < shared < last else begin
            pieces = [value] if not count else value if first < begin else portions(value, count)
            for piece in pieces:
                piece = reduce(_run, parts[begin:middle], piece)
                if begin < middle:  # not joined: a candidate that begins here is to read from such addresses, too
                    made.append(Snapshot(piece))
                joined.append(reduce(_run, parts[middle:last], piece))
            value = joined[0] if len(joined) == 1 else torch.cat(joined)
            if last == shared:
                made.append(Snapshot(value))
        return value

    def _norms_of(self, first: int, last: int | None = None) -> list[Norm]:
        return [norm for norms in self._norms[first:last] for norm in norms]


Stretch = tuple[int, int, int]
"""Parts in a row: the first, the one behind the last, and how many images go through them at once; 0 for all."""


def _stretches(map_bytes: Sequence[float], images: int) -> list[Stretch]:
    """In which portions so many images go through which parts: by a rule, as last bits may depend on it."""
    found, first = [], 0
    for number in range(1, len(map_bytes) + 1):
        some = map_bytes[first : number + 1]
        if number == len(map_bytes) or max(some) >= _ALIKE * min(some):
            count = max(1, int(_PORTION_BYTES / max(map_bytes[first:number])))
            found.append((first, number, 0 if 2 * count >= images else count))
            first = number
    return found


def portions(images: Tensor, most: int) -> Sequence[Tensor]:
    """Images in portions of so many at most that are as equal as can be; none if there are none."""
    return images.tensor_split(math.ceil(len(images) / most)) if len(images) else ()


def _run(value: Any, part: nn.Module) -> Any:
    return part(value)


def _is_whole(value: Any, pieces: Sequence[Any], counts: Sequence[int]) -> bool:
    """Whether pieces are of so many images each, and together are the value up to rounding."""
    if not all(isinstance(some, Tensor) and some.is_floating_point() and some.ndim for some in (value, *pieces)):
        return False
    if [len(piece) for piece in pieces] != counts or {piece.shape[1:] for piece in pieces} != {value.shape[1:]}:
        return False
    joined = torch.cat(list(pieces))
    if joined.shape != value.shape or joined.dtype != value.dtype:
        return False
    tolerance = _ROUNDINGS * torch.finfo(value.dtype).eps
    return bool((joined - value).abs().max() <= tolerance * value.abs().max())


def chained(traced: GraphModule, network: nn.Module, graph: ChannelGraph) -> Chain:
    """A traced network, cut in front of each layer past which nothing else goes.

    Args:
        traced: Made of layers of the network.
        network: What the channel graph is of.
        graph: Says which channels the tensors of a layer hold.
    """
    names = {module: name for name, module in network.named_modules()}
    held: dict[str, set[int]] = {}
    for axis in graph.axes:
        layer = axis.tensor.rpartition(".")[0] or axis.tensor  # the network's own are layers by themselves
        held.setdefault(layer, set()).update(axis.owner[axis.owner >= 0].tolist())
    parts = list(_parts(traced))
    layers = [
        [
            *(names[module] for module in part.modules() if module in names),
            *(str(node.target) for node in part.graph.nodes if node.op == "get_attr"),
        ]
        for part in parts
    ]
    channels = [sorted(set().union(*(held.get(layer, ()) for layer in some))) for some in layers]
    return Chain(parts, [np.array(some, dtype=np.int64) for some in channels])


def _parts(traced: GraphModule) -> Iterator[GraphModule]:
    """The parts of a traced network, made of the same layers."""
    nodes = list(traced.graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    last_use = [max((place[user] for user in node.users), default=-1) for node in nodes]
    norms = [_norms(node, traced) for node in nodes]
    part, copies = Graph(), dict[Node, Node]()
    for number, node in enumerate(nodes):
        passing = [nodes[earlier] for earlier, last in enumerate(last_use[:number]) if last >= number]
        alone = len(passing) == 1 and passing[0].op != "placeholder"
        # A BatchNorm on both sides would have statistics that depend on later parts.
        if alone and _may_begin(node, traced) and not set().union(*norms[:number]) & set().union(*norms[number:]):
            (value,) = passing
            part.output(copies[value])
            yield GraphModule(traced, part)
            part = Graph()
            copies = {value: part.placeholder("value")}
        copies[node] = part.node_copy(node, copies.__getitem__)
    yield GraphModule(traced, part)


def _may_begin(node: Node, traced: GraphModule) -> bool:
    """Whether it is a layer with weights that leaves as it is what it reads; a BatchNorm may write to that."""
    if node.op != "call_module":
        return False
    layer = traced.get_submodule(str(node.target))
    return not isinstance(layer, Norm) and next(layer.parameters(), None) is not None


def _norms(node: Node, traced: GraphModule) -> set[nn.Module]:
    if node.op != "call_module":
        return set()
    return {module for module in traced.get_submodule(str(node.target)).modules() if isinstance(module, Norm)}
