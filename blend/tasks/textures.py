"""Drawn textures: 40 classes of small colour images, made from a seed, for searches that need no download.

A class is a shape (eight of them) filled with a texture (five). Position, size, rotation, wavelength and all
colours are random, a different texture lies behind the shape, and noise over everything: the classifier has to
tell form and texture apart from contrast and colour, which say nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from blend.errors import InputError
from blend.progress import say
from blend.task import Task
from blend.tasks.cache import cache_dir, written_atomically
from blend.tasks.training import Recipe, standardised, trained_task

Floats: TypeAlias = npt.NDArray[np.float32]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Classes: TypeAlias = npt.NDArray[np.int64]

SIDE = 32
TURN = np.float32(2 * np.pi)

# Coordinates in units of the shape's size; whether a point is inside.
SHAPES: tuple[Callable[[Floats, Floats], npt.NDArray[np.bool_]], ...] = (
    lambda x, y: np.hypot(x, y) < 0.85,  # disc
    lambda x, y: np.abs(np.hypot(x, y) - 0.72) < 0.23,  # ring
    lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.75,  # square
    lambda x, y: np.maximum(-y, 0.866 * np.abs(x) + 0.5 * y) < 0.55,  # triangle
    lambda x, y: (np.minimum(np.abs(x), np.abs(y)) < 0.3) & (np.maximum(np.abs(x), np.abs(y)) < 0.95),  # cross
    lambda x, y: np.hypot(x, y) < 0.66 + 0.32 * np.cos(5 * np.arctan2(y, x)),  # star
    lambda x, y: (np.hypot(x, y) < 0.95) & (np.hypot(x - 0.5, y) > 0.72),  # crescent
    lambda x, y: (np.abs(x) < 1.05) & (np.abs(y) < 0.4),  # bar
)

# Coordinates in units of the wavelength; a value in [-1, 1].
TEXTURES: tuple[Callable[[Floats, Floats], Floats], ...] = (
    lambda x, y: np.sin(TURN * x),  # stripes
    lambda x, y: np.sign(np.sin(TURN * x) * np.sin(TURN * y)),  # checks
    lambda x, y: np.sign(np.cos(TURN * x) + np.cos(TURN * y) - np.float32(0.6)),  # dots
    lambda x, y: np.sin(TURN * (x + np.abs(y % 2 - 1))),  # zigzags
    lambda x, y: np.where(y % 2 < 1.4, np.sin(TURN * x), np.float32(-1)),  # dashes
)

CLASSES = len(SHAPES) * len(TEXTURES)
_CHUNK = 2000  # images drawn at a time
_VERSION = 1  # part of the name of cached images: raise it when the code below draws differently


def textures(
    network: str = "resnet20",
    width: float | None = None,
    stem_stride: int = 2,
    epochs: int = 8,
    learning_rate: float = 0.1,
    train_images: int = 16000,
    heldout_images: int = 2000,
    test_images: int = 4000,
    data_seed: int = 0,
    seed: int = 0,
) -> Task:
    """Drawn textures, 40 classes, 3 x 32 x 32; the first 1,024 training images calibrate.

    Args:
        network: a key of :data:`blend.tasks.networks.NETWORKS`.
        width: its width; None for the network's own default.
        stem_stride: stride of its first convolution.
        epochs: passes over the training images.
        learning_rate: the highest of training.
        train_images: how many to draw for training.
        heldout_images: how many to draw for the fitness.
        test_images: how many to draw for the report.
        data_seed: of the images.
        seed: of training.

    Raises:
        InputError: an option is out of range.
    """
    sizes = {"train": train_images, "heldout": heldout_images, "test": test_images}
    for name, count in sizes.items():
        if count < 1:
            raise InputError(f"{name}_images must be >= 1, got {count}")
    if data_seed < 0:
        raise InputError(f"data_seed must be >= 0, got {data_seed}")
    pixels, targets = zip(*(_cached(name, count, data_seed) for name, count in sizes.items()), strict=True)
    train, heldout, test = zip(standardised(*pixels), map(torch.from_numpy, targets), strict=True)
    return trained_task(
        "textures",
        train,
        heldout,
        test,
        classes=CLASSES,
        network=network,
        width=width,
        stem_stride=stem_stride,
        recipe=Recipe(epochs, learning_rate, flip=True),
        seed=seed,
    )


def _cached(split: str, count: int, seed: int) -> tuple[Bytes, Classes]:
    """Draw a split, or load it as it was drawn before."""
    rng = np.random.default_rng([seed, *split.encode()])
    classes = rng.permutation(np.arange(count) % CLASSES)
    path = cache_dir() / "textures" / f"v{_VERSION}-{seed}-{split}-{count}.npy"
    if path.exists():
        try:
            images = np.load(path, allow_pickle=False)
            if images.shape == (count, 3, SIDE, SIDE) and images.dtype == np.uint8:
                return images, classes
            reason = f"it holds {images.dtype} of shape {images.shape}"
        except (ValueError, OSError, EOFError) as error:
            reason = str(error)
        say(f"drawing again: the cached images {path} cannot be read ({reason})")
    images = draw(classes, rng)
    with written_atomically(path) as partial, partial.open("wb") as file:
        np.save(file, images)
    return images, classes


def draw(classes: Classes, rng: np.random.Generator) -> Bytes:
    """Draw one image for each class index.

    Args:
        classes: (n,) integers, shape · 5 + texture.
        rng: where position, size, rotation, colours and noise come from.

    Returns:
        Images (n, 3, 32, 32).
    """
    images = np.empty((len(classes), 3, SIDE, SIDE), np.uint8)
    for start in range(0, len(classes), _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part] = _draw(classes[part], rng)
    return images


def _draw(classes: Classes, rng: np.random.Generator) -> Bytes:
    n = len(classes)
    shape, texture = np.divmod(classes, len(TEXTURES))
    behind = (texture + rng.integers(1, len(TEXTURES), n)) % len(TEXTURES)
    x, y = _grid(rng, n, offset=3, unit=(11, 15))
    inside = np.empty((n, SIDE, SIDE), np.bool_)
    for kind, contains in enumerate(SHAPES):
        rows = shape == kind
        inside[rows] = contains(x[rows], y[rows])
    front = _coloured(_pattern(texture, rng), rng, contrast=0.3)
    back = _coloured(_pattern(behind, rng), rng, contrast=0.12)
    image = np.where(inside[:, None], front, back) + np.float32(0.09) * rng.standard_normal(front.shape, np.float32)
    painted: Bytes = (255 * image.clip(0, 1)).round().astype(np.uint8)
    return painted


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Floats:
    return (low + (high - low) * rng.random(shape, np.float32)).astype(np.float32)


def _grid(rng: np.random.Generator, n: int, offset: float, unit: tuple[float, float]) -> tuple[Floats, Floats]:
    """Return pixel coordinates, each (n, 32, 32), moved by up to ``offset`` pixels, turned, and in random units."""
    axis = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    across = axis[None, None, :] - _uniform(rng, -offset, offset, n, 1, 1)
    down = axis[None, :, None] - _uniform(rng, -offset, offset, n, 1, 1)
    angle, scale = _uniform(rng, 0, float(TURN), n, 1, 1), _uniform(rng, *unit, n, 1, 1)
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    return cosine * across - sine * down, sine * across + cosine * down


def _pattern(kinds: Classes, rng: np.random.Generator) -> Floats:
    """Return values (n, 32, 32) in [-1, 1] of textures with random wavelengths of 4 to 7 pixels."""
    x, y = _grid(rng, len(kinds), offset=8, unit=(4, 7))
    values = np.empty_like(x)
    for kind, texture in enumerate(TEXTURES):
        rows = kinds == kind
        values[rows] = texture(x[rows], y[rows])
    return values


def _coloured(pattern: Floats, rng: np.random.Generator, contrast: float) -> Floats:
    """Paint values (n, h, w) in [-1, 1] as images (n, 3, h, w) between two colours at most 2 · ``contrast`` apart."""
    n = len(pattern)
    middle = _uniform(rng, 0.3, 0.7, n, 3, 1, 1)
    sign = np.where(rng.random((n, 3, 1, 1)) < 0.5, np.float32(-1), np.float32(1))
    swing = sign * _uniform(rng, 0.4 * contrast, contrast, n, 3, 1, 1)
    return middle + swing * pattern[:, None]
