"""Transforms of scores before one ranking over all groups, as they are chosen on a command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from blend.budget import CostModel, Scores
from blend.errors import InputError, first_problem, nearest
from criteria.errors import CriterionError
from criteria.graph import ChannelGraph
from criteria.specification import at_least, canonical, check, parse, typed
from criteria.transforms import affine, balanced, resource_aware

TRANSFORMS = ("none", "balanced", "resource_aware", "affine")
_STRENGTH = {"strength": 1.0}


class Line(BaseModel):
    """What `affine` does to the scores of one group.

    Attributes:
        scale: what they are multiplied by.
        shift: what is added to them then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    shift: Annotated[float, Field(allow_inf_nan=False)] = 0.0


@dataclass(frozen=True)
class Transform:
    """One of `TRANSFORMS`, with its parameters.

    Attributes:
        name: as reports show it, with the parameters that are not the defaults.
        strength: of `resource_aware`.
        lines: group → what `affine` does to it; nothing to those that are left out.
    """

    name: str = "none"
    strength: float = 0.0
    lines: Mapping[str, Line] = field(default_factory=dict)

    def __call__(self, scores: Scores, costs: Mapping[str, float]) -> Scores:
        """Transformed scores of each group.

        Args:
            scores: group → scores.
            costs: group → its cost, for `resource_aware`.

        Raises:
            CriterionValueError: These scores cannot be transformed.
        """
        match self.name.partition(":")[0]:
            case "balanced":
                return balanced(scores)
            case "resource_aware":
                return resource_aware(scores, {group: costs[group] for group in scores}, strength=self.strength)
            case "affine":
                lines = {group: self.lines.get(group, Line()) for group in scores}
                scales = {group: line.scale for group, line in lines.items()}
                return affine(scores, scales, {group: line.shift for group, line in lines.items()})
            case _:
                return scores

    def check_allocation(self, allocation: str) -> None:
        """Refuses an allocation that does not rank groups against each other.

        Raises:
            InputError: Saying which one would do.
        """
        if self.name != "none" and allocation != "global":
            raise InputError(
                f"transform '{self.name}' changes nothing with allocation '{allocation}', where every group gives the "
                f"same share: use allocation 'global'"
            )

    def check_groups(self, graph: ChannelGraph) -> None:
        """Refuses lines for groups that the network does not have.

        Raises:
            InputError: Naming the first one.
        """
        names = [group.name for group in graph.groups]
        if unknown := [name for name in self.lines if name not in names]:
            raise InputError(f"the network has no group '{unknown[0]}' to transform{nearest(unknown[0], names)}")


def parse_transform(text: str) -> Transform:
    """Reads ``balanced``, ``resource_aware:strength=2`` or ``affine:file=FILE.json``.

    The file holds an object, ``{"group": {"scale": 2.0, "shift": 0.1}}``; what is left out of it is scaled by 1 and
    shifted by 0.

    Raises:
        InputError: There is no such transform or parameter, or the file cannot be used.
    """
    with _as_input_error():
        name, given = parse(text)
        if name not in TRANSFORMS:
            known = ", ".join(TRANSFORMS)
            raise InputError(f"transform must be one of {known}, got '{name}'{nearest(name, TRANSFORMS)}")
        if name == "affine":
            if set(given) != {"file"}:
                raise InputError(f"transform 'affine' must be given its lines as affine:file=FILE.json, got '{text}'")
            return Transform(text, lines=_lines(Path(given["file"])))
        defaults = _STRENGTH if name == "resource_aware" else {}
        values = typed(name, given, defaults)
        check(name, values, {parameter: at_least(0) for parameter in defaults})
        return Transform(canonical(name, values, defaults), float(values.get("strength", 0.0)))


def group_costs(graph: ChannelGraph, cost: CostModel) -> dict[str, float]:
    """What the network would cost less without any channel of a group: its own layers, and what reads them."""
    costs = {}
    for name, where in graph.slices.items():
        keep = np.ones(len(graph), dtype=bool)
        keep[where] = False
        costs[name] = float(cost.full - cost(keep))
    return costs


def _lines(path: Path) -> dict[str, Line]:
    try:
        return TypeAdapter(dict[str, Line]).validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"transform 'affine' cannot read '{path}': {error.strerror}") from error
    except ValidationError as error:
        raise InputError(f"'{path}' does not hold lines for groups: {first_problem(error)}") from error


@contextmanager
def _as_input_error() -> Iterator[None]:
    try:
        yield
    except CriterionError as error:
        raise InputError(str(error)) from error
