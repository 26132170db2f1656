"""A network as ONNX, held against what PyTorch computes. Needs the extra ``onnx``, which is imported here alone."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from blend.errors import InputError
from blend.pruned.parity import difference, exporting

ONNX = "network.onnx"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_onnx() -> None:
    """Refuses to export where a package for it is missing.

    Raises:
        InputError: Naming it, and what to install.
    """
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise InputError(f"--onnx needs the package {package}; this package's extra 'onnx' installs it")


def export_onnx(network: nn.Module, inputs: Tensor, path: Path) -> float:
    """Writes a network as ONNX, for batches of any size, and runs it.

    Args:
        network: In evaluation mode.
        inputs: Some examples, at least two.
        path: Where to.

    Returns:
        The largest absolute difference of the outputs.

    Raises:
        BlendError: The network cannot be exported, or what was exported computes something else.
    """
    import onnxruntime

    with exporting("ONNX"), _quiet("torch.onnx"):
        torch.onnx.export(
            network, (inputs,), path, dynamo=True, verbose=False, external_data=False, dynamic_shapes=({0: "batch"},)
        )
    with exporting("ONNX"):  # not every precision has all operations there
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return difference("ONNX", lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), network, inputs)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keeps a library's warnings, about packages that are not needed, off the screen."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
