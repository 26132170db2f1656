"""What ``blend prune`` does after the choice of channels: in how many steps, and how the network is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from blend.errors import InputError, nearest
from blend.pruned.finetuning import Recipe
from blend.task import Task

SCHEDULES = ("cubic", "linear")
OWN = "task"
"""In the place of a number of epochs: as many as the task says."""
_N = TypeVar("_N", int, float)


@dataclass(frozen=True)
class Training:
    """How to fine-tune, as far as it was asked for; what is None is the task's own, or the usual."""

    epochs: int | None = None
    learning_rate: float | None = None
    distill: float | None = None
    temperature: float | None = None

    @property
    def given(self) -> dict[str, Any]:
        """Without what is None."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Plan:
    """In how many steps to prune, and whether and how to fine-tune after each.

    Attributes:
        steps: At least one.
        schedule: ``cubic``: the first steps take most. ``linear``: each takes as much as the others.
        training: None for no fine-tuning.
    """

    steps: int = 1
    schedule: str = "cubic"
    training: Training | None = None

    def reductions(self, final: float) -> list[float]:
        r"""The reduction to reach at each step, the last one being the final one.

        Linear is :math:`S k/K`; cubic is :math:`S (1 - (1 - k/K)^3)`, the schedule of automated gradual pruning (Zhu
        and Gupta, 2017, arXiv:1710.01878).
        """
        shares = [step / self.steps for step in range(1, self.steps)]
        return [final * (share if self.schedule == "linear" else 1 - (1 - share) ** 3) for share in shares] + [final]

    def recipes(self, task: Task) -> list[Recipe] | None:
        """How to fine-tune after each step: the epochs are divided among the steps, the last gets what is left over.

        Raises:
            InputError: The task does not say what to train on, or there are fewer epochs than steps.
        """
        if self.training is None:
            return None
        if task.finetune is None:
            raise InputError(
                f"task '{task.name}' must say what to fine-tune on, got no finetune: add "
                "finetune=blend.task.FineTuning(train) to its Task"
            )
        recipe = Recipe.of(task.finetune, **self.training.given)
        each, rest = divmod(recipe.epochs, self.steps)
        if not each:
            raise InputError(
                f"finetune must be at least one epoch for each of the {self.steps} steps, got {recipe.epochs}"
            )
        return [replace(recipe, epochs=each)] * (self.steps - 1) + [replace(recipe, epochs=each + rest)]


ONE_STEP = Plan()


def plan(
    *,
    finetune: str | None = None,
    learning_rate: str | None = None,
    distill: str | None = None,
    temperature: str | None = None,
    iterative: str | None = None,
    schedule: str | None = None,
) -> Plan:
    """What was asked for on the command line.

    Raises:
        InputError: Naming the first value that breaks its rule.
    """
    steps = _number("iterative", "1" if iterative is None else iterative, int)
    if steps < 1:
        raise InputError(f"iterative must be at least 1 step, got {iterative}")
    if schedule is not None and schedule not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise InputError(f"schedule must be one of {known}, got '{schedule}'{nearest(schedule, SCHEDULES)}")
    if schedule is not None and iterative is None:
        raise InputError(f"schedule must be left out without --iterative, got '{schedule}'")
    given = {"learning_rate": learning_rate, "distill": distill, "temperature": temperature}
    numbers = {name: _number(name, value, float) for name, value in given.items() if value is not None}
    if finetune is None:
        for name, value in numbers.items():
            raise InputError(f"{name} must be left out without --finetune, got {value:g}")
        return Plan(steps, schedule or SCHEDULES[0])
    epochs = None if finetune == OWN else _number("finetune", finetune, int, f", or '{OWN}' for the task's own")
    if epochs is not None and epochs < 1:
        raise InputError(f"finetune must be at least 1 epoch, or left out, got {epochs}")
    training = Training(epochs, **numbers)
    Recipe(**training.given)  # refuses what is out of range
    return Plan(steps, schedule or SCHEDULES[0], training)


def _number(name: str, text: str, kind: Callable[[str], _N], otherwise: str = "") -> _N:
    try:
        return kind(text)
    except ValueError:
        whole = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} must be {whole}{otherwise}, got '{text}'") from None
