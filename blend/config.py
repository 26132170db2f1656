"""What a run was asked to do: validated once, written once, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from blend.errors import InputError

MAX_SEED = 2**32 - 1


class SearchConfig(BaseModel):
    """The parameters of one search; each is an option of ``blend search``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    options: dict[str, str] = Field(default_factory=dict)
    reduction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    cost: Literal["macs", "params"] = "macs"
    allocation: Literal["global", "uniform"] = "global"
    encoding: Literal["cluster", "shared"] = "cluster"
    criteria: tuple[str, ...] = ()
    normalisation: Literal["rank", "minmax", "z"] = "rank"
    clusters: Annotated[int, Field(ge=1)] | Literal["silhouette"] = 3
    clustering: Literal["agglomerative", "kmeans"] = "agglomerative"
    fitness: Literal["loss", "metric"] = "loss"
    population: Annotated[int, Field(ge=4)] = 16
    evaluations: Annotated[int, Field(ge=1)] = 600
    generations: Annotated[int, Field(ge=1)] | None = None
    random_search: bool = True
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    workers: Annotated[int, Field(ge=1)] = 1
    executor: Literal["local"] = "local"
    recalibration_images: Annotated[int, Field(ge=0)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 64
    floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    ignore: tuple[str, ...] = ()

    @field_validator("reduction", mode="before")
    @classmethod
    def _reduction_in_range(cls, value: Any) -> Any:
        if isinstance(value, float) and not 0.0 < value < 1.0:
            raise ValueError(f"must be in (0, 1), got {value:g}")
        return value


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
    name = str(problem["loc"][0]) if problem["loc"] else "configuration"
    if problem["type"] == "value_error":
        return f"{name} {problem['msg'].removeprefix('Value error, ')}"
    rule = problem["msg"].removeprefix("Input should be ")
    return f"{name} must be {rule}, got {problem['input']!r}"
