"""Judging pruned networks, one after the other: fitness, loss, metric and cost of a keep mask."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from blend.budget import CostModel
from blend.compensation.consumer_inputs import Reading
from blend.compensation.correction import Compensation, absorbed_means
from blend.config import SearchConfig
from blend.defaults import CPU
from blend.device import own_device, placed
from blend.evaluation.racing import CHUNK, LOOK, estimate, is_hopeless, weighted_mean
from blend.pruning import reproducibly
from blend.pruning.chain import portions
from blend.pruning.inference import InferenceNetwork
from blend.pruning.prefixes import PrefixCache
from blend.pruning.slicing import FORWARD_ERRORS
from blend.task import Split
from criteria.errors import raise_if_out_of_memory
from criteria.graph import ChannelGraph, Keep

T = TypeVar("T")
Loss = Callable[[Tensor, Tensor], Tensor]

_HALF = b"\x01"
EXAMPLES = 32
"""Calibration inputs on which it is tried whether a network can be folded."""
JOINED = 4
"""Batches that go through the network as one, if their maps are not too large."""
MAX_JOINED_BYTES = 2**28
"""What a layer's outputs may take for batches that are joined."""


@dataclass(frozen=True)
class Settings:
    """How candidates are judged.

    Attributes:
        cost: What the reduction counts: ``macs`` or ``params``.
        fitness: ``loss`` (minus the held-out loss) or ``metric``.
        recalibration_images: Calibration images that BatchNorm statistics are re-estimated on; 0 for none.
        batch_size: Images per forward pass; up to four times as many where their maps are small.
        precision: What layers compute in; None for the network's own.
        device: What networks run on, as torch calls it.
        cache_memory: Bytes that a process may keep of what the first layers of candidates have made.
    """

    cost: str = "macs"
    fitness: str = "loss"
    recalibration_images: int = 256
    batch_size: int = 64
    precision: torch.dtype | None = None
    device: str = CPU
    cache_memory: int = 0

    @classmethod
    def of(cls, config: SearchConfig, cache_memory: int = 0) -> Settings:
        """What a search's configuration says of it, in the network's own precision."""
        return cls(
            config.cost, config.fitness, config.recalibration_images, config.batch_size, device=config.device,
            cache_memory=cache_memory,
        )  # fmt: skip


def pack(keep: Keep, *, half: bool = False) -> bytes:
    """A candidate's phenotype: its keep mask, eight channels a byte, and a mark if it is judged in half precision."""
    return np.packbits(keep).tobytes() + (_HALF if half else b"")


def in_full_precision(phenotype: bytes, channels: int) -> bytes:
    """The same candidate, judged in the network's own precision."""
    return phenotype[: math.ceil(channels / 8)]


def unpack(phenotype: bytes, channels: int) -> Keep:
    """The keep mask of a phenotype."""
    return np.unpackbits(np.frombuffer(phenotype, dtype=np.uint8), count=channels).astype(bool)


class Judge:
    """Prunes, recalibrates and measures candidates, one after the other, on one core or one accelerator.

    Losses and metrics are computed on the CPU.

    Args:
        model: The unpruned network.
        graph: Its channel graph.
        loss: The task's loss, a mean over the batch.
        metric: The task's metric, one value per example.
        calibration: Inputs for recalibration.
        settings: How candidates are judged.
        known: The inputs of consumers, with statistics: these are corrected before recalibration, in every candidate.
        cache: Keeps what the first layers of candidates have made; of each split's name there must be one split then.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, loss: Loss, metric: Loss, calibration: Tensor, settings: Settings,
        known: Sequence[Reading] = (), cache: PrefixCache | None = None,
    ) -> None:  # fmt: skip
        self.device = own_device(settings.device)
        with reproducibly():
            example = calibration[:EXAMPLES].to(self.device)
            network, self.layout = _in_fast_layout(placed(model, self.device), example)
            example = example.to(memory_format=self.layout)
            self.network = InferenceNetwork(network, graph, example, settings.precision, cache=cache)
        absorbed = absorbed_means(graph) if settings.recalibration_images else frozenset()
        self.compensation = Compensation(model, known, absorbed)
        self.settings = settings
        self.graph = graph
        self.loss = loss
        self.metric = metric
        images = self._ready(calibration[: settings.recalibration_images])
        # By a rule, and not by what takes less time: what is computed at once may change the last bits.
        fit = MAX_JOINED_BYTES / (self.network.bytes_per_image * settings.batch_size or math.inf)
        self.joined = min(JOINED, max(1, int(fit)))
        self.recalibration = portions(images, settings.batch_size * self.joined)
        self.cost = CostModel(graph, settings.cost)

    def judge(self, keep: Keep, split: Split, rival: Sequence[float] = ()) -> dict[str, Any]:
        """Fitness, loss, metric and cost of one candidate on a split.

        Args:
            keep: The channels that stay.
            split: Held-out data during a search.
            rival: ``chunks`` of another candidate's answer on the same split. Judging ends as soon as it is clear that
                this one falls short of it.

        Returns:
            ``fitness``, ``loss``, ``metric``, ``cost`` and ``reduction``, plain numbers; ``chunks``, the fitness on
            each chunk of the split. Where judging ended early, the first three are estimated from the examples seen
            (the fitness, from the difference to the rival: it is below the rival's), and ``share`` says how many these
            were.
        """
        loss, values, chunks = self._measure(keep, split, rival, fuse=not keep.all())
        metric = float(values.mean())
        cost = self.cost(keep)
        answer = {
            "fitness": 0.0 - loss if self.settings.fitness == "loss" else metric,
            "loss": loss,
            "metric": metric,
            "cost": cost,
            "reduction": 1.0 - cost / self.cost.full,
            "chunks": chunks,
        }
        if len(values) < len(split):
            answer["fitness"] = estimate(chunks, rival, self._sizes(split))
            answer["share"] = len(values) / len(split)
        return answer

    def measure(self, keep: Keep, split: Split) -> tuple[float, NDArray[np.float64]]:
        """Mean loss and the metric's value of every example, after recalibration.

        A mask that keeps everything stands for the unpruned network, which is measured as it is. Convolutions are not
        fused, so that what is not a number shows.
        """
        loss, values, _ = self._measure(keep, split, fuse=False)
        return loss, values

    def _measure(
        self, keep: Keep, split: Split, rival: Sequence[float] = (), *, fuse: bool
    ) -> tuple[float, NDArray[np.float64], list[float]]:
        """Mean loss, the metric of every example, and the fitness of each chunk, as far as judging goes."""
        losses: list[float] = []
        values: list[NDArray[np.float64]] = []
        sizes = self._sizes(split)
        with reproducibly(), torch.no_grad():
            corrected = self.compensation(keep).tensors
            images = () if keep.all() else self.recalibration
            network = self.network.prune(keep, images, corrected, fuse=fuse)
            looked = seen = 0
            for outputs, targets in self._outputs(network, split, racing=bool(rival)):
                for part, truth in zip(torch.split(outputs, CHUNK), torch.split(targets, CHUNK), strict=True):
                    losses.append(float(self.loss(part, truth)))
                    values.append(self.metric(part, truth).double().numpy())
                by_loss = self.settings.fitness == "loss"
                chunks = [0.0 - x for x in losses] if by_loss else [float(v.mean()) for v in values]
                seen += len(targets)
                if rival and seen - looked >= LOOK:
                    looked = seen
                    if is_hopeless(chunks, rival, sizes):
                        break
        return weighted_mean(losses, sizes[: len(losses)]), np.concatenate(values), chunks

    def _outputs(self, network: nn.Module, split: Split, *, racing: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Outputs and targets, batch by batch, on the CPU."""
        size, launched = self.settings.batch_size, self._launched(network, split, racing=racing)
        for outputs, some in launched if self.device.type == CPU else one_behind(launched):
            outputs = outputs.cpu().contiguous()  # a loss may take them apart by view
            outputs = outputs.float() if outputs.dtype is self.settings.precision else outputs
            yield from zip(torch.split(outputs, size), torch.split(split.targets[some], size), strict=True)

    def _launched(self, network: nn.Module, split: Split, *, racing: bool) -> Iterator[tuple[Tensor, slice]]:
        """Outputs where they were made, and of what. When racing, few are joined at first: there may be no need of all.

        An accelerator may still be at work on them.
        """
        size, done = self.settings.batch_size, 0
        while done < len(split):
            count = min(self.joined, max(2, done // size // 2)) if racing else self.joined
            some = slice(done, done + count * size)
            yield network(self._ready(split.inputs[some]), (split.name, done, count)), some
            done = some.stop

    def _sizes(self, split: Split) -> list[int]:
        """Examples in each chunk of a split: batches are cut into chunks."""
        size = self.settings.batch_size
        batches = (min(size, len(split) - start) for start in range(0, len(split), size))
        return [min(CHUNK, batch - start) for batch in batches for start in range(0, batch, CHUNK)]

    def _ready(self, inputs: Tensor) -> Tensor:
        """Inputs as the network takes them: device, layout, precision; whole numbers (tokens) stay as they are."""
        precision = self.settings.precision if inputs.is_floating_point() else None
        dtype = inputs.dtype if precision is None else precision
        return inputs.to(self.device, dtype, memory_format=self.layout)


def one_behind(launched: Iterator[T]) -> Iterator[T]:
    """The same, each when the next one has been launched: an accelerator goes on while the CPU looks at its outputs."""
    waiting: list[T] = []
    for latest in launched:
        yield from waiting
        waiting = [latest]
    yield from waiting


def _in_fast_layout(model: nn.Module, example: Tensor) -> tuple[nn.Module, torch.memory_format]:
    """The network, and how it wants its inputs: channels last where it takes images and its forward stands that.

    One that flattens maps by ``view`` does not.
    """
    if example.ndim != 4:
        return model, torch.preserve_format
    copied = copy.deepcopy(model).eval()  # it would change the caller's
    copied = copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with torch.no_grad():
            copied(example.to(memory_format=torch.channels_last))
    except FORWARD_ERRORS as error:
        raise_if_out_of_memory(error)
        return model, torch.contiguous_format
    return copied, torch.channels_last
