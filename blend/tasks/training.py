"""Train a task's network the first time it is asked for, and load it from the cache ever after."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blend.errors import BlendError, InputError, described
from blend.progress import progress, say
from blend.pruning import reproducibly
from blend.task import FineTuning, Split, Task
from blend.tasks.cache import cache_dir, written_atomically
from blend.tasks.networks import build_network

_VERSION = 2  # part of every key: raise it when the code below trains differently


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum 0.9 and one cycle of the learning rate.

    Attributes:
        epochs: passes over the training images.
        learning_rate: the highest rate of the cycle.
        batch_size: images a step.
        weight_decay: L2 penalty on all parameters.
        label_smoothing: share of the target spread over all classes.
        flip: whether half of the images are mirrored, left to right.
        shift: pixels by which an image is moved at most, each way.
        noise: standard deviation of the Gaussian noise added anew in every step.
    """

    epochs: int
    learning_rate: float = 0.1
    batch_size: int = 128
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    flip: bool = False
    shift: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.epochs < 0:
            raise InputError(f"epochs must be >= 0, got {self.epochs}")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be > 0, got {self.learning_rate:g}")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be >= 1, got {self.batch_size}")


Labelled: TypeAlias = tuple[Tensor, Tensor]


def standardised(*parts: npt.NDArray[np.uint8]) -> list[Tensor]:
    """Bring pixels (n, c, h, w) to mean 0 and deviation 1 in each channel of the first part, the training images."""
    tensors = [torch.from_numpy(part).float() for part in parts]
    deviation, mean = torch.std_mean(tensors[0], dim=(0, 2, 3), correction=0, keepdim=True)
    deviation.clamp_(min=1.0)  # one step of 255: a channel that is the same everywhere stays 0
    return [tensor.sub_(mean).div_(deviation) for tensor in tensors]


def trained_task(
    name: str,
    train: Labelled,
    heldout: Labelled,
    test: Labelled,
    *,
    classes: int,
    network: str,
    width: float | None,
    recipe: Recipe,
    seed: int,
    stem_stride: int = 1,
    calibration: int = 1024,
) -> Task:
    """Make a task of images and the network trained on them.

    Args:
        name: the task's.
        train: images (n, c, h, w) and classes (n,); so are the next two.
        heldout: data for the fitness.
        test: data for the report.
        classes: how many there are.
        network: a key of :data:`blend.tasks.networks.NETWORKS`.
        width: its width; None for the network's own default.
        recipe: how to train.
        seed: of training.
        stem_stride: stride of the first convolution.
        calibration: the first so many training images calibrate.

    Raises:
        InputError: an unknown network, or arguments out of its range.
        BlendError: training diverged.
    """
    images, targets = train
    arguments = {"in_channels": images.shape[1], "classes": classes, "width": width, "stem_stride": stem_stride}
    return Task(
        model=trained_network(name, train, network, arguments, recipe, seed),
        example_input=images[:2].clone(),
        calibration=(images[:calibration].clone(), targets[:calibration].clone()),
        heldout=heldout,
        test=test,
        name=name,
        finetune=FineTuning(train),
    )


def trained_network(
    task: str,
    train: Labelled,
    network: str,
    arguments: Mapping[str, Any],
    recipe: Recipe,
    seed: int,
) -> nn.Module:
    """Train a network, or load what an earlier call with the same arguments has trained.

    Training runs on one thread, so that the same arguments give the same weights on any machine of a kind, however
    many cores it has and however busy they are. The caller's global random state is left as it was.

    Args:
        task: the name under which the network is cached and announced.
        train: images (n, c, h, w) and classes (n,).
        network: a key of :data:`blend.tasks.networks.NETWORKS`.
        arguments: passed on to :func:`blend.tasks.networks.build_network`.
        recipe: how to train.
        seed: of the first weights, the order of the images and their augmentation.

    Returns:
        The network in evaluation mode.

    Raises:
        InputError: an unknown network, or arguments out of its range.
        BlendError: training diverged.
    """
    inputs, targets = train
    determinants = {
        "version": _VERSION,
        "task": task,
        "data": Split(inputs, targets, "training").fingerprint(),
        "network": network,
        "arguments": dict(arguments),
        "recipe": asdict(recipe),
        "seed": seed,
    }
    key = hashlib.sha256(json.dumps(determinants, sort_keys=True).encode()).hexdigest()[:12]
    path = cache_dir() / "networks" / f"{task}-{network}-{key}.safetensors"
    with torch.random.fork_rng(devices=[]), reproducibly():
        torch.manual_seed(seed)
        model = build_network(network, **arguments)
        if _load(model, path):
            return model.eval()
        torch.manual_seed(seed)
        model = build_network(network, **arguments)  # once more: a failed load may have changed some of the weights
        with written_atomically(path) as partial:
            _fit(model, train, recipe, torch.Generator().manual_seed(seed), f"training {network} on {task}")
            save_file(model.state_dict(), partial)
    say(f"cached the trained {network} in {path}")
    return model.eval()


def _load(model: nn.Module, path: Path) -> bool:
    """Load cached weights into ``model``; False when there are none, or none that can be read."""
    if not path.exists():
        return False
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        say(f"training again: the cached network {path} cannot be read ({described(error)})")
        return False
    say(f"using the trained network cached in {path}")
    return True


def _fit(model: nn.Module, train: Labelled, recipe: Recipe, rng: torch.Generator, title: str) -> None:
    """Train ``model`` in place."""
    inputs, targets = train
    batches = -(-len(inputs) // recipe.batch_size)
    steps = batches * recipe.epochs
    optimiser = torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    cycle = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _cycle(step / max(1, steps)))
    model.train()
    with progress(title, steps) as bar:
        for epoch in range(recipe.epochs):
            for batch in torch.tensor_split(torch.randperm(len(inputs), generator=rng), batches):
                outputs = model(_augmented(inputs[batch], recipe, rng))
                loss = F.cross_entropy(outputs, targets[batch], label_smoothing=recipe.label_smoothing)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                cycle.step()
                bar.advance(epoch=epoch + 1, loss=loss.item())
    model.zero_grad()
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise BlendError(f"{title} diverged: learning_rate {recipe.learning_rate:g} is too high for it")


def _cycle(share: float) -> float:
    """Return the learning rate's factor after a share of all steps: from 0.04 to 1 in the first quarter, then to 0."""
    low, position = (0.04, 1 - share / 0.25) if share < 0.25 else (0.0, (share - 0.25) / 0.75)
    return low + (1 - low) * (1 + math.cos(math.pi * position)) / 2


def _augmented(images: Tensor, recipe: Recipe, rng: torch.Generator) -> Tensor:
    """Mirror, move and add noise, as the recipe says."""
    n, _, height, width = images.shape
    if recipe.flip:
        mirrored = torch.rand(n, 1, 1, 1, generator=rng) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
    if recipe.shift:
        down, right = torch.randint(2 * recipe.shift + 1, (2, n, 1, 1), generator=rng)
        rows, columns = down + torch.arange(height)[:, None], right + torch.arange(width)
        padded = F.pad(images, (recipe.shift,) * 4)
        images = padded[torch.arange(n)[:, None, None], :, rows, columns].permute(0, 3, 1, 2).contiguous()
    if recipe.noise:
        images = images + recipe.noise * torch.randn(images.shape, generator=rng)
    return images
