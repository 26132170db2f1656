"""What a run was asked to do: validated once, written once, never changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from blend.defaults import CPU, DEFAULT_CRITERIA
from blend.errors import InputError, nearest
from blend.limits import Target, bytes_of, reductions_around, reductions_of, seconds_of

MAX_SEED = 2**32 - 1
QUOTED = r"'(.*?)'"
ADDRESSES = {"dask": "tcp://host:8786", "ray": "host:6379"}
"""How those of clusters look, by executor."""
TIMED_EVALUATIONS = 100_000
"""At most so many candidates where a time is given and their number is not."""


class SearchConfig(BaseModel):
    """The parameters of one search: the options of ``blend search``, and ``directory``, where it was started.

    ``--reduction A:B`` gives ``reductions``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    options: dict[str, str] = Field(default_factory=dict)
    reduction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    reductions: tuple[float, float] | None = None
    cost: Literal["macs", "params"] = "macs"
    calibration_loss: Literal["task", "squared_norm", "divergence"] = "task"
    allocation: Literal["global", "uniform"] = "global"
    encoding: Literal["cluster", "shared", "direct", "allocation", "mask"] = "cluster"
    signed: bool = False
    base: str | None = None
    criteria: Annotated[tuple[str, ...], Field(min_length=1)] = DEFAULT_CRITERIA
    normalisation: Literal["rank", "minmax", "z"] = "rank"
    clusters: int | Literal["silhouette"] = 3
    clustering: Literal["agglomerative", "kmeans"] = "agglomerative"
    fitness: Literal["loss", "metric"] = "loss"
    strategy: Annotated[
        Literal["ga", "aging", "cma", "greedy", "swap", "nsga2", "random"], Field(validate_default=True)
    ] = "ga"
    population: Annotated[int, Field(ge=4)] = 16
    evaluations: Annotated[int, Field(ge=1)] = 600
    polish: Annotated[int, Field(ge=0)] = 0
    generations: Annotated[int, Field(ge=1)] | None = None
    time: float | None = None
    target: str | None = None
    patience: Annotated[int, Field(ge=1)] | None = None
    racing: bool = True
    device: str = CPU
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    random_search: bool = True
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    workers: Annotated[int, Field(ge=1)] = 1
    executor: Literal["local", "dask", "ray"] = "local"
    address: Annotated[str | None, Field(validate_default=True)] = None
    timeout: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    cache_memory: int = 2**30
    directory: str = Field(default_factory=lambda: str(Path.cwd()))
    compensate: Literal["none", "channel", "patch"] = "none"
    recalibration_images: Annotated[int, Field(ge=0)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 64
    floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    ignore: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The task's name without the folders of a file."""
        return task_title(self.task)

    @property
    def shown(self) -> tuple[float, ...]:
        """The reductions at which blends are compared and exported: the one asked for, or five over the range."""
        if self.reductions is None:
            return (self.reduction,)
        (low, high), middle = self.reductions, self.reduction
        return low, round((low + middle) / 2, 6), middle, round((middle + high) / 2, 6), high

    @property
    def is_timed(self) -> bool:
        """Whether time is given in the place of a number of evaluations."""
        return self.time is not None and self.evaluations == TIMED_EVALUATIONS

    @property
    def cache_share(self) -> int:
        """What each worker may keep, in bytes; how many a cluster has, nobody can tell."""
        return self.cache_memory // (self.workers if self.executor == "local" else 1)

    def moved(self, **elsewhere: Any) -> SearchConfig:
        """The same with other workers, in number or place, timeout or cache memory; what is None stays as it is.

        Raises:
            InputError: If that breaks a rule.
        """
        given = {name: value for name, value in elsewhere.items() if value is not None}
        if given.get("executor", self.executor) != self.executor:
            given.setdefault("address", None)  # the old one is of no use there
        check_workers(given.get("workers"), given.get("executor", self.executor))
        return search_config(**{**self.model_dump(), **given})

    @field_validator("task")
    @classmethod
    def _findable_from_anywhere(cls, value: str) -> str:
        place, colon, function = value.rpartition(":")
        return f"{Path(place).expanduser().resolve()}:{function}" if colon and place.endswith(".py") else value

    @model_validator(mode="before")
    @classmethod
    def _as_long_as_there_is_time(cls, values: Any) -> Any:
        timed = isinstance(values, dict) and values.get("time") is not None
        return {"evaluations": TIMED_EVALUATIONS, **values} if timed else values

    @model_validator(mode="before")
    @classmethod
    def _with_a_range(cls, values: Any) -> Any:
        """What breaks a rule stays as it is, to be refused by the field's own."""
        if not isinstance(values, dict) or values.get("reductions") is not None:
            return values
        given = values.get("reduction", 0.5)
        with suppress(ValueError, TypeError):
            if ":" in str(given):
                low, high = reductions_of(given)
                return {**values, "reductions": (low, high), "reduction": round((low + high) / 2, 6)}
            if values.get("strategy") == "nsga2":
                return {**values, "reductions": reductions_around(float(given))}
        return values

    @field_validator("reduction", mode="before")
    @classmethod
    def _a_number_or_a_range(cls, value: Any) -> Any:
        if ":" in str(value):
            reductions_of(value)
        return value

    @field_validator("reductions")
    @classmethod
    def _a_range(cls, value: tuple[float, float] | None, given: ValidationInfo) -> tuple[float, float] | None:
        if value is not None and "reduction" in given.data:
            low, high = reductions_of(f"{value[0]}:{value[1]}")
            if not low < given.data["reduction"] < high:
                raise ValueError(f"must hold the reduction {given.data['reduction']:g}, got {low:g}:{high:g}")
        return value

    @field_validator("time", mode="before")
    @classmethod
    def _in_seconds(cls, value: Any) -> Any:
        return None if value is None else seconds_of(value)

    @field_validator("cache_memory", mode="before")
    @classmethod
    def _in_bytes(cls, value: Any) -> Any:
        return bytes_of(value)

    @field_validator("target", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return None if value is None else str(Target.parse(value))

    @field_validator("address")
    @classmethod
    def _given_where_needed(cls, value: str | None, info: ValidationInfo) -> str | None:
        executor = info.data.get("executor")
        if value is None and executor in ADDRESSES:
            raise ValueError(f"must be given with executor {executor}, like {ADDRESSES[executor]}")
        if value is not None and executor == "local":
            raise ValueError(f"must be used with executor {' or '.join(ADDRESSES)}, got {value!r} with 'local'")
        return value

    @field_validator("device")
    @classmethod
    def _well_formed(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z]+(:\d+)?", value) or value.startswith("cpu:"):
            raise ValueError(f"must be cpu, or an accelerator's kind, maybe with a number, like cuda:1, got {value!r}")
        return value

    @field_validator("cost", mode="before")
    @classmethod
    def _countable(cls, value: Any) -> Any:
        if value == "latency":
            raise ValueError(
                "must be 'macs' or 'params' here, got 'latency', which is measured anew each time: "
                "`blend prune FILE TASK --cost latency` applies a criterion under it"
            )
        return value

    @field_validator("clusters", mode="before")
    @classmethod
    def _number_or_silhouette(cls, value: Any) -> Any:
        try:
            number = int(value)
        except ValueError:
            number = 0
        if value != "silhouette" and number < 1:
            raise ValueError(f"must be a number of at least 1 or 'silhouette', got {value!r}")
        return number or value

    @field_validator("polish")
    @classmethod
    def _leaves_something_to_search(cls, value: int, given: ValidationInfo) -> int:
        if value and given.data.get("strategy") == "nsga2":
            raise ValueError(f"must be 0 with strategy 'nsga2', as a front is not one blend to polish, got {value}")
        if value >= (evaluations := given.data.get("evaluations", value + 1)):
            raise ValueError(f"must be less than evaluations ({evaluations}), of which it is a part, got {value}")
        return value

    @field_validator("encoding")
    @classmethod
    def _something_to_search(cls, value: str, given: ValidationInfo) -> str:
        if value == "allocation" and given.data.get("allocation") == "uniform":
            raise ValueError("'allocation' must be used with allocation 'global': equal shares leave nothing to search")
        return value

    @field_validator("signed", "base")
    @classmethod
    def _of_its_encoding(cls, value: Any, given: ValidationInfo) -> Any:
        encoding = {"signed": "direct", "base": "allocation"}[given.field_name or ""]
        if value and given.data.get("encoding", encoding) != encoding:
            raise ValueError(f"must be used with encoding '{encoding}', got {value!r} with '{given.data['encoding']}'")
        return value

    @field_validator("strategy")
    @classmethod
    def _has_what_to_exchange(cls, value: str, given: ValidationInfo) -> str:
        if value == "swap" and given.data.get("encoding", "mask") != "mask":
            raise ValueError(f"'swap' must be used with encoding 'mask', got '{given.data['encoding']}'")
        return value

    @field_validator("strategy")
    @classmethod
    def _that_can_search_a_range(cls, value: str, given: ValidationInfo) -> str:
        if given.data.get("reductions") is not None and value != "nsga2":
            raise ValueError(f"must be 'nsga2' for a range of reductions, got '{value}'")
        return value

    @field_validator("target")
    @classmethod
    def _of_a_single_blend(cls, value: str | None, given: ValidationInfo) -> str | None:
        if value is not None and given.data.get("strategy") == "nsga2":
            raise ValueError(f"must be left out with strategy 'nsga2', as a front has no single best, got {value}")
        return value

    @field_validator("criteria")
    @classmethod
    def _with_the_base(cls, names: tuple[str, ...], given: ValidationInfo) -> tuple[str, ...]:
        if (base := given.data.get("base")) and base not in names:
            raise ValueError(f"must hold the base '{base}', got {','.join(names)}")
        return names

    @field_validator("criteria")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"must be different from one another, got '{name}' twice")
        return names


def task_title(task: str) -> str:
    """What reports call a task: ``file:function`` for ``path/to/file.py:function``, else its name as it is."""
    place, _, function = task.rpartition(":")
    return f"{Path(place).stem}:{function}" if place.endswith(".py") else task


def check_workers(asked: object, executor: object) -> None:
    """Refuses a number of workers where a cluster has its own.

    Raises:
        InputError: Saying so.
    """
    if asked is not None and executor in ("dask", "ray"):
        raise InputError(f"workers must be left out with executor {executor}, whose cluster has its own, got {asked}")


def search_config(**values: Any) -> SearchConfig:
    """Builds a configuration.

    Raises:
        InputError: Naming the first parameter that breaks its rule, the rule and the value.
    """
    try:
        return SearchConfig(**values)
    except ValidationError as error:
        raise InputError(_first_problem(error)) from error


def parse_options(pairs: Sequence[str]) -> dict[str, str]:
    """Turns ``key=value`` pairs into a dictionary.

    Raises:
        InputError: If a pair has no ``=`` or a key comes twice.
    """
    options: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"option must look like key=value, got '{pair}'")
        if key in options:
            raise InputError(f"option '{key}' was given twice")
        options[key] = value
    return options


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    name, value, limits = str(problem["loc"][0]), problem["input"], problem.get("ctx", {})
    match problem["type"]:
        case "value_error":
            return f"{name} {problem['msg'].removeprefix('Value error, ')}"
        case "missing":
            return f"{name} must be given"
        case "extra_forbidden":
            return f"there is no parameter '{name}'{nearest(name, SearchConfig.model_fields)}"
        case "literal_error":
            expected = limits["expected"]
            return f"{name} must be {expected}, got {value!r}{nearest(str(value), re.findall(QUOTED, expected))}"
        case "int_parsing" | "int_type" | "int_from_float":
            return f"{name} must be a whole number, got {value!r}"
        case "float_parsing" | "float_type" | "finite_number":
            return f"{name} must be a number, got {value!r}"
        case "greater_than" | "less_than" if name == "reduction":
            return f"reduction must be in (0, 1), got {value}"
        case "greater_than":
            return f"{name} must be greater than {limits['gt']:g}, got {value}"
        case "greater_than_equal":
            return f"{name} must be at least {limits['ge']:g}, got {value}"
        case "less_than":
            return f"{name} must be less than {limits['lt']:g}, got {value}"
        case "less_than_equal":
            return f"{name} must be at most {limits['le']}, got {value}"
        case "too_short":
            return f"{name} must name at least {limits['min_length']}, got none"
        case _:
            return f"{name}: {problem['msg']}, got {value!r}"
