"""What a run was asked to do: validated once, written once, never changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from blend.errors import InputError, nearest

MAX_SEED = 2**32 - 1
QUOTED = r"'(.*?)'"
DEFAULT_CRITERIA = (
    "l1", "l2", "fpgm", "bn_scale", "taylor_l1", "taylor_l2", "taylor_fo", "fisher", "mean_activation", "apoz", "hrank",
)  # fmt: skip
"""What is blended unless criteria are chosen: all that cost about one forward and backward pass; ``obd`` costs more."""


class SearchConfig(BaseModel):
    """The parameters of one search; each but ``directory``, where it was started, is an option of ``blend search``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    options: dict[str, str] = Field(default_factory=dict)
    reduction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    cost: Literal["macs", "params"] = "macs"
    allocation: Literal["global", "uniform"] = "global"
    encoding: Literal["cluster", "shared"] = "cluster"
    criteria: Annotated[tuple[str, ...], Field(min_length=1)] = DEFAULT_CRITERIA
    normalisation: Literal["rank", "minmax", "z"] = "rank"
    clusters: int | Literal["silhouette"] = 3
    clustering: Literal["agglomerative", "kmeans"] = "agglomerative"
    fitness: Literal["loss", "metric"] = "loss"
    population: Annotated[int, Field(ge=4)] = 16
    evaluations: Annotated[int, Field(ge=1)] = 600
    generations: Annotated[int, Field(ge=1)] | None = None
    random_search: bool = True
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    workers: Annotated[int, Field(ge=1)] = 1
    executor: Literal["local", "dask"] = "local"
    address: Annotated[str | None, Field(validate_default=True)] = None
    timeout: Annotated[float, Field(gt=0.0)] | None = None
    directory: str = Field(default_factory=lambda: str(Path.cwd()))
    recalibration_images: Annotated[int, Field(ge=0)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 64
    floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    ignore: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The task's name without the folders of a file."""
        return task_title(self.task)

    @field_validator("task")
    @classmethod
    def _findable_from_anywhere(cls, value: str) -> str:
        place, colon, function = value.rpartition(":")
        return f"{Path(place).expanduser().resolve()}:{function}" if colon and place.endswith(".py") else value

    @field_validator("address")
    @classmethod
    def _given_where_needed(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("executor") == "dask":
            raise ValueError("must be given with executor dask, like tcp://host:8786")
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
        case "float_parsing" | "float_type":
            return f"{name} must be a number, got {value!r}"
        case "greater_than" | "less_than" if name == "reduction":
            return f"reduction must be in (0, 1), got {value}"
        case "greater_than":
            return f"{name} must be greater than {limits['gt']:g}, got {value}"
        case "greater_than_equal":
            return f"{name} must be at least {limits['ge']:g}, got {value}"
        case _:
            return f"{name}: {problem['msg']}, got {value!r}"
