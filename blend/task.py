"""A task: a trained network with the data, the loss and the metric to prune it by; how it is found.

Tasks come from three places: the built-in names, ``package.module:function`` and ``path/to/file.py:function``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from blend.config import task_title
from blend.errors import InputError, nearest
from blend.progress import say
from blend.tasks.loading import call, find_function
from blend.tasks.splits import Data, Split, materialise

__all__ = [
    "BUILTIN_TASKS",
    "FineTuning",
    "Split",
    "Splits",
    "Task",
    "accuracy",
    "load_task",
    "materialise",
    "task_function",
]

BUILTIN_TASKS: Mapping[str, str] = MappingProxyType(
    {
        "digits": "blend.tasks.digits:digits",
        "textures": "blend.tasks.textures:textures",
        "cifar10": "blend.tasks.cifar:cifar10",
        "cifar100": "blend.tasks.cifar:cifar100",
        "images": "blend.tasks.images:images",
    }
)
"""The built-in tasks and the functions they stand for, imported when asked for."""

Judgement: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the highest output is the target, else 0.

    Args:
        outputs: (n, classes).
        targets: (n,) class indices.

    Returns:
        Scores of shape (n,).
    """
    return (outputs.argmax(1) == targets).float()


@dataclass(frozen=True)
class FineTuning:
    """How a pruned network may be trained further.

    Attributes:
        train: the data, in any form that a split may have; what is not in memory is not brought there. They must have
            nothing in common with the held-out and the test split; that calibration data are among them is usual.
        epochs: passes over them.
        learning_rate: of SGD.
        batch_size: examples a step.
        momentum: of SGD.
        weight_decay: L2 penalty.
    """

    train: Data
    epochs: int = 3
    learning_rate: float = 0.01
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4


@dataclass
class Task:
    """A trained network, three disjoint splits, and what to judge it by.

    Attributes:
        model: the trained network.
        example_input: a batch of at least one input, for tracing.
        calibration: data for statistics and recalibration; inputs alone will do where the calibration loss needs no
            labels.
        heldout: data for the fitness.
        test: data for the report, never searched on.
        loss: outputs (n, ...) and targets (n, ...) to a scalar, the mean over the batch.
        metric: outputs and targets to scores of shape (n,); higher is better.
        name: what reports call it.
        ignore: patterns (as in a shell) of the names of layers never to be pruned.
        finetune: how to train a pruned network further.
        heldout_draws: how often all of the held-out examples are there, one copy behind the other, such as with other
            noise; intervals count each of them once.
    """

    model: nn.Module
    example_input: Tensor
    calibration: Data
    heldout: Data
    test: Data
    loss: Judgement = F.cross_entropy
    metric: Judgement = accuracy
    name: str = ""
    ignore: Sequence[str] = ()
    finetune: FineTuning | None = None
    heldout_draws: int = 1


class Splits(NamedTuple):
    """The three splits of a task in memory."""

    calibration: Split
    heldout: Split
    test: Split


def task_function(spec: str) -> Callable[..., Any]:
    """Import the function a task's name stands for, without calling it.

    A process that is to unpickle a task's network needs only this.

    Args:
        spec: a key of ``BUILTIN_TASKS``, ``package.module:function`` or ``path/to/file.py:function``.

    Raises:
        InputError: there is no such task, or it cannot be imported.
    """
    if ":" not in spec:
        if spec.endswith(".py"):
            raise InputError(f"task {spec!r} must name a function of the file: {spec}:FUNCTION")
        if spec not in BUILTIN_TASKS:
            raise InputError(
                f"task must be one of {', '.join(BUILTIN_TASKS)}, package.module:function or "
                f"path/to/file.py:function, got {spec!r}{nearest(spec, BUILTIN_TASKS)}"
            )
    return find_function(BUILTIN_TASKS.get(spec, spec))


def load_task(spec: str, options: Mapping[str, str] = MappingProxyType({}), seed: int = 0) -> Task:
    """Find a task's function and call it.

    Args:
        spec: as for :func:`task_function`.
        options: keyword arguments of the function as text, converted by its parameters' annotations or defaults.
        seed: passed on where the function has a parameter ``seed`` that is not among the options.

    Raises:
        InputError: the task or an option is not known, a value cannot be converted, or the function failed.
    """
    task = call(task_function(spec), spec, options, seed)
    if not isinstance(task, Task):
        raise InputError(f"task {spec} must return a blend.task.Task, got {type(task).__name__}")
    task.name = task.name or task_title(spec)
    task.model = _unwrapped(task.model)
    for here in ("model", "example_input"):  # work on another device is on copies
        if isinstance(found := getattr(task, here), (nn.Module, Tensor)):
            setattr(task, here, found.to("cpu"))
    return task


def _unwrapped(model: Any) -> Any:
    """The network itself, without what would run it in another way; says so."""
    compiled = "note: the network runs as it was before torch.compile, which would compile every candidate anew"
    if type(model).__name__ == "OptimizedModule":
        say(compiled)
        return _unwrapped(model.get_submodule("_orig_mod"))
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        say(f"note: the network runs as it was before {type(model).__name__}; its layers have names without 'module.'")
        return _unwrapped(model.module)
    if isinstance(model, nn.Module):
        in_place = [module for module in model.modules() if module._compiled_call_impl is not None]
        for module in in_place:
            module._compiled_call_impl = None
        if in_place:
            say(compiled)
    return model
