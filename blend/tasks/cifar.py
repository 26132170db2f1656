"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), read from the files of their binary distribution."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from blend.errors import InputError
from blend.task import Task
from blend.tasks.training import Recipe, standardised, trained_task

Bytes: TypeAlias = npt.NDArray[np.uint8]

SIDE = 32
PIXELS = 3 * SIDE * SIDE


def cifar10(
    data: str,
    network: str = "resnet20",
    width: float | None = None,
    epochs: int = 30,
    learning_rate: float = 0.1,
    batch_size: int = 128,
    seed: int = 0,
) -> Task:
    """CIFAR-10: 10 classes, 3 x 32 x 32.

    The last tenth of the training images is held out, 1,024 of the others calibrate, the test file is the test split.

    Args:
        data: the folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin.
        network: a key of :data:`blend.tasks.networks.NETWORKS`.
        width: its width; None for the network's own default.
        epochs: passes over the training images.
        learning_rate: the highest of training.
        batch_size: images a training step.
        seed: of training.

    Raises:
        InputError: a file is missing or broken, or an option is out of range.
    """
    files = [f"data_batch_{part}.bin" for part in range(1, 6)]
    return _cifar(
        "cifar10",
        Path(data),
        files,
        "test_batch.bin",
        label_bytes=1,
        classes=10,
        network=network,
        width=width,
        recipe=Recipe(epochs, learning_rate, batch_size, flip=True, shift=4),
        seed=seed,
    )


def cifar100(
    data: str,
    network: str = "resnet20",
    width: float | None = None,
    epochs: int = 30,
    learning_rate: float = 0.1,
    batch_size: int = 128,
    seed: int = 0,
) -> Task:
    """CIFAR-100: 100 (fine) classes, 3 x 32 x 32, otherwise like :func:`cifar10`.

    Args:
        data: the folder with train.bin and test.bin.
        network: a key of :data:`blend.tasks.networks.NETWORKS`.
        width: its width; None for the network's own default.
        epochs: passes over the training images.
        learning_rate: the highest of training.
        batch_size: images a training step.
        seed: of training.

    Raises:
        InputError: a file is missing or broken, or an option is out of range.
    """
    return _cifar(
        "cifar100",
        Path(data),
        ["train.bin"],
        "test.bin",
        label_bytes=2,
        classes=100,
        network=network,
        width=width,
        recipe=Recipe(epochs, learning_rate, batch_size, flip=True, shift=4),
        seed=seed,
    )


def _cifar(
    name: str,
    folder: Path,
    train_files: list[str],
    test_file: str,
    label_bytes: int,
    classes: int,
    network: str,
    width: float | None,
    recipe: Recipe,
    seed: int,
) -> Task:
    parts = [_records(folder / file, label_bytes, classes) for file in train_files]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    test_images, test_labels = _records(folder / test_file, label_bytes, classes)
    cut = len(images) - max(1, len(images) // 10)
    if cut == 0:
        raise InputError(f"{folder} must hold at least 2 training images, got {len(images)}")
    train, heldout, test = standardised(images[:cut], images[cut:], test_images)
    targets, test_targets = torch.from_numpy(labels), torch.from_numpy(test_labels)
    return trained_task(
        name,
        (train, targets[:cut]),
        (heldout, targets[cut:]),
        (test, test_targets),
        classes=classes,
        network=network,
        width=width,
        recipe=recipe,
        seed=seed,
    )


def _records(path: Path, label_bytes: int, classes: int) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Read records of ``label_bytes`` labels, the last of which counts, and 3 x 32 x 32 pixels.

    Returns:
        Images (n, 3, 32, 32) and classes (n,).

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; data must be the folder of the binary distribution")
    content = np.fromfile(path, np.uint8)
    size = label_bytes + PIXELS
    if len(content) == 0 or len(content) % size:
        raise InputError(f"the size of {path} must be a multiple of {size} bytes, got {len(content)}")
    records = content.reshape(-1, size)
    labels = records[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        raise InputError(f"the labels in {path} must be below {classes}, got {labels.max()}")
    return records[:, label_bytes:].reshape(-1, 3, SIDE, SIDE), labels
