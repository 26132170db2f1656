"""What a long ``blend prune`` leaves behind until it is done, so that the same command goes on from there.

A hidden folder beside the one that is to be. Every state is a single safetensors file, with what is no tensor as JSON
in its header, which takes the place of the one before only once it is on disk.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from blend.disk import durably
from blend.errors import BlendError, InputError, Interrupted, described
from blend.progress import say
from blend.runs.signals import ending_by_signals

REQUEST, LOCK = "request.json", "lock"
State = tuple[dict[str, Tensor], dict[str, Any]]


class Unfinished:
    """The folder of one request.

    Args:
        out: The folder that is to be.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(f".{out.name}.unfinished")

    @contextmanager
    def held(self, request: Mapping[str, Any], *, wanted: bool) -> Iterator[None]:
        """Makes the folder, or finds it as the same request has left it, and keeps other processes out of it.

        Args:
            request: All that the result depends on, as JSON has it.
            wanted: Whether to make one at all.

        Raises:
            InputError: Another request has left something here, or its process is running.
            BlendError: It could not be written.
        """
        if not wanted and not self.folder.exists():
            yield
            return
        with self._mended():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / LOCK).open("w")
        left = False
        try:
            with lock:
                self._lock(lock)
                try:
                    self._check(json.loads(json.dumps(request)))
                    yield
                finally:
                    if not self.begun:
                        self.remove()
                        left = self.folder.exists()
        finally:
            if left:  # a network's file system keeps what is open, as the lock was
                self.remove()

    def _lock(self, lock: IO[str]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"'{self.out}' is being made by another process") from None
        except OSError as error:
            say(f"note: '{self.folder}' cannot be locked ({described(error)}): let nothing else make '{self.out}'")

    def _check(self, request: dict[str, Any]) -> None:
        path = self.folder / REQUEST
        if not path.exists() or not self.begun:
            with self._mended(), durably(path) as draft:
                draft.write_text(json.dumps(request, indent=1))
            return
        theirs = self._other(path)
        for name in {**request, **theirs}:
            if (here := request.get(name)) != (there := theirs.get(name)):
                raise InputError(
                    f"'{self.folder}' holds what another request has left unfinished, with {name} {there} in place of "
                    f"{here}; give that one again to go on with it, or remove the folder to begin anew"
                )

    def _other(self, path: Path) -> dict[str, Any]:
        """The request that has left something here."""
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise self._damaged(path, error) from error
        if not isinstance(found, dict):
            raise self._damaged(path, TypeError("it is no request"))
        return found

    def _damaged(self, path: Path, error: Exception) -> InputError:
        return InputError(f"'{path}' cannot be read ({described(error)}); remove '{self.folder}' to begin anew")

    def load(self, name: str) -> State | None:
        """A state; None if there is none.

        Raises:
            InputError: It cannot be read.
        """
        path = self._path(name)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads((file.metadata() or {})["state"])
                return {key: file.get_tensor(key) for key in file.keys()}, state  # noqa: SIM118 — not a mapping
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise self._damaged(path, error) from error

    def save(self, name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Writes a state in the place of the one before, whole or not at all.

        Raises:
            BlendError: It could not be written.
        """
        with self._mended(), durably(self._path(name)) as draft:
            save_file(dict(tensors), draft, metadata={"state": json.dumps(state)})

    def discard(self, name: str) -> None:
        """Removes a state, if it is there."""
        self._path(name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes everything, as far as it can be: it is finished, or cannot be gone on with."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def begun(self) -> bool:
        """Whether there is anything to go on with."""
        return any(self.folder.glob("*.safetensors"))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    @contextmanager
    def _mended(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:  # safetensors wraps what the disk says
            raise BlendError(
                f"'{self.folder}' could not be written: {described(error)}; what it held is still there, and the same "
                "command goes on from it"
            ) from error


@dataclass(frozen=True)
class Slot:
    """One state by its name, as a `blend.pruned.finetuning.Checkpoint`."""

    unfinished: Unfinished
    name: str

    def load(self) -> State | None:
        """What was saved last."""
        return self.unfinished.load(self.name)

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Takes the place of what was saved before."""
        self.unfinished.save(self.name, tensors, state)


@contextmanager
def interruptible(unfinished: Unfinished) -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM end what is inside, and says how to go on.

    Raises:
        Interrupted: That it was.
    """
    try:
        with ending_by_signals():
            yield
    except KeyboardInterrupt:
        kept = "the same command goes on from what is saved, the last whole epoch or step"
        how = kept if unfinished.begun else "nothing was begun and nothing is left"
        raise Interrupted(f"'{unfinished.out}' interrupted; {how}") from None
