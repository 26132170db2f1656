"""The errors of the product: one base class, and one for bad input."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class BlendError(Exception):
    """A run failed. The message is one line; the command line exits with code 3."""


class InputError(BlendError, ValueError):
    """Something given by the user is wrong. The message is one line; the command line exits with code 2."""


class Interrupted(BlendError):
    """The run was stopped; what it has is saved. The command line exits with code 130."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest what a mistyped name was meant to be, to be appended to an error message.

    Args:
        name: the name that is not known.
        known: the names that are.

    Returns:
        For example ``"; did you mean 'digits'?"``, and ``""`` when nothing is near.
    """
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = [by_folded[match] for match in get_close_matches(name.casefold(), by_folded, n=3)]
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def first_problem(error: Any) -> str:
    """The first thing that pydantic found wrong with a document, as ``place: message``."""
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"]) or "document"
    return f"{place}: {problem['msg']}"


def described(error: BaseException) -> str:
    """Return the type and message of an exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}" if str(error) else type(error).__name__
