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

from blend.errors import BlendError, InputError, described

ONNX = "network.onnx"
PARITY = 1e-4
"""Of what ONNX Runtime computes, relative to the largest output where that is above 1."""
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_onnx() -> None:
    """Refuses to export where a package for it is missing.

    Raises:
        InputError: Naming it, and what to install.
    """
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise InputError(f"--onnx needs the package {package}: pip install 'blend-pruning[onnx]'")


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

    try:
        with _quiet("torch.onnx"):
            torch.onnx.export(
                network, (inputs,), path, dynamo=True, verbose=False, external_data=False,
                dynamic_shapes=({0: "batch"},),
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise BlendError(f"the network cannot be exported to ONNX: {described(error)[:300]}") from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    fewer = inputs[: max(1, len(inputs) - 1)]  # another size than it was exported with
    with torch.no_grad():
        expected = network(fewer)
    outputs = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: fewer.numpy()})[0])
    difference = float((outputs - expected).abs().max())
    if not difference <= PARITY * max(1.0, float(expected.abs().max())):
        raise BlendError(f"the network exported to ONNX computes something else: outputs differ by {difference:.3g}")
    return difference


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
