"""What workers find the network and the data through, and what they run."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from blend.compensation.consumer_inputs import Reading, rejoined, statistics_only
from blend.device import kept_on
from blend.errors import InputError, described
from blend.evaluation.judge import EXAMPLES, Judge, Settings, unpack
from blend.pruning.prefixes import PrefixCache
from blend.task import Split, Splits, Task, task_function
from criteria.evaluating import evaluating
from criteria.graph import ChannelGraph
from search.cargo import HELD
from search.errors import UnfitWorker

T = TypeVar("T")

FEW = 16
"""Held-out examples by which a worker knows that it judges as the search does."""
SAME = 1e-3
"""Relative difference of a loss or metric up to which another kind of processor may be the reason."""
SAME_IN_HALF = 0.05
"""The same of a network in half precision."""
_BFLOAT16 = np.dtype([("bfloat16", np.int16)])  # numpy has none


@dataclass(frozen=True)
class Workspace:
    """The scratch folder through which workers get the network and the data: each loads it once, memory-mapped.

    It is written anew by the process that drives the run each time a search starts or is resumed, is read by this
    run's workers only, and is gone when the run ends; nothing else ever loads it.

    Attributes:
        folder: Where it is.
        task: The task's name; its module is imported before the network is unpickled.
        token: Tells this writing from earlier ones, so that a living worker does not use an old network.
    """

    folder: str
    task: str
    token: str

    def write(
        self, task: Task, graph: ChannelGraph, splits: Splits, settings: Settings, known: Sequence[Reading] = ()
    ) -> None:
        """Puts down everything that :meth:`judge` needs."""
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        calibration = splits.calibration.inputs[: max(settings.recalibration_images, EXAMPLES)]
        # Judging may end early, so that what comes first must be as good as drawn at random.
        mixed = torch.randperm(len(splits.heldout), generator=torch.Generator().manual_seed(0))
        for name, tensor in {
            "calibration": calibration,
            "heldout-inputs": splits.heldout.inputs[mixed],
            "heldout-targets": splits.heldout.targets[mixed],
            "test-inputs": splits.test.inputs,
            "test-targets": splits.test.targets,
        }.items():
            np.save(folder / f"{name}.npy", _stored(tensor, images=_is_of_images(name, tensor)))
        bare = []
        for number, (reading, moments) in enumerate(statistics_only(known)):
            np.save(folder / f"moments-{number}.npy", moments)
            bare.append(reading)
        with (folder / "judge.pickle").open("wb") as file:
            some = (tensor[mixed[:FEW]] for tensor in (splits.heldout.inputs, splits.heldout.targets))
            said = _verdict(task.model, task.loss, task.metric, *some)
            _dump(file, task, graph, settings, bare, said)

    def judge(self, *, half: bool = False) -> Judge:
        """This process' judge, for candidates in half precision if asked for; loaded at the first call.

        Raises:
            UnfitWorker: It cannot be loaded, or loss and metric say otherwise than where the workspace was written.
        """
        with _loading():
            return _kept(self, ("judge", half), lambda: _loaded_judge(self, half))

    def split(self, name: str, device: torch.device) -> Split:
        """A split (``heldout`` or ``test``), memory-mapped, its inputs on an accelerator if they have room there.

        Raises:
            UnfitWorker: It cannot be loaded.
        """
        with _loading():
            return _kept(self, (name, device), lambda: _loaded_split(self, name, device))


@dataclass(frozen=True)
class HeldoutEvaluation:
    """What workers run during a search: a phenotype in, a small dictionary out.

    Attributes:
        workspace: Where the network and the data are.
        half: Whether layers compute in half precision.
        rival: ``chunks`` of the answer to fall short of which is to be of no interest; nothing, to judge to the end.
    """

    workspace: Workspace
    half: bool = False
    rival: tuple[float, ...] = ()

    def __call__(self, phenotype: bytes) -> dict[str, Any]:
        """Judges one candidate on held-out data."""
        judge = self.workspace.judge(half=self.half)
        keep, heldout = unpack(phenotype, len(judge.graph)), self.workspace.split("heldout", judge.device)
        return judge.judge(keep, heldout, self.rival)


@dataclass(frozen=True)
class TestEvaluation:
    """What workers run once, after the search: the metric of every test example."""

    __test__ = False  # the name is the field's word, not a test case

    workspace: Workspace

    def __call__(self, phenotype: bytes) -> NDArray[np.float64]:
        """The metric's value for each test example, shape (examples,)."""
        judge = self.workspace.judge()
        return judge.measure(unpack(phenotype, len(judge.graph)), self.workspace.split("test", judge.device))[1]


def check_portable(task: Task, _: Splits) -> None:
    """Refuses a task whose network, loss or metric workers could not load, before there is work to be lost.

    Raises:
        InputError: Saying why.
    """
    with Path(os.devnull).open("wb") as nowhere:
        _dump(nowhere, task)


def _dump(file: BinaryIO, task: Task, *more: Any) -> None:
    try:
        cloudpickle.dump((_plain(task.model), task.loss, task.metric, *more), file)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        rule = "the network, the loss and the metric must be such as can be pickled, for workers to load them"
        raise InputError(f"{rule}, got {described(error)}") from error


@contextmanager
def _loading() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, InputError) else described(error)
        raise UnfitWorker(f"network and data cannot be loaded: {reason}") from error


def _verdict(model: nn.Module, loss: Any, metric: Any, inputs: Tensor, targets: Tensor) -> tuple[float, list[float]]:
    """What loss and metric say of the network's outputs for some examples."""
    with evaluating(model), torch.no_grad():
        outputs = model(inputs)
        return float(loss(outputs, targets)), metric(outputs, targets).double().tolist()


def _check_verdict(before: tuple[float, list[float]], now: tuple[float, list[float]], same: float) -> None:
    """Refuses code that has changed since this process has imported it, or since the search has.

    Another kind of processor may be the reason that a number is a little different, or the metric of one example.
    """
    for what, one, other, different in (("loss", before[0], now[0], 0), ("metric", before[1], now[1], 1)):
        close = np.isclose(one, other, rtol=same, atol=same**2, equal_nan=True)
        if np.sum(~close) > different:
            raise InputError(
                f"the task's {what} must say what it says where the search runs, {np.mean(one):.6g} of {FEW} held-out "
                f"examples, got {np.mean(other):.6g}: its file has changed since "
                "(start the workers anew), or it depends on what the task's function sets, which workers do not call"
            )


def _plain(model: nn.Module) -> nn.Module:
    """The network; a copy with weights as they are, where they are computed from others: that cannot be pickled."""
    if not any(map(parametrize.is_parametrized, model.modules())):
        return model
    copied: nn.Module = copy.deepcopy(model).eval()
    for module in list(filter(parametrize.is_parametrized, copied.modules())):
        parametrized: Any = module
        weights = {name: getattr(module, name) for name in parametrized.parametrizations}
        del parametrized.parametrizations
        # Torch's own way of removing them would remove them from the class, which the original is of, too.
        module.__class__ = type(module).__bases__[0]
        for name, weight in weights.items():
            module.register_parameter(name, nn.Parameter(weight.detach().clone()))
    return copied


@lru_cache(maxsize=HELD)
def _memory(workspace: Workspace) -> dict[Hashable, Any]:
    """What this process has loaded of a workspace."""
    return {}


def _kept(workspace: Workspace, key: Hashable, load: Callable[[], T]) -> T:
    memory = _memory(workspace)
    if key not in memory:
        memory[key] = load()
    found: T = memory[key]
    return found


def _loaded_judge(workspace: Workspace, half: bool) -> Judge:
    task_function(workspace.task)
    with (Path(workspace.folder) / "judge.pickle").open("rb") as file:
        model, loss, metric, graph, settings, bare, said = pickle.load(file)
    some = (_loaded(workspace, f"heldout-{part}")[:FEW].contiguous() for part in ("inputs", "targets"))
    coarse = any(parameter.dtype.itemsize < 4 for parameter in model.parameters())
    _check_verdict(said, _verdict(model, loss, metric, *some), SAME_IN_HALF if coarse else SAME)
    if half:
        settings = replace(settings, precision=torch.bfloat16)
    known = rejoined((reading, _loaded(workspace, f"moments-{number}")) for number, reading in enumerate(bare))
    cache = _prefix_cache(settings.cache_memory) if settings.cache_memory else None
    return Judge(model, graph, loss, metric, _loaded(workspace, "calibration"), settings, known, cache)


@lru_cache(maxsize=1)
def _prefix_cache(limit: int) -> PrefixCache:
    """That of all judges that this process has had: of what an earlier run leaves, the rest makes room."""
    return PrefixCache(limit)


def _loaded_split(workspace: Workspace, name: str, device: torch.device) -> Split:
    return Split(kept_on(_loaded(workspace, f"{name}-inputs"), device), _loaded(workspace, f"{name}-targets"), name)


def _is_of_images(name: str, values: Tensor) -> bool:
    return values.ndim == 4 and not name.endswith("targets")


def _stored(tensor: Tensor, *, images: bool) -> NDArray[Any]:
    """Images with the channels last, which is how convolutions on a CPU read them fastest."""
    tensor = tensor.detach().cpu()
    tensor = (tensor.permute(0, 2, 3, 1) if images else tensor).contiguous()
    return tensor.view(torch.int16).numpy().view(_BFLOAT16) if tensor.dtype is torch.bfloat16 else tensor.numpy()


def _loaded(workspace: Workspace, name: str) -> Tensor:
    # Copy-on-write: all workers share the pages of the file, and torch may have its writable array.
    values = np.load(Path(workspace.folder) / f"{name}.npy", mmap_mode="c")
    is_half = values.dtype == _BFLOAT16
    tensor = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16) if is_half else torch.from_numpy(values)
    return tensor.permute(0, 3, 1, 2) if _is_of_images(name, tensor) else tensor
