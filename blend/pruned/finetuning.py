r"""Fine-tuning: a pruned network is trained on, gently, by the labels and by what the unpruned network says.

The loss of a step is

.. math:: (1 - d) L + d\,T^2 \operatorname{KL}(\operatorname{softmax}(t / T) \,\|\, \operatorname{softmax}(s / T))

with L the task's loss, t and s the outputs of the unpruned and the pruned network, d the share of distillation and T
its temperature (Hinton et al., 2015, arXiv:1503.02531). Outputs that are not class logits are distilled by their mean
squared error in place of the divergence. The learning rate falls to zero along half a cosine (Loshchilov and Hutter,
2017, arXiv:1608.03983).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from blend.defaults import CPU
from blend.device import placed
from blend.errors import BlendError, InputError, described
from blend.progress import Progress, progress, say
from blend.pruned.buffers import all_tensors, put_tensors
from blend.pruned.distillation import Teacher, is_logits
from blend.pruned.step import judged
from blend.pruned.training_data import InMemory, Streamed, TrainingData, seeded, training_data
from blend.pruning import reproducibly
from blend.task import FineTuning, Split, Task
from blend.tasks.splits import Data
from criteria.evaluating import evaluating

Course: TypeAlias = list[dict[str, Any]]
"""Per epoch, from 0, the network before: ``epoch``, ``loss`` of training (None at 0), ``heldout_loss``,
``heldout_metric``."""


@dataclass(frozen=True)
class Recipe:
    """How a pruned network is trained.

    Attributes:
        epochs: Passes over the training data.
        learning_rate: Of SGD, at the beginning.
        batch_size: Examples a step.
        momentum: Of SGD.
        weight_decay: L2 penalty.
        distill: Share of distillation in the loss; 0 for none.
        temperature: By which logits are divided for it.

    Raises:
        InputError: A value is out of range.
    """

    epochs: int = 3
    learning_rate: float = 0.01
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    distill: float = 0.7
    temperature: float = 4.0

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        for name, value in vars(self).items():
            if name in ("epochs", "batch_size") and not isinstance(value, int):
                raise InputError(f"{name} must be a whole number, got {value!r}")
            if not isinstance(value, int | float):
                raise InputError(f"{name} must be a number, got {value!r}")
        for name, low in (("epochs", 1), ("batch_size", 1), ("weight_decay", 0)):
            if not getattr(self, name) >= low:
                raise InputError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("learning_rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be greater than 0, got {getattr(self, name):g}")
        if not 0 <= self.distill <= 1:
            raise InputError(f"distill must be in [0, 1], got {self.distill:g}")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum must be in [0, 1), got {self.momentum:g}")

    @classmethod
    def of(cls, finetune: FineTuning, **otherwise: Any) -> Recipe:
        """A task's own recipe, but for what is given and not None."""
        names = ("epochs", "learning_rate", "batch_size", "momentum", "weight_decay")
        own = {name: getattr(finetune, name) for name in names}
        return cls(**{**own, **{name: value for name, value in otherwise.items() if value is not None}})


class Diverged(BlendError):
    """The learning rate was too high."""


class Checkpoint(Protocol):
    """Where the state after an epoch outlives the process."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved last; None if nothing was."""

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Takes the place of what was saved before, whole or not at all."""


def finetuned(
    network: nn.Module,
    teacher: nn.Module | None,
    task: Task,
    train: TrainingData | Data,
    heldout: Split,
    recipe: Recipe,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    *,
    batch_size: int = 64,
    device: str = CPU,
    title: str = "fine-tuning",
) -> tuple[nn.Module, Course]:
    """Trains a copy of a network and keeps what did best on held-out data after any epoch, or before the first.

    On one thread, so that the same arguments give the same weights on any machine of a kind, also when it went on from
    a checkpoint. Neither network, nor the caller's random state, is touched.

    Args:
        network: The pruned one.
        teacher: The unpruned one; not needed where nothing is distilled.
        task: Its loss trains, its metric judges.
        train: What to train on.
        heldout: What to judge by.
        recipe: How to train.
        seed: Of the order of the examples, and of everything else that draws at random.
        checkpoint: Where to save every epoch, and to go on from.
        batch_size: Examples per forward pass of judging.
        device: What networks run on; losses are computed on the CPU.
        title: Of the progress bar.

    Returns:
        The network in evaluation mode, on the CPU, and what came out after each epoch: `best_epoch` tells which one
        is kept.

    Raises:
        InputError: Nothing can be trained, or the data are not fit for it.
        Diverged: The learning rate is too high.
    """
    data = train if isinstance(train, (InMemory, Streamed)) else training_data(cast("Data", train), recipe.batch_size)
    with reproducibly():
        training = _Training(
            network, _teacher(teacher, recipe, device, heldout), task, data, recipe,
            lambda candidate: judged(candidate, task, heldout, batch_size), torch.device(device),
        )  # fmt: skip
        training.restore(checkpoint.load() if checkpoint else None)
        done = training.course[-1]["epoch"]
        with progress(title, recipe.epochs * data.batches, done * data.batches) as bar:
            for epoch in range(done + 1, recipe.epochs + 1):
                training.epoch(epoch, int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]), bar)
                if checkpoint:
                    checkpoint.save(*training.state())
    return training.best_network(), training.course


def best_epoch(course: Course) -> int:
    """The first of the epochs with the highest held-out metric and, among these, the lowest held-out loss."""
    return int(min(course, key=lambda row: (-row["heldout_metric"], row["heldout_loss"], row["epoch"]))["epoch"])


def _teacher(network: nn.Module | None, recipe: Recipe, device: str, heldout: Split) -> Teacher | None:
    if not recipe.distill:
        return None
    if network is None:
        raise InputError(f"distill must be 0 where there is no unpruned network to learn from, got {recipe.distill:g}")
    with evaluating(network), torch.no_grad():
        outputs = network(heldout.inputs[:1])
    if not (logits := is_logits(outputs, heldout.targets)):
        shape = (len(heldout), *outputs.shape[1:])
        say(f"note: outputs of shape {shape} are not class logits: distilled by mean squared error")
    return Teacher(placed(network, device), recipe.temperature, recipe.batch_size, logits=logits)


class _Training:
    """A network on its way, its optimiser, the best so far, and the course."""

    def __init__(
        self, network: nn.Module, teacher: Teacher | None, task: Task, data: TrainingData, recipe: Recipe,
        judge: Callable[[nn.Module], tuple[float, float]], device: torch.device,
    ) -> None:  # fmt: skip
        self.network, self.device = copy.deepcopy(network).eval().to(device), device
        self.teacher, self.task, self.data, self.recipe, self.judge = teacher, task, data, recipe, judge
        self.parameters = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise InputError("fine-tuning needs parameters that can be trained, but all of the network's are frozen")
        self.optimiser = torch.optim.SGD(
            self.parameters.values(), lr=recipe.learning_rate, momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )  # fmt: skip
        self.course: Course = []
        self.best: dict[str, Tensor] = {}

    def restore(self, saved: tuple[dict[str, Tensor], dict[str, Any]] | None) -> None:
        """Goes back to what a checkpoint holds, or takes the network as it is for epoch 0."""
        if saved is None:
            self._file(0, None)
            return
        tensors, state = saved
        self.course = state["course"]
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "momentum": {}}
        for name, tensor in tensors.items():
            part, _, key = name.partition("/")
            parts[part][key] = tensor.to(self.device)
        put_tensors(self.network, parts["network"])
        self.best = parts["best"]
        for name, buffer in parts["momentum"].items():
            self.optimiser.state[self.parameters[name]]["momentum_buffer"] = buffer

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next epoch depends on; random generators are seeded anew by each."""
        momentum = {
            f"momentum/{name}": found
            for name, parameter in self.parameters.items()
            if (found := self.optimiser.state[parameter].get("momentum_buffer")) is not None
        }
        network = {f"network/{name}": tensor for name, tensor in all_tensors(self.network).items()}
        return {**network, **momentum, **{f"best/{n}": t for n, t in self.best.items()}}, {"course": self.course}

    def epoch(self, epoch: int, seed: int, bar: Progress) -> None:
        """Trains for one epoch and judges what came out."""
        total, steps = 0.0, 0
        self.network.train()
        with seeded(seed):
            for inputs, targets, rows in self.data.epoch(seed):
                share = min(1.0, (epoch - 1 + steps / self.data.batches) / self.recipe.epochs)
                for group in self.optimiser.param_groups:
                    group["lr"] = self.recipe.learning_rate * (1 + math.cos(math.pi * share)) / 2
                loss = self._step(inputs, targets, rows)
                if not math.isfinite(loss):
                    raise self._diverged(epoch, f"the loss is {loss}")
                total, steps = total + loss, steps + 1
                bar.advance(epoch=epoch, loss=loss, heldout=self.course[-1]["heldout_metric"])
        self.optimiser.zero_grad()
        self.network.eval()
        if not all(tensor.isfinite().all() for tensor in self.network.state_dict().values()):
            raise self._diverged(epoch, "weights are not finite")
        self._file(epoch, total / max(1, steps))
        bar.advance(0, heldout=self.course[-1]["heldout_metric"])

    def _step(self, inputs: Tensor, targets: Tensor, rows: Tensor | None) -> float:
        try:
            inputs = inputs.to(self.device)
            outputs = self.network(inputs)
            loss = self.task.loss(outputs.cpu(), targets)
            if self.teacher is not None:
                share = self.recipe.distill
                wanted = self.teacher.outputs(inputs, rows, self.data)
                loss = (1 - share) * loss + share * self.teacher.distance(outputs, wanted)
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            shape = tuple(inputs.shape)
            raise InputError(f"a training step failed on a batch of shape {shape}: {described(error)}") from error
        self.optimiser.step()
        return loss.item()

    def _file(self, epoch: int, loss: float | None) -> None:
        """Adds to the course, and keeps the network if it is the best."""
        heldout_loss, metric = self.judge(self.network)
        row = {"epoch": epoch, "loss": loss, "heldout_loss": heldout_loss, "heldout_metric": metric}
        if not (math.isfinite(heldout_loss) and math.isfinite(metric)):
            raise self._diverged(epoch, f"the held-out loss is {heldout_loss}")
        self.course.append(row)
        if best_epoch(self.course) == epoch:
            self.best = all_tensors(self.network)

    def _diverged(self, epoch: int, how: str) -> Diverged:
        if not epoch:
            return Diverged(f"the network cannot be fine-tuned: {how} before it has begun")
        rate = f"learning_rate {self.recipe.learning_rate:g}"
        return Diverged(f"fine-tuning diverged in epoch {epoch}: {how}; {rate} is too high for it")

    def best_network(self) -> nn.Module:
        """The network as it was after its best epoch."""
        put_tensors(self.network, self.best)
        return self.network.eval().cpu()
