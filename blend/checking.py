"""Refuses a task that a search could not use, before hours are spent on it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from blend.errors import InputError, described
from blend.task import FineTuning, Split, Splits, Task, accuracy
from blend.tasks.splits import check_disjoint, materialise
from criteria.evaluating import evaluating
from criteria.losses import LABEL_FREE

_BATCH = 64
_SINGLE = "the model must take a single input"
_FLATTEN = "x.squeeze() takes the batch of one away, too, x.flatten(1) does not"


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
    if task.finetune is not None and not isinstance(task.finetune, FineTuning):
        raise InputError(f"finetune must be a blend.FineTuning(train), got {type(task.finetune).__name__}")
    splits = Splits(
        materialise(task.calibration, "calibration", labelled=calibration_loss == "task"),
        materialise(task.heldout, "held-out"),
        materialise(task.test, "test"),
    )
    if len(splits.calibration) < 2:
        raise InputError("the calibration split must have at least 2 examples, or BatchNorm has no variance, got 1")
    for a, b in combinations(splits, 2):
        check_disjoint(a, b)
    draws = task.heldout_draws
    if not isinstance(draws, int) or draws < 1 or len(splits.heldout) % draws:
        raise InputError(f"heldout_draws must divide the {len(splits.heldout)} held-out examples, got {draws!r}")
    first, *others = splits.heldout.targets.chunk(draws)
    if not all(torch.equal(first, other) for other in others):
        raise InputError(
            f"heldout_draws must say how often all held-out examples are there, one copy of all behind the other, got "
            f"{draws} copies whose targets differ"
        )
    if not isinstance(task.example_input, Tensor) or task.example_input.ndim == 0 or len(task.example_input) == 0:
        raise InputError(f"example_input must be a batch of at least one input, got {_summary(task.example_input)}")
    with evaluating(task.model), torch.no_grad():
        _check_repeatable(*(_outputs(task, task.example_input, "example_input") for _ in range(2)))
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
        what = type(dict(model.named_modules())[scripted[0]]).__name__
        raise InputError(f"model must be as it was before torch.jit, got {what}{where}")
    try:
        with evaluating(model):
            pass
    except NotImplementedError as error:  # what torch.export has made
        raise InputError(f"the model must have an evaluation mode, got {described(error)}") from error
    dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters()})
    if len(dtypes) > 1:
        raise InputError(f"the parameters of the model must have one dtype, got {' and '.join(dtypes)}")
    for name, weight in model.state_dict().items():
        if not isinstance(weight, Tensor):
            raise InputError(f"the state of the model must be tensors, got {type(weight).__name__} as {name}")
        if is_lazy(weight):
            raise InputError(f"the weights of the model must have values, got {name}, which has not even a shape yet")
        if weight.is_quantized:
            raise InputError(f"the model must be as it was before quantisation, got quantised {name}")
        if weight.is_complex():
            raise InputError(f"the weights of the model must be real numbers, got complex {name}")
        if not weight.isfinite().all():
            raise InputError(f"the weights of the model must be finite, got NaN or infinity in {name}")
        if weight.is_inference():
            raise InputError(f"the weights of the model must not be made in torch.inference_mode(), got such as {name}")


def _check_repeatable(first: Any, again: Any) -> None:
    """Compare what the network has made of the same inputs twice."""
    both = isinstance(first, Tensor) and isinstance(again, Tensor) and first.is_floating_point()
    if both and (first.shape != again.shape or not torch.allclose(first, again, 1e-3, 1e-5, equal_nan=True)):
        raise InputError(
            f"the model must make the same of the same input each time in evaluation mode, and does not of "
            f"example_input, as where it draws at random: got {first.flatten()[0]:.6g} first, then "
            f"{again.flatten()[0]:.6g}"
        )


def _check_judgement(task: Task, split: Split) -> None:
    """Run the first batch of a split through network, loss and metric."""
    where, inputs, targets, outputs = _first_outputs(task, split)
    loss = _attempt(_title(task, "loss"), where, task.loss, outputs, targets)
    if not isinstance(loss, Tensor) or loss.ndim:
        raise InputError(f"loss must return a scalar tensor, the mean over the batch, got {_summary(loss)} on {where}")
    if not loss.isfinite().all():
        raise InputError(f"loss returned {loss.item()} on {where}; it must be finite on the unpruned network")
    twice = _attempt("loss", where, task.loss, *(torch.cat([some, some]) for some in (outputs, targets)))
    if loss != 0 and torch.isclose(twice, 2 * loss, atol=0.0):
        raise InputError(
            f"loss must be the mean over the batch, got a sum on {where}: {loss.item():.6g}, and {twice.item():.6g} of "
            f"the same examples twice"
        )
    scores = _attempt(_title(task, "metric"), where, task.metric, outputs, targets)
    if not isinstance(scores, Tensor) or scores.shape != (len(inputs),):
        raise InputError(
            f"{_title(task, 'metric')} must return one score per example, shape ({len(inputs)},), got "
            f"{_summary(scores)} on {where}"
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
    _check_single(task.model, inputs[:1], outputs)
    return where, inputs, targets, outputs


def _check_single(model: nn.Module, single: Tensor, outputs: Tensor) -> None:
    """Run the network on the first of these inputs alone: the last batch may be of one, and so is one of latency."""
    try:
        alone = model(single.clone())
    except Exception as error:
        got = f"it failed: {described(error)}"
        raise InputError(f"{_SINGLE}, shape {tuple(single.shape)}, and {got}; {_FLATTEN}") from error
    if not isinstance(alone, Tensor) or alone.ndim != outputs.ndim or len(alone) != 1:
        got = f"got {_summary(alone)} of it, and {_summary(outputs)} of the batch"
        raise InputError(f"{_SINGLE}, shape {tuple(single.shape)}; {got}; {_FLATTEN}")


def _title(task: Task, what: Literal["loss", "metric"]) -> str:
    """What messages call a loss or a metric: who has given none may not know that there is one."""
    default = {"loss": (F.cross_entropy, "cross-entropy"), "metric": (accuracy, "the share of right classes")}[what]
    return f"{what} (by default {default[1]}; {what}= takes another)" if getattr(task, what) is default[0] else what


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
