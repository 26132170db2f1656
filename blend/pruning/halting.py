"""Forward passes side by side that halt on the way, each in a greenlet.

Greenlets share a thread, and so what torch keeps for each thread. A forward that sets this for a while, as with
`torch.autocast`, would leave it to the passes beside it and put back what these have left. So every pass has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import greenlet
import torch
from torch import Tensor

_DEVICES = ("cpu", "cuda")


class HaltingPass:
    """A forward pass that has not begun yet.

    Args:
        network: Calls `halt` on its way.
    """

    def __init__(self, network: Callable[[Any], object]) -> None:
        self._greenlet = greenlet.greenlet(network)
        self._modes = _Modes.found()

    @property
    def ended(self) -> bool:
        """Whether it is through."""
        return bool(self._greenlet.dead)

    def go_on(self, value: Any) -> Any:
        """Leads it to where it halts next.

        Args:
            value: What the last `halt` returns in it; to begin with, the network's input.

        Returns:
            What it halts with; the network's output at the end.
        """
        with self._own_modes():
            return self._greenlet.switch(value)

    def end(self) -> None:
        """Gives it up where it halts; what its forward has opened is closed."""
        if self._greenlet:  # neither before it has begun nor when it is through is there anything to close
            with self._own_modes():
                self._greenlet.throw()

    @contextmanager
    def _own_modes(self) -> Iterator[None]:
        outside = _Modes.found()
        with torch.inference_mode(self._modes.inference):  # leaves gradient and inference mode as it has found them
            self._modes.set()
            try:
                yield
            finally:
                self._modes = _Modes.found()
        outside.set()


@contextmanager
def halting_passes(network: Callable[[Any], object], batches: Sequence[Tensor]) -> Iterator[list[HaltingPass]]:
    """As many passes as there are batches; those that are not through at the end are given up."""
    passes = [HaltingPass(network) for _ in batches]
    try:
        yield passes
    finally:
        for one in passes:
            one.end()


def may_halt() -> bool:
    """Whether this is a pass that somebody leads."""
    return greenlet.getcurrent().parent is not None


def halt(value: Any) -> Any:
    """Halts the pass with a value; returns what it goes on with."""
    return greenlet.getcurrent().parent.switch(value)


@dataclass(frozen=True)
class _Modes:
    """What torch keeps for the thread and a forward may change for a while.

    Attributes:
        inference: Whether this is inference mode.
        gradients: Whether they are recorded.
        cached: Whether autocast keeps what it has cast.
        autocast: For each type of device, whether it is on, and what it casts to.
    """

    inference: bool
    gradients: bool
    cached: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]

    @classmethod
    def found(cls) -> _Modes:
        """As they are."""
        return cls(
            torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_cache_enabled(),
            tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _DEVICES),
        )  # fmt: skip

    def set(self) -> None:
        """Puts them back, but for inference mode, which has no switch."""
        torch.set_grad_enabled(self.gradients)
        torch.set_autocast_cache_enabled(self.cached)
        for device, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
