"""A task: a trained network with the data, the loss and the metric to prune it by; how it is found and checked.

Tasks come from three places: the built-in names, ``package.module:function`` and ``path/to/file.py:function``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blend.config import task_title
from blend.errors import InputError, described, nearest
from blend.progress import say
from blend.tasks.loading import call, find_function
from blend.tasks.splits import Data, Split, check_disjoint, materialise
from criteria.evaluating import evaluating
from criteria.losses import LABEL_FREE

__all__ = [
    "BUILTIN_TASKS",
    "FineTuning",
    "Split",
    "Splits",
    "Task",
    "accuracy",
    "check_task",
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

_BATCH = 64


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
    if type(task.model).__name__ == "OptimizedModule":
        say("note: the network runs as it was before torch.compile, which would compile every candidate anew")
        task.model = task.model.get_submodule("_orig_mod")
    for here in ("model", "example_input"):  # work on another device is on copies
        if isinstance(found := getattr(task, here), (nn.Module, Tensor)):
            setattr(task, here, found.to("cpu"))
    return task


def check_task(task: Task, calibration_loss: str = "task") -> Splits:
    """Refuse a task that a search could not use, before hours are spent on it, and bring its data into memory.

    The network's mode is restored, and no gradients are left behind.

    Args:
        task: what a user brought.
        calibration_loss: ``task``, or a loss that needs no labels (`criteria.losses.LABEL_FREE`): those of the
            calibration split are not read then.

    Raises:
        InputError: saying what is wrong with the network, the data, the loss or the metric.
    """
    _check_weights(task.model)
    splits = Splits(
        materialise(task.calibration, "calibration", labelled=calibration_loss == "task"),
        materialise(task.heldout, "held-out"),
        materialise(task.test, "test"),
    )
    for a, b in combinations(splits, 2):
        check_disjoint(a, b)
    if not isinstance(task.example_input, Tensor) or task.example_input.ndim == 0 or len(task.example_input) == 0:
        raise InputError(f"example_input must be a batch of at least one input, got {_summary(task.example_input)}")
    with evaluating(task.model), torch.no_grad():
        _outputs(task, task.example_input, "example_input")
        for split in (splits.heldout, splits.calibration, splits.test):
            if split.labelled:
                _check_judgement(task, split)
            else:
                _check_label_free(task, split, calibration_loss)
    return splits


def first_judgement(task: Task, split: Split) -> dict[str, float]:
    """What a loss and a metric say of the network on the first batch of a split: changed, they say something else."""
    with evaluating(task.model), torch.no_grad():
        _, _, targets, outputs = _first_outputs(task, split)
        loss, metric = task.loss(outputs, targets), task.metric(outputs, targets)
    return {"loss": float(loss), "metric": float(metric.double().mean())}


def _check_weights(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if scripted := [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]:
        where = f" in '{scripted[0]}'" if scripted[0] else ""
        what = type(model.get_submodule(scripted[0])).__name__
        raise InputError(f"model must be as it was before torch.jit, got {what}{where}")
    dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters()})
    if len(dtypes) > 1:
        raise InputError(f"the parameters of the model must have one dtype, got {' and '.join(dtypes)}")
    for name, weight in model.state_dict().items():
        if not isinstance(weight, Tensor):
            raise InputError(f"the state of the model must be tensors, got {type(weight).__name__} as {name}")
        if not weight.isfinite().all():
            raise InputError(f"the weights of the model must be finite, got NaN or infinity in {name}")
        if weight.is_inference():
            raise InputError(f"the weights of the model must not be made in torch.inference_mode(), got such as {name}")


def _check_judgement(task: Task, split: Split) -> None:
    """Run the first batch of a split through network, loss and metric."""
    where, inputs, targets, outputs = _first_outputs(task, split)
    loss = _attempt("loss", where, task.loss, outputs, targets)
    if not isinstance(loss, Tensor) or loss.ndim:
        raise InputError(f"loss must return a scalar tensor, the mean over the batch, got {_summary(loss)} on {where}")
    if not loss.isfinite().all():
        raise InputError(f"loss returned {loss.item()} on {where}; it must be finite on the unpruned network")
    scores = _attempt("metric", where, task.metric, outputs, targets)
    if not isinstance(scores, Tensor) or scores.shape != (len(inputs),):
        raise InputError(
            f"metric must return one score per example, shape ({len(inputs)},), got {_summary(scores)} on {where}"
        )
    if not scores.isfinite().all():
        raise InputError(f"metric must return finite scores, got NaN or infinity on {where}")


def _check_label_free(task: Task, split: Split, name: str) -> None:
    """Run the first batch of a split through the network and a loss that needs no labels."""
    where, _, _, outputs = _first_outputs(task, split)
    loss = _attempt(f"calibration loss '{name}'", where, LABEL_FREE[name], outputs, outputs)
    if not loss.isfinite().all():
        raise InputError(f"calibration loss '{name}' is {loss.item()} on {where}; it must be finite")


def _first_outputs(task: Task, split: Split) -> tuple[str, Tensor, Tensor, Tensor]:
    """What messages call the first batch of a split, its inputs and targets, and what the network makes of it."""
    where = f"the first {split.name} batch"
    inputs, targets = next(split.batches(_BATCH))
    outputs = _outputs(task, inputs, where)
    if not isinstance(outputs, Tensor):
        raise InputError(f"the model must return one tensor, got {type(outputs).__name__} on {where}")
    return where, inputs, targets, outputs


def _outputs(task: Task, inputs: Tensor, where: str) -> Any:
    """What the network makes of inputs, which every candidate reads, and which must stay as they are."""
    given = _Copy(inputs)
    outputs = _attempt("the model", where, task.model, given.tensor)
    if given.is_changed() or (inputs.ndim == 4 and _changes_channels_last(task.model, inputs[:2])):
        raise InputError(
            f"the model must not write to its input, and does on {where}: x = x - 0.5 leaves it as it was, "
            f"x -= 0.5 and x.sub_(0.5) do not"
        )
    return outputs


def _changes_channels_last(model: nn.Module, images: Tensor) -> bool:
    """Whether it writes to images in the layout that candidates read: there, ``x.to(memory_format=...)`` is x."""
    given = _Copy(images, torch.channels_last)
    try:
        model(given.tensor)
    except Exception:  # noqa: BLE001 - one that does not stand the layout is never given it
        return False
    return given.is_changed()


class _Copy:
    """Inputs that a network may be tried on, and whether it has written to them."""

    def __init__(self, inputs: Tensor, layout: torch.memory_format = torch.preserve_format) -> None:
        self.tensor = inputs.clone(memory_format=layout)
        self._version = self._counted()
        self._inputs = inputs

    def is_changed(self) -> bool:
        """Whether they are not what they were, or would not be if they had been others."""
        if self._counted() != self._version:
            return True
        return not torch.equal(self.tensor.nan_to_num(), self._inputs.nan_to_num())  # as through x.data

    def _counted(self) -> int:
        return 0 if self.tensor.is_inference() else self.tensor._version


def _attempt(what: str, where: str, function: Callable[..., Any], *arguments: Tensor) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        shapes = " and ".join(str(tuple(argument.shape)) for argument in arguments)
        raise InputError(f"{what} failed on {where}, shape {shapes}: {described(error)}") from error


def _summary(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
