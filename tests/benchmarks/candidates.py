"""What a candidate costs: building the pruned network, and judging it, on one thread.

Ours runs in a worker of the search, as in a run. What others would write runs in a process of its own, so that
neither the worker's settings nor its memory help them or stand in their way.
"""

import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blend.budget import CostModel, keep_mask
from blend.compensation.consumer_inputs import Grade
from blend.compensation.correction import gathered
from blend.evaluation import Judge, Settings
from blend.pruning import PrunedNetwork
from blend.task import Split, accuracy
from blend.tasks.networks import build_network
from criteria import ChannelGraph
from criteria.graph import Keep
from search.executor import Failure, LocalExecutor
from tests.benchmarks.peers import judged_by_loop, passes, pruned_copy
from tests.benchmarks.timing import Row

NETWORKS = ("resnet20", "resnet56", "vgg16_bn", "mobilenetv2")
HELDOUT, RECALIBRATION, ROUNDS = 500, 256, 3
# ours, theirs, how the row begins, and whether the ratio says how many times faster we are, or how many times longer
COMPARISONS = (
    ("build", "build by torch-pruning", "build a candidate", "deepcopy + prune with torch-pruning", True),
    ("fp32", "loop", "judge in fp32", "the loop a user of torch-pruning writes", True),
    ("fp32", "tuned loop", "judge in fp32", "that loop, channels last and batches of 50", True),
    ("fp32", "bare", "judge in fp32", "a bare forward pass of the folded network", False),
    ("bf16", "loop", "judge in bf16", "the loop a user of torch-pruning writes", True),
    ("channel", "fp32", "judge, compensated by channel", "without compensation", False),
    ("patch", "fp32", "judge, compensated by patch", "without compensation", False),
)


def rows() -> list[Row]:
    """For each network, in turn: our ways of judging a candidate, and the ways that others have."""
    os.environ["OMP_NUM_THREADS"] = "1"  # the others' process inherits it
    with LocalExecutor(1) as ours, ProcessPoolExecutor(1, get_context("spawn")) as others:
        return [row for name in NETWORKS for row in _network_rows(name, ours, others)]


def _network_rows(name: str, ours: LocalExecutor, others: ProcessPoolExecutor) -> Iterator[Row]:
    def seconds(side: str) -> float:
        if side in OTHERS:
            return others.submit(_seconds, (name, side)).result()
        [(_, outcome)] = ours.run(_seconds, [(name, side)])
        if isinstance(outcome, Failure):
            raise RuntimeError(outcome.reason)
        return outcome

    rounds = [{side: seconds(side) for side in SIDES} for _ in range(ROUNDS)]
    for mine, theirs, what, against, faster in COMPARISONS:
        pairs = [(r[mine], r[theirs]) for r in rounds]
        ratio = statistics.median(b / a if faster else a / b for a, b in pairs)
        mean = (statistics.median(side) for side in zip(*pairs, strict=True))
        yield Row(f"{name}: {what}, {'times faster' if faster else 'times as long'}", *mean, ratio, "s", against)


def _seconds(question: tuple[str, str]) -> float:
    name, side = question
    candidate = _candidate(name)
    sides = candidate.ours() if side not in OTHERS else candidate.others()
    if question not in _WARM:
        sides[side]()
        _WARM.add(question)
    start = time.perf_counter()
    sides[side]()
    return time.perf_counter() - start


OTHERS = ("build by torch-pruning", "loop", "tuned loop")
SIDES = ("build", "fp32", "bf16", "channel", "patch", "bare", *OTHERS)
_WARM: set[tuple[str, str]] = set()


class _Candidate:
    """A network with random weights, a random mask that halves its MACs, and random images."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.model = build_network(name, in_channels=3, classes=10).eval()
        self.example = torch.randn(2, 3, 32, 32)
        self.graph = ChannelGraph.build(self.model, self.example)
        rng = np.random.default_rng(0)
        scores = {group.name: rng.random(group.size) for group in self.graph.groups}
        self.keep: Keep = keep_mask(self.graph, scores, 0.5, CostModel(self.graph))
        self.images = torch.randn(HELDOUT + RECALIBRATION, 3, 32, 32)
        self.targets = torch.randint(0, 10, (HELDOUT,))
        self._sides: dict[str, Callable[[], object]] = {}

    def ours(self) -> dict[str, Callable[[], object]]:
        """A worker's ways, and the bare forward pass of what it has built."""
        if not self._sides:
            images = self.images.contiguous(memory_format=torch.channels_last)
            heldout = Split(images[:HELDOUT], self.targets, "held-out")
            fp32, bf16 = (self._judge(images[HELDOUT:], precision) for precision in (None, torch.bfloat16))
            channel, patch = (self._judge(images[HELDOUT:], None, grade) for grade in ("channel", "patch"))
            fp32.network.prune(self.keep)
            folded = copy.deepcopy(fp32.network.network.shell)
            network = PrunedNetwork(self.model, self.graph)
            self._sides = {
                "build": lambda: network.prune(self.keep),
                "fp32": lambda: fp32.judge(self.keep, heldout),
                "bf16": lambda: bf16.judge(self.keep, heldout),
                "channel": lambda: channel.judge(self.keep, heldout),
                "patch": lambda: patch.judge(self.keep, heldout),
                "bare": lambda: passes(folded, images.split(64)),
            }
        return self._sides

    def _judge(self, images: Tensor, precision: torch.dtype | None, grade: Grade = "none") -> Judge:
        settings = Settings(recalibration_images=RECALIBRATION, precision=precision)
        known, _ = gathered(self.model, self.graph, images, grade, RECALIBRATION, 64)
        return Judge(self.model, self.graph, F.cross_entropy, accuracy, images, settings, known)

    def others(self) -> dict[str, Callable[[], object]]:
        """What is written around torch-pruning."""
        return {
            "build by torch-pruning": self._pruned_copy,
            "loop": lambda: self._loop(250, torch.contiguous_format),
            "tuned loop": lambda: self._loop(50, torch.channels_last),
        }

    def _pruned_copy(self) -> nn.Module:
        return pruned_copy(self.model, self.graph, self.keep, self.example)

    def _loop(self, batch_size: int, memory_format: torch.memory_format) -> float:
        heldout = (self.images[:HELDOUT], self.targets)
        return judged_by_loop(self._pruned_copy(), self.images[HELDOUT:], heldout, batch_size, memory_format)


@cache
def _candidate(name: str) -> _Candidate:
    return _Candidate(name)
