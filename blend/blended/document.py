"""The file format of ``*.blend.json``: plain JSON with a schema version and a checksum; files of older versions."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from blend.disk import durably
from blend.errors import InputError

SCHEMA_VERSION = 2
CHECKSUMMED = 2  # the first version with a checksum
Document = dict[str, Any]


def write(path: Path, document: Document) -> None:
    """Writes a document with its checksum, whole or not at all.

    Raises:
        InputError: If it cannot be written.
    """
    text = json.dumps({**document, "checksum": checksum(document)}, indent=1, allow_nan=False)
    write_whole(path, f"{text}\n".encode())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all.

    Raises:
        InputError: If it cannot be written.
    """
    if not path.name:
        raise InputError(f"cannot write '{path}': it must be a file, and is a folder")
    try:
        with durably(path, path.with_name(f".{os.getpid()}.draft")) as draft:
            draft.write_bytes(content)
    except OSError as error:
        reason = error.strerror or str(error)  # without the draft's name
        raise InputError(f"cannot write '{path}': {reason}") from error


def read(path: Path) -> Document:
    """Reads a document of this or an older version, as it would be in this one, without its checksum.

    Raises:
        InputError: If it cannot be read, is no JSON, is of a newer version, or is not what was written.
    """
    try:
        document: Any = json.loads(path.read_bytes(), parse_constant=_refuse_constant, parse_float=_finite)
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error}") from error
    except (ValueError, RecursionError) as error:
        raise not_one(path, f"document: invalid JSON, maybe cut off: {error}") from error
    if not isinstance(document, dict):
        raise not_one(path, f"document: must be an object, got {type(document).__name__}")
    version = document.get("schema_version")
    if type(version) is not int or version < 1:
        raise not_one(path, f"schema_version: must be a whole number from 1 to {SCHEMA_VERSION}, got {version!r}")
    if version > SCHEMA_VERSION:
        raise InputError(
            f"'{path}' has schema version {version}, and this version of blend knows those up to {SCHEMA_VERSION}: "
            "update it"
        )
    if version >= CHECKSUMMED:
        found = document.pop("checksum", None)
        if found != (expected := checksum(document)):
            raise InputError(
                f"'{path}' was changed after it was written: its checksum is {found!r}, its content's {expected}"
            )
    current: Document = document
    for migrate in _MIGRATIONS[version - 1 :]:
        current = migrate(current)
    return current


def not_one(path: Path, reason: str) -> InputError:
    """What to raise for a file that is no blended criterion."""
    return InputError(f"'{path}' is not a blended criterion: {reason}")


def checksum(document: Document) -> str:
    """SHA-256 of the document as ASCII JSON with sorted keys and without spaces."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is too large")
    return number


def _from_1(document: Document) -> Document:
    """Version 1 had no checksum, and parameters of criteria only inside of their names."""
    criteria = document.get("criteria")
    if isinstance(criteria, list):
        document["criteria"] = [{"parameters": {}} | c if isinstance(c, dict) else c for c in criteria]
    return {**document, "schema_version": 2}


_MIGRATIONS: list[Callable[[Document], Document]] = [_from_1]  # one for each version but the last
