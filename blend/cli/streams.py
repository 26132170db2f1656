"""The standard streams of the program, which may be closed when it starts, and go away while it runs."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def open_standard_streams() -> None:
    """Opens those that were closed when the program was started, and has what is told get lost rather than fail.

    What it opens next, such as a database, would be a closed one otherwise. What is written to such a stdout is an
    error; nobody misses what is told on such a stderr, nor on one whose terminal, reader or room on disk is gone.
    """
    for name, access, mode in (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_RDONLY, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(_nothing(access), mode))
    closed = sys.stderr is None
    told = _Told(_nothing(os.O_WRONLY) if closed else sys.stderr.fileno(), "w", closefd=False)
    encoding = None if closed else sys.stderr.encoding
    # Without a buffer: a signal's handler tells something, too, maybe while something is being written.
    sys.stderr = io.TextIOWrapper(told, encoding, "backslashreplace", write_through=True)


def _nothing(access: int) -> int:
    descriptor = os.open(os.devnull, access)
    os.set_inheritable(descriptor, True)  # workers want to have it, too
    return descriptor


class _Told(io.FileIO):
    """What cannot be written to it is lost; a search of hours does not end for that."""

    def write(self, data: Any) -> int:
        """Writes all of it, or as much as can be."""
        left = memoryview(data).cast("B")
        try:
            while left and (written := super().write(left)):
                left = left[written:]
        except OSError:
            pass
        return len(data)
