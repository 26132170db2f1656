"""The 1,797 handwritten digits that come with scikit-learn: real data, no download, trained in seconds."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blend.errors import InputError
from blend.task import Task
from blend.tasks.training import Recipe, trained_task

SIDE = 16
HELDOUT, TEST = 440, 500
HELDOUT_DRAWS = 3


def digits(
    network: str = "resnet20",
    width: float | None = None,
    noise: float = 1.0,
    epochs: int = 20,
    learning_rate: float = 0.1,
    train_images: int = 857,
    seed: int = 0,
) -> Task:
    """Noisy handwritten digits, 1 x 16 x 16.

    The 8 x 8 images (Alpaydin and Kaynak, 1998, the test part of the UCI set "Optical Recognition of Handwritten
    Digits") are enlarged bilinearly and standardised. Without noise every network is right; with it there is room
    to lose by pruning. The splits and their noise never change: 857 training, 440 held-out and 500 test images, and
    the first 256 of training for calibration. A search looks at the held-out images hundreds of times and would learn
    their noise, so each of them comes with three draws of it.

    Args:
        network: a key of :data:`blend.tasks.networks.NETWORKS`.
        width: its width; by default half of the network's own: 8 channels for a resnet, 0.5 of the others'.
        noise: standard deviation of the Gaussian noise, in units of the images' own.
        epochs: passes over the training images.
        learning_rate: the highest of training.
        train_images: how many of the training images to train on.
        seed: of training.

    Raises:
        InputError: an option is out of range.
    """
    if not noise >= 0:
        raise InputError(f"noise must be >= 0, got {noise:g}")
    clean, targets = _digits()
    inputs = _noisy(clean, noise, draw=0)
    available = len(inputs) - HELDOUT - TEST
    if not 1 <= train_images <= available:
        raise InputError(f"train_images must be in [1, {available}], got {train_images}")
    heldout, test = slice(available, available + HELDOUT), slice(available + HELDOUT, None)
    redrawn = [_noisy(clean[heldout], noise, draw) for draw in range(1, HELDOUT_DRAWS)]
    task = trained_task(
        "digits",
        train=(inputs[:train_images], targets[:train_images]),
        heldout=(torch.cat([inputs[heldout], *redrawn]), targets[heldout].repeat(HELDOUT_DRAWS)),
        test=(inputs[test], targets[test]),
        classes=10,
        network=network,
        width=_half(network) if width is None else width,
        recipe=Recipe(epochs, learning_rate, batch_size=64, shift=1, noise=noise / 2),
        seed=seed,
        calibration=256,
    )
    task.heldout_draws = HELDOUT_DRAWS
    return task


def _half(network: str) -> float:
    return 8 if network.startswith("resnet") else 0.5


def _digits() -> tuple[Tensor, Tensor]:
    """Return all digits in a fixed random order: standardised images (1797, 1, 16, 16) and classes (1797,)."""
    from sklearn.datasets import load_digits  # workers, which import this module, need no images

    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    images = torch.from_numpy(pixels[order]).float().reshape(-1, 1, 8, 8)
    images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return (images - images.mean()) / images.std(), torch.from_numpy(classes[order]).long()


def _noisy(images: Tensor, noise: float, draw: int) -> Tensor:
    return images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(draw))
