"""Convolutions of small maps by weights that do not fit into a cache, on some CPUs: images side by side as one map.

oneDNN convolves image after image. Where a map is a few pixels wide and the weights are larger than the second-level
cache, it reads weights again for every image, and waits for them where the third-level cache is far away. As one wide
map, the images of a batch share them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_WAITS = torch.cpu._is_amx_tile_supported()
"""Whether weights are waited for. On a Xeon with AMX they were, by up to two thirds of the time; an EPYC lost by this.

The clock does not decide, as last bits depend on it.
"""

_CACHE = 2**21
"""Bytes of weights from which on it takes less time; below, copying takes more than reading weights again."""

_WIDEST = 4
"""Columns of outputs up to which it takes less time."""


def convolved(conv: Any, convolve: Callable[..., Tensor], inputs: Tensor, *shortcut: Tensor) -> Tensor:
    """What a convolution makes of a batch: of each image the same, up to the order of additions.

    Args:
        conv: A convolution whose padding are zeros, given in numbers.
        convolve: What applies it, to inputs and to the shortcut if there is one.
        inputs: Shape (images, channels, height, width) if they are to lie side by side, else any.
        shortcut: What is added, of the outputs' shape; or nothing.
    """
    if not _is_faster(conv, inputs):
        return convolve(inputs, *shortcut)
    stride, padding = conv.stride[1], conv.padding[1]
    width = _outputs(conv, inputs.shape[3])
    step = max(width, -(-(inputs.shape[3] + padding) // stride))  # outputs from one image to the next
    row = len(inputs) * step * stride
    wide = convolve(_row(inputs, step * stride, row), *(_row(each, step, _outputs(conv, row)) for each in shortcut))
    return _images(wide, len(inputs), step, width).contiguous(memory_format=torch.channels_last)


def _is_faster(conv: Any, inputs: Tensor) -> bool:
    if not _WAITS or conv.weight.nbytes < _CACHE or conv.groups > 1:
        return False
    if inputs.ndim != 4 or not inputs.is_cpu or len(inputs) < 2:
        return False
    small = inputs.shape[3] > conv.padding[1] and _outputs(conv, inputs.shape[3]) <= _WIDEST
    return small and inputs.is_contiguous(memory_format=torch.channels_last)


def _outputs(conv: Any, width: int) -> int:
    """Columns that a convolution makes of some."""
    reach = conv.dilation[1] * (conv.kernel_size[1] - 1) + 1
    return int((width + 2 * conv.padding[1] - reach) // conv.stride[1] + 1)


def _row(images: Tensor, step: int, width: int) -> Tensor:
    """Images side by side, each so many columns after the one before, with zeros in between."""
    _, channels, height, columns = images.shape
    row = images.new_zeros(1, height, width, channels).permute(0, 3, 1, 2)
    _images(row, len(images), step, columns).copy_(images)
    return row


def _images(row: Tensor, count: int, step: int, width: int) -> Tensor:
    """The images in a row, a view of it."""
    _, channels, height, columns = row.shape
    return row.as_strided((count, channels, height, width), (step * channels, 1, columns * channels, channels))
