"""Small networks with data, on which criteria are tried, and what can be done to them: permuting, planting filters.

All is in double precision, so that what ought to be equal is equal to many digits.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from criteria.graph import Axis, ChannelGraph, ChannelGroup

CLASSES = 4
EXAMPLES = 12


@dataclass(frozen=True, eq=False)
class Specimen:
    """A network, its channel graph, and a few examples.

    Attributes:
        name: what reports call it.
        model: the network.
        graph: its channel groups.
        inputs: examples.
        targets: their targets.
        loss: (outputs, targets) → mean loss over the batch.
    """

    name: str
    model: nn.Module
    graph: ChannelGraph
    inputs: Tensor
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy

    def batches(self, *sizes: int) -> list[tuple[Tensor, Tensor]]:
        """The examples in batches; two of the same size by default."""
        count = len(self.inputs)
        lengths = list(sizes) or [count - count // 2, count // 2]
        return list(zip(torch.split(self.inputs, lengths), torch.split(self.targets, lengths), strict=True))

    def changed(self, tensors: Mapping[str, Tensor]) -> "Specimen":
        """A copy whose network has other values in some tensors."""
        model = copy.deepcopy(self.model)
        model.load_state_dict({**model.state_dict(), **tensors})
        return replace(self, model=model)

    def shaken(self, seed: int = 0) -> "Specimen":
        """A copy of the same layout whose parameters are other ones."""
        generator = torch.Generator().manual_seed(seed)
        state = self.model.state_dict()
        factors = {name: 1 + torch.rand(state[name].shape, generator=generator) for name in self.graph.parameters}
        return self.changed({name: state[name] * factor.to(state[name].dtype) for name, factor in factors.items()})

    def permuted(self, order: NDArray[np.int64]) -> "Specimen":
        """A copy that computes the same function, channel i of which is channel ``order[i]`` of this one."""
        return self._moved(dict(enumerate(order.tolist())), consumers=True)

    def alike(self) -> "Specimen":
        """A copy in which all channels of a group are the same as its first."""
        firsts = {c: part.start for part in self.graph.slices.values() for c in range(part.start, part.stop)}
        return self._moved(firsts, consumers=True)

    def with_duplicate(self, source: int, target: int) -> "Specimen":
        """A copy in which channel ``target`` is made by the same filters as channel ``source``."""
        return self._moved({target: source}, consumers=False)

    def without_filters(self, channels: NDArray[np.int64]) -> "Specimen":
        """A copy in which the filters, biases and BatchNorm parameters of some channels are all zero.

        So are their running means, as a BatchNorm would have found: one without parameters would shift them otherwise.
        """
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        for axis in self.graph.axes:
            averaged = axis.tensor.rpartition(".")[2] == "running_mean"
            if not axis.consumes and (averaged or axis.tensor in self.graph.parameters):
                positions = torch.from_numpy(np.flatnonzero(np.isin(axis.owner, channels)))
                state[axis.tensor].index_fill_(axis.dim, positions, 0)
        return self.changed(state)

    def _moved(self, sources: Mapping[int, int], *, consumers: bool) -> "Specimen":
        """A copy in which the positions of each channel hold those of its source."""
        state = dict(self.model.state_dict())
        for axis in self.graph.axes:
            if consumers or not axis.consumes:
                state[axis.tensor] = state[axis.tensor].index_select(axis.dim, _origins(axis, sources))
        return self.changed(state)


def _origins(axis: Axis, sources: Mapping[int, int]) -> Tensor:
    """For each position of an axis the one whose content it gets."""
    origin = np.arange(len(axis.owner))
    for channel, source in sources.items():
        origin[axis.owner == channel] = np.flatnonzero(axis.owner == source)
    return torch.from_numpy(origin)


def specimen(name: str, model: nn.Module, shape: tuple[int, ...], *, seed: int = 0) -> Specimen:
    """A specimen of a network, with seeded parameters, BatchNorm statistics and data.

    Args:
        name: what reports call it.
        model: the network; it is changed.
        shape: of one example.
        seed: of everything random.
    """
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.3, generator=generator)
            module.running_mean.normal_(0, 0.2, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
        elif isinstance(weight := getattr(module, "weight", None), nn.Parameter):
            fan_in = weight[0].numel()
            weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
                bias.data.uniform_(0.1, 0.5, generator=generator)  # few channels are dead on the data
    inputs = torch.randn(EXAMPLES, *shape, generator=generator, dtype=torch.float64)
    targets = torch.arange(EXAMPLES) % CLASSES
    return Specimen(name, model, ChannelGraph.build(model, inputs[:2]), inputs, targets)


@cache
def specimens() -> tuple[Specimen, ...]:
    """The built-in ones: plain, residual and depthwise images, a signal without BatchNorm."""
    return tuple(_built_in())


def _built_in() -> Iterator[Specimen]:
    yield specimen("plain", _plain(), (2, 6, 6))
    yield specimen("residual", _Residual(), (2, 5, 5), seed=1)
    yield specimen("depthwise", _depthwise(), (3, 5, 5), seed=2)
    yield specimen("signal", _signal(), (2, 16), seed=3)


def single_producer(graph: ChannelGraph) -> ChannelGroup | None:
    """The first group whose channels a single layer makes; None if there is none."""
    return next((group for group in graph.groups if len(group.producers) == 1), None)


def _plain() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            first=nn.Conv2d(2, 7, 3, padding=1, bias=False), norm1=nn.BatchNorm2d(7), relu1=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            second=nn.Conv2d(7, 6, 3, padding=1), norm2=nn.BatchNorm2d(6), relu2=nn.ReLU(),
            flatten=nn.Flatten(), head=nn.Linear(6 * 9, CLASSES),
        )
    )  # fmt: skip


class _Residual(nn.Module):
    """Stem and a block whose sum couples two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.first, self.norm1 = nn.Conv2d(6, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7)
        self.second, self.norm2 = nn.Conv2d(7, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 2, H, W) to (n, classes)."""
        x = self.norm(self.stem(x)).relu()
        branch = self.norm2(self.second(self.norm1(self.first(x)).relu()))
        outputs: Tensor = self.head((x + branch).relu().mean((2, 3)))
        return outputs


def _depthwise() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            expand=nn.Conv2d(3, 6, 1, bias=False), norm1=nn.BatchNorm2d(6), relu1=nn.ReLU(),
            depthwise=nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), norm2=nn.BatchNorm2d(6), relu2=nn.ReLU(),
            project=nn.Conv2d(6, 8, 1, bias=False), norm3=nn.BatchNorm2d(8), relu3=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(2), flatten=nn.Flatten(), head=nn.Linear(32, CLASSES),
        )
    )  # fmt: skip


def _signal() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv1d(2, 6, 5, padding=2), relu1=nn.ReLU(), pool=nn.AdaptiveAvgPool1d(4), flatten=nn.Flatten(),
            hidden=nn.Linear(24, 8), relu2=nn.ReLU(), head=nn.Linear(8, CLASSES),
        )
    )  # fmt: skip
