"""Functions on their way to other machines: what is large travels to each worker process once."""

import io
import pickle
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cloudpickle

from search.machine import kind
from search.worker import Unfit, attempted, failure

Fetch = Callable[[], bytes | memoryview]

HELD = 2
"""Cargos that a worker process keeps: of two searches on a cluster neither is to load everything anew at every turn."""
_held: dict[str, Any] = {}  # what this worker process was sent, the last used last


class Cargo(ABC):
    """Something large that functions refer to, the same for many of them, such as the data of a run."""

    @property
    @abstractmethod
    def key(self) -> str:
        """What tells it from all other cargo; nothing is sent anew while this stays the same."""

    @abstractmethod
    def pack(self) -> bytes:
        """Pickle of what takes its place in a worker."""


@dataclass(frozen=True)
class Parcel:
    """A pickled function.

    Attributes:
        pickled: The function, with the keys of its cargo in the place of the cargo.
        cargo: What it refers to, by key.
    """

    pickled: bytes
    cargo: Mapping[str, Cargo]


@dataclass(frozen=True)
class Reply:
    """What comes back from a worker on another machine.

    Attributes:
        outcome: As of `search.worker.attempted`; `Unfit`, too, if the function could not be put together.
        kind: Of the worker's processor.
    """

    outcome: Any
    kind: str


def parcel(function: Callable[..., Any]) -> Parcel:
    """Take a function apart: it, which may be another for every generation, and its cargo."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(function)
    return Parcel(file.getvalue(), packer.cargo)


def call(pickled: bytes, fetch: Mapping[str, Fetch], item: Any) -> Reply:
    """Put a function together in a worker and call it.

    Args:
        pickled: Of the parcel.
        fetch: How to get the cargo; called for what this process does not hold yet.
        item: Passed to the function.
    """
    try:
        for key, packed in fetch.items():
            _held[key] = _held.pop(key) if key in _held else pickle.loads(packed())
        for key in list(_held)[: -max(HELD, len(fetch))]:
            del _held[key]
        function = _Unpacker(io.BytesIO(pickled)).load()
    except Exception as error:  # noqa: BLE001 - told to whoever waits
        outcome: Any = Unfit(failure(error).reason)
    else:
        outcome = attempted(function, item)
    if isinstance(outcome, Unfit):
        outcome = Unfit(f"the worker on {platform.node()}: {outcome.reason}")
    return Reply(outcome, kind())


class _Packer(cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.cargo: dict[str, Cargo] = {}

    def persistent_id(self, thing: object) -> str | None:
        if not isinstance(thing, Cargo):
            return None
        self.cargo[thing.key] = thing
        return thing.key


class _Unpacker(pickle.Unpickler):
    def persistent_load(self, key: str) -> Any:
        return _held[key]
