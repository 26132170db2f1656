"""A network in other formats, each loaded back and held against what PyTorch computes.

A TorchScript or ``torch.export`` file can bring code along: load only files of your own, or of someone you trust.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from blend.errors import BlendError, InputError, described, nearest
from blend.progress import say
from blend.pruned.onnx_export import ONNX, check_onnx, export_onnx
from blend.pruned.parity import difference, exporting

TORCHSCRIPT, PROGRAM = "network.torchscript.pt", "network.pt2"
_JIT: Any = torch.jit  # without types


@dataclass(frozen=True)
class Format:
    """One way to write a network.

    Attributes:
        file: Name of the file.
        write: Writes a network, in evaluation mode, for batches of any size, checks the file on some examples and
            returns the largest absolute difference of the outputs.
        check: Refuses where something for it is missing.
    """

    file: str
    write: Callable[[nn.Module, Tensor, Path], float]
    check: Callable[[], None] = lambda: None


def export_torchscript(network: nn.Module, inputs: Tensor, path: Path) -> float:
    """Writes a network as traced TorchScript, which needs no Python to run.

    Args:
        network: In evaluation mode.
        inputs: Some examples, at least two.
        path: Where to.

    Returns:
        The largest absolute difference of the outputs.

    Raises:
        BlendError: What the network does depends on the values or the size of its input, so that a trace is only true
            for one case; or it cannot be exported; or what was exported computes something else.
    """
    buffer = io.BytesIO()
    with exporting("TorchScript"), _quiet() as warned:
        _JIT.save(_JIT.trace(network, (inputs,), check_trace=False), buffer)
    for warning in warned:
        if issubclass(warning.category, _JIT.TracerWarning):
            raise BlendError(
                f"the network cannot be exported to TorchScript: what it does at {warning.filename}:{warning.lineno} "
                f"depends on its input, and a trace holds one case only: {str(warning.message).partition('. ')[0]}"
            )
    path.write_bytes(buffer.getvalue())
    with exporting("TorchScript"), _quiet():
        loaded = _JIT.load(path)
    return difference("TorchScript", loaded, network, inputs)


def export_program(network: nn.Module, inputs: Tensor, path: Path) -> float:
    """Writes a network as a program of ``torch.export``; arguments, result and errors as for TorchScript."""
    buffer = io.BytesIO()
    with exporting("torch.export"), _quiet():
        program = torch.export.export(network, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())
    with exporting("torch.export"), _quiet():
        loaded = torch.export.load(path).module()
    return difference("torch.export", loaded, network, inputs)


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "onnx": Format(ONNX, export_onnx, check_onnx),
        "torchscript": Format(TORCHSCRIPT, export_torchscript),
        "export": Format(PROGRAM, export_program),
    }
)


def parse_formats(text: str, *, onnx: bool = False) -> tuple[str, ...]:
    """The names of formats in a list with commas, each once.

    Raises:
        InputError: There is no such format.
    """
    names = [*(name.strip() for name in text.split(",") if name.strip()), *(["onnx"] if onnx else [])]
    for name in names:
        if name not in FORMATS:
            known = ", ".join(FORMATS)
            raise InputError(f"format must be one or more of {known}, got '{name}'{nearest(name, FORMATS)}")
    return tuple(dict.fromkeys(names))


def check_formats(names: Sequence[str]) -> None:
    """Refuses formats that cannot be written here, before any work is done for them.

    Raises:
        InputError: Saying what is missing.
    """
    for name in names:
        FORMATS[name].check()


def export(names: Sequence[str], network: nn.Module, inputs: Tensor, folder: Path) -> None:
    """Writes a network in some formats and says how near each comes.

    Raises:
        BlendError: One of them cannot be written, or computes something else.
    """
    for name in names:
        largest = FORMATS[name].write(network.eval(), inputs, folder / FORMATS[name].file)
        say(f"{FORMATS[name].file} differs from PyTorch by at most {largest:.1e}")


def try_formats(names: Sequence[str], network: nn.Module, inputs: Tensor) -> None:
    """Writes a network in some formats, one after the other, and keeps nothing: what fails is known at once.

    Raises:
        BlendError: One of them cannot be written, or computes something else.
    """
    for name in names:
        tried = copy.deepcopy(network).eval()
        try:
            with TemporaryDirectory() as folder:
                FORMATS[name].write(tried, inputs, Path(folder) / FORMATS[name].file)
        except OSError as error:
            raise BlendError(f"format '{name}' could not be tried in a temporary folder: {described(error)}") from error


@contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Keeps deprecations, and the code of programs that fail, off the screen; yields the warnings."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # A program that fails is printed to stderr, as far as it got.
        with redirect_stderr(io.StringIO()), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield warned
    finally:
        logger.setLevel(level)
