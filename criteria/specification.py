"""Names with parameters, as ``obd:probes=8``: reading them, checking them, and their one canonical form."""

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from criteria.errors import CriterionValueError

Value = int | float | bool | str
"""What a parameter can be."""

_LARGEST = float(np.finfo(np.float32).max)
_WORD = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class Rule:
    """What the value of a parameter has to be beyond its type, declared as ``Annotated[int, at_least(1)]``.

    Attributes:
        words: the rule, as the end of "must be …".
        holds: value → whether it keeps to it.
    """

    words: str
    holds: Callable[[Any], bool]


def at_least(low: float) -> Rule:
    """Numbers from ``low`` on."""
    return Rule(f"at least {low:g}", lambda value: value >= low)


def above(low: float) -> Rule:
    """Numbers greater than ``low``."""
    return Rule(f"above {low:g}", lambda value: value > low)


def share() -> Rule:
    """Numbers in [0, 1)."""
    return Rule("in [0, 1)", lambda value: 0 <= value < 1)


def one_of(names: Iterable[str]) -> Rule:
    """Words out of a list."""
    known = tuple(names)
    return Rule(f"one of {', '.join(known)}", lambda value: value in known)


def parse(specification: str) -> tuple[str, dict[str, str]]:
    """Take ``name:a=1:b=2`` apart.

    Returns:
        Name, and parameter → value as written.

    Raises:
        CriterionValueError: a part is not of the form ``parameter=value``, or a parameter is given twice.
    """
    name, *parts = specification.split(":")
    given: dict[str, str] = {}
    for part in parts:
        parameter, equals, value = part.partition("=")
        if not (equals and parameter and value):
            raise CriterionValueError(
                f"parameters of {name!r} must be given as 'name:parameter=value', got {specification!r}"
            )
        if parameter in given:
            raise CriterionValueError(f"parameter {parameter!r} of {name!r} must be given once, got {specification!r}")
        given[parameter] = value
    return name, given


def canonical(name: str, values: Mapping[str, Value], defaults: Mapping[str, Value]) -> str:
    """The one way to write a name with parameters: only those that differ from their defaults, sorted."""
    changed = {key: value for key, value in sorted(values.items()) if value != defaults[key]}
    return ":".join([name, *(f"{key}={_written(value)}" for key, value in changed.items())])


def typed(name: str, given: Mapping[str, str], defaults: Mapping[str, Value]) -> dict[str, Value]:
    """All parameters of ``name``: those given, in the type of their default, and the defaults of the others.

    Raises:
        CriterionValueError: there is no such parameter, or its value is of another type.
    """
    values = dict(defaults)
    for parameter, text in given.items():
        if parameter not in defaults:
            near = difflib.get_close_matches(parameter, defaults, n=1)
            known = f"one of {', '.join(defaults)}" if defaults else "none, for it has none"
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise CriterionValueError(f"parameter of {name!r} must be {known}, got {parameter!r}{hint}")
        values[parameter] = _read(f"{parameter!r} of {name!r}", text, type(defaults[parameter]))
    return values


def declared(name: str, function: Callable[..., Any]) -> dict[str, Value]:
    """The parameters of a function and their defaults: its keyword-only arguments.

    Raises:
        CriterionValueError: one has no default, or a default that is no int, float, bool or str.
    """
    defaults: dict[str, Value] = {}
    for argument in inspect.signature(function).parameters.values():
        if argument.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if type(argument.default) not in (int, float, bool, str):
            got = "none" if argument.default is inspect.Parameter.empty else repr(argument.default)
            rule = f"parameter {argument.name!r} of {name!r} must have a default that is an int, float, bool or str"
            raise CriterionValueError(f"{rule}, got {got}")
        defaults[argument.name] = argument.default
    return defaults


def declared_rules(function: Callable[..., Any]) -> dict[str, Rule]:
    """The rules for the parameters of a function, where there are any."""
    return {
        argument.name: rule
        for argument in inspect.signature(function).parameters.values()
        if argument.kind is inspect.Parameter.KEYWORD_ONLY
        for rule in getattr(_live(argument.annotation, function), "__metadata__", ())
        if isinstance(rule, Rule)
    }


def _live(annotation: Any, function: Callable[..., Any]) -> Any:
    """What an annotation says that ``from __future__ import annotations`` has kept as text, as far as it is known."""
    if not isinstance(annotation, str):
        return annotation
    with suppress(Exception):
        return eval(annotation, getattr(inspect.unwrap(function), "__globals__", {}))
    return None


def check(name: str, values: Mapping[str, Value], rules: Mapping[str, Rule]) -> None:
    """Refuse a value that breaks its parameter's rule.

    Raises:
        CriterionValueError: naming the first.
    """
    for parameter, rule in rules.items():
        if not rule.holds(values[parameter]):
            shown = repr(value) if isinstance(value := values[parameter], str) else _written(value)
            raise CriterionValueError(f"parameter {parameter!r} of {name!r} must be {rule.words}, got {shown}")


def _written(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(what: str, text: str, kind: type) -> Value:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value: Value = kind(text)
    except (KeyError, ValueError):
        rule = "true or false" if kind is bool else f"of type {kind.__name__}"
        raise CriterionValueError(f"parameter {what} must be {rule}, got {text!r}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise CriterionValueError(f"parameter {what} must be finite, got {text!r}")
    if isinstance(value, float) and abs(value) > _LARGEST:
        raise CriterionValueError(f"parameter {what} must be at most {_LARGEST:.3g} in size, got {text!r}")
    if isinstance(value, str) and not _WORD.fullmatch(value):
        raise CriterionValueError(f"parameter {what} must be letters, digits, '.', '+', '-' or '_', got {text!r}")
    return value
