"""Your own images, a folder for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from blend.errors import InputError, nearest
from blend.progress import progress
from blend.task import Task
from blend.tasks.training import Recipe, standardised, trained_task

Bytes: TypeAlias = npt.NDArray[np.uint8]
Files: TypeAlias = Mapping[str, Sequence[Path]]

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))


def images(
    data: str,
    network: str = "resnet20",
    size: int = 32,
    width: float | None = None,
    stem_stride: int = 1,
    epochs: int = 30,
    learning_rate: float = 0.1,
    batch_size: int = 128,
    flip: bool = True,
    data_seed: int = 0,
    seed: int = 0,
) -> Task:
    """Image files in ``data``/class/, or in ``data``/train/class/, ``data``/heldout/class/ and ``data``/test/class/.

    Without the three folders 15 % of each class are held out and 15 % are the test split, at random. 1,024 training
    images calibrate. Every image is cut to a central square, resized and standardised.

    Args:
        data: the folder.
        network: a key of :data:`blend.tasks.networks.NETWORKS`.
        size: pixels of a side after resizing.
        width: the network's width; None for its own default.
        stem_stride: stride of its first convolution.
        epochs: passes over the training images.
        learning_rate: the highest of training.
        batch_size: images a training step.
        flip: whether training may mirror images left to right.
        data_seed: of the random split.
        seed: of training.

    Raises:
        InputError: no classes, too few images in one, an image that cannot be read, or an option out of range.
    """
    if size < 8:
        raise InputError(f"size must be >= 8 pixels, got {size}")
    folders = [Path(data) / name for name in ("train", "heldout", "test")]
    missing = [folder.name for folder in folders if not folder.is_dir()]
    if 0 < len(missing) < 3:
        raise InputError(
            f"{data} must have the folders train, heldout and test, or none of them; missing: {', '.join(missing)}"
        )
    parts = _split(_by_class(Path(data)), data_seed) if missing else [_by_class(folder) for folder in folders]
    classes = sorted(parts[0])
    pixels, targets = zip(*(_read(part, classes, size) for part in parts), strict=True)
    train, heldout, test = zip(standardised(*pixels), targets, strict=True)
    return trained_task(
        "images",
        train,
        heldout,
        test,
        classes=len(classes),
        network=network,
        width=width,
        stem_stride=stem_stride,
        recipe=Recipe(epochs, learning_rate, batch_size, flip=flip, shift=size // 8),
        seed=seed,
    )


def _by_class(folder: Path) -> Files:
    """Return the image files of each class folder that has any, sorted."""
    if not folder.is_dir():
        raise InputError(f"data must be a folder, got {folder}")
    found = {
        child.name: sorted(file for file in child.iterdir() if file.suffix.lower() in SUFFIXES)
        for child in sorted(folder.iterdir())
        if child.is_dir()
    }
    classes = {name: files for name, files in found.items() if files}
    if len(classes) < 2:
        raise InputError(
            f"{folder} must have a folder of images for each of at least two classes, "
            f"got {', '.join(classes) or 'none'}"
        )
    return classes


def _split(classes: Files, seed: int) -> list[Files]:
    """Divide every class at random: 70 % training, 15 % held-out, 15 % test, at least one image each."""
    rng = np.random.default_rng(seed)
    parts: list[dict[str, list[Path]]] = [{}, {}, {}]
    for name, files in classes.items():
        if len(files) < 3:
            raise InputError(f"class {name} must have at least 3 images, one for each split, got {len(files)}")
        shuffled = [files[i] for i in rng.permutation(len(files))]
        share = max(1, round(0.15 * len(files)))
        for part, chosen in zip(
            parts, (shuffled[2 * share :], shuffled[:share], shuffled[share : 2 * share]), strict=True
        ):
            part[name] = chosen
    return list(parts)


def _read(files: Files, classes: Sequence[str], size: int) -> tuple[Bytes, Tensor]:
    """Read images as (n, 3, size, size) and their classes (n,), in a fixed random order."""
    for name in files:
        if name not in classes:
            raise InputError(f"class {name} has no training images{nearest(name, classes)}")
    labelled = [(file, classes.index(name)) for name, paths in files.items() for file in paths]
    labelled = [labelled[i] for i in np.random.default_rng(0).permutation(len(labelled))]
    pixels = np.empty((len(labelled), 3, size, size), np.uint8)
    with progress("reading images", len(labelled)) as bar:
        for row, (file, _) in enumerate(labelled):
            pixels[row] = _pixels(file, size)
            bar.advance()
    return pixels, torch.tensor([label for _, label in labelled])


def _pixels(file: Path, size: int) -> Bytes:
    """Read one image as (3, size, size)."""
    try:
        with Image.open(file) as image:
            square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"the image {file} cannot be read: {error}") from error
    return np.asarray(square, np.uint8).transpose(2, 0, 1)
