"""Where trained networks and drawn images are kept between runs, and how a file comes to be there: whole or not."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Return the folder of cached files: the environment's BLEND_CACHE_DIR, or the user's cache folder."""
    return Path(os.environ.get("BLEND_CACHE_DIR") or platformdirs.user_cache_dir("blend"))


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary file beside ``path`` to write to, and move it there once the block has ended.

    Nobody ever sees half a file; when the block raises, ``path`` is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
