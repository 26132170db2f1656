"""Find the function that a task's name stands for, and call it with options given as text."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from blend.errors import BlendError, InputError, described, nearest

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_KINDS: Mapping[type, tuple[str, Callable[[str], Any]]] = {
    bool: ("true or false", lambda text: _BOOLEANS[text.lower()]),
    int: ("a whole number", int),
    float: ("a number", float),
    Path: ("a path", Path),
    str: ("a text", str),
}


def find_function(spec: str) -> Callable[..., Any]:
    """Import the function of ``package.module:function`` or ``path/to/file.py:function``.

    A file becomes a module of a name that depends on its path only, registered like any other, so that networks
    whose classes it defines can be pickled; and its folder joins the import path, so that it can import its
    neighbours. For a package, the working folder joins it.

    Raises:
        InputError: no such file, module or function, or it failed to import.
    """
    place, _, name = spec.rpartition(":")
    is_file = place.endswith(".py") or os.sep in place
    module = _file_module(Path(place)) if is_file else _package_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise InputError(f"{place} has no function {name!r}{nearest(name, functions)}")
    found: Callable[..., Any] = function
    return found


def _file_module(path: Path) -> ModuleType:
    file = path.expanduser().resolve()
    if not file.is_file():
        raise InputError(f"the task file {path} does not exist")
    stem, digest = re.sub(r"\W", "_", file.stem), hashlib.sha256(str(file).encode()).hexdigest()
    name = f"blend_task_{stem}_{digest[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InputError(f"the task file {path} must be a Python file ending in .py")
    module = importlib.util.module_from_spec(spec)
    _extend_import_path(file.parent)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"the task file {path} failed to import: {described(error)}") from error
    return module


def _package_module(name: str) -> ModuleType:
    _extend_import_path(Path.cwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise InputError(f"the task module {name} failed to import: {described(error)}") from error


def _extend_import_path(folder: Path) -> None:
    """Put ``folder`` last, so that a neighbour called criteria.py or search.py does not shadow this software's."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def call(function: Callable[..., Any], task: str, options: Mapping[str, str], seed: int) -> Any:
    """Call a task's function with its options, converted by the types of its parameters.

    Args:
        function: takes the options as keyword arguments; a parameter ``seed`` that is not among them gets ``seed``.
        task: what messages call it.
        options: their values as text.
        seed: the run's.

    Raises:
        InputError: an unknown option, a value of the wrong type, an option missing, or the function raised.
    """
    parameters = inspect.signature(function).parameters
    arguments = _converted(function, task, options)
    if "seed" in parameters:
        arguments.setdefault("seed", seed)
    for name, parameter in parameters.items():
        variable = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if parameter.default is parameter.empty and not variable and name not in arguments:
            raise InputError(f"task {task} needs the option {name}: -o {name}=...")
    try:
        return function(**arguments)
    except BlendError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"task {task} failed: {described(error)}") from error


def _converted(function: Callable[..., Any], task: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Return the options as values of their parameters' types."""
    parameters = inspect.signature(function).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    try:
        hints = get_type_hints(function)
    except Exception:  # noqa: BLE001 - annotations that only a type checker can resolve: the defaults still tell
        hints = {}
    values: dict[str, Any] = {}
    for name, text in options.items():
        if name not in parameters and not open_ended:
            raise InputError(
                f"task {task} has no option {name!r}{nearest(name, parameters)}; "
                f"it takes {', '.join(parameters) or 'none'}"
            )
        default = parameters[name].default if name in parameters else ""
        values[name] = _value(f"option {name} of task {task}", text, hints.get(name, type(default)), default)
    return values


def _value(what: str, text: str, hint: Any, default: Any) -> Any:
    """Convert one option; a hint that says nothing gives way to the default's type, and that to text."""
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if NoneType in alternatives and text.lower() == "none":
        return None
    kind = next((known for known in (*alternatives, type(default)) if known in _KINDS), str)
    rule, convert = _KINDS[kind]
    try:
        return convert(text)
    except (ValueError, KeyError) as error:
        raise InputError(f"{what} must be {rule}, got {text!r}") from error
