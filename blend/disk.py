"""Files that take their names once they have reached the disk, so that not even a power cut leaves a part."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def durably(path: Path, draft: Path | None = None) -> Iterator[Path]:
    """Gives a draft to write, which takes the place of ``path`` when it has reached the disk.

    Args:
        path: The file that is to be.
        draft: In the same folder; named after the file if not given.
    """
    draft = path.with_name(f"{path.name}.draft") if draft is None else draft
    try:
        yield draft
        synced(draft)
        os.replace(draft, path)
        synced(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def synced(path: Path) -> None:
    """Returns when a file, or the names in a folder, have reached the disk; where folders can be synced."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)
