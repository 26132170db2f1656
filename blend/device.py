"""Where networks run: on the CPU, or on an accelerator that torch finds, such as a GPU."""

from __future__ import annotations

import copy
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blend.defaults import CPU
from blend.errors import InputError

_ROOM = 4  # data may take one part in so many of an accelerator's free memory
_held: list[int] = []  # locks that are this process' for as long as it lives


def device_count(name: str) -> int:
    """How many devices a name stands for: all of a kind, if it has no number; 0 if there are none."""
    kind, _, number = name.partition(":")
    try:
        found = int(_module(kind).device_count()) if _module(kind).is_available() else 0
        return int(int(number) < found) if number else found
    except (RuntimeError, AttributeError, ValueError):
        return 0


def check_device(name: str) -> None:
    """Refuses a device that is not there.

    Args:
        name: ``cpu``, or what torch calls an accelerator: ``cuda``, ``cuda:1``.

    Raises:
        InputError: Torch knows no such kind, was built without it, or finds too few of them.
    """
    if device_count(name):
        return
    kind, colon, _ = name.partition(":")
    if colon and (found := device_count(kind)):
        raise InputError(f"device must be one of the {found} that there are, from '{kind}:0' on, got '{name}'")
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    other = "; torch finds no accelerator here" if there is None else f" or '{there.type}' here"
    raise InputError(f"device must be 'cpu'{other}, got '{name}'")


@cache
def own_device(name: str) -> torch.device:
    """The device of this process: where there are several of a kind, one that no other process here has taken.

    Where there are more processes than devices, they share.
    """
    kind, _, number = name.partition(":")
    count = _module(kind).device_count()
    if kind == CPU or number or count <= 1:
        return torch.device(name)
    free = (index for index in range(count) if _taken(f"{kind}-{_identity(kind, index)}"))
    return torch.device(kind, next(free, os.getpid() % count))


def placed(network: nn.Module, device: torch.device | str) -> nn.Module:
    """A network on a device: itself where that is the CPU, else a copy."""
    return network if torch.device(device).type == CPU else copy.deepcopy(network).to(device)


@contextmanager
def visiting(network: nn.Module, device: str) -> Iterator[nn.Module]:
    """The same for a while: what passes through it have taken of an accelerator's memory is left to other processes."""
    try:
        yield placed(network, device)
    finally:
        give_back: Callable[[], None] = getattr(_module(device.partition(":")[0]), "empty_cache", lambda: None)
        give_back()


def on_cpu(judgement: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss or metric that is computed on the CPU, where its own tensors are, if any, wherever its arguments are."""

    @wraps(judgement)
    def judged(outputs: Tensor, targets: Tensor) -> Tensor:
        return judgement(outputs.cpu(), targets.cpu())

    return judged


def kept_on(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, if that has plenty of room for it; else as it is, to be moved in portions."""
    if device.type == "cuda" and tensor.nbytes > torch.cuda.mem_get_info(device)[0] / _ROOM:
        return tensor
    return tensor.to(device)


def _module(kind: str) -> Any:
    return torch.get_device_module(kind)


def _identity(kind: str, index: int) -> str:
    """What tells a device from the others of the machine, however those that a process sees are numbered."""
    properties = _module(kind).get_device_properties(index)
    return str(getattr(properties, "uuid", index))


def _taken(name: str) -> bool:
    """Takes a device for this process, unless another one has, or a lock of another user's tells nothing."""
    try:
        lock = os.open(Path(tempfile.gettempdir()) / f"blend-{name}.lock", os.O_RDONLY | os.O_CREAT, 0o644)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return False
    _held.append(lock)
    return True
