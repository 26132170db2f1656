"""The blended criterion as a file: formula, frozen scores, and the evidence, in plain JSON."""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator, model_validator
from torch import Tensor, nn

from blend.blended.document import checksum, not_one, read, write
from blend.blended.formula import Blender, GroupFormula
from blend.blended.records import BlendedGroup, CriterionRecord, MetricsPart, Strict, TaskPart
from blend.budget import CostModel, floors, keep_mask
from blend.errors import InputError, first_problem
from blend.identity import NetworkIdentity
from blend.pruning import PrunedNetwork
from criteria.graph import ChannelGraph, Keep
from criteria.registry import Criterion
from criteria.scores import ScoreTable


class NotCompensatedWarning(UserWarning):
    """A blend that was searched with compensation is used where nothing compensates."""


class BlendedCriterion(Strict):
    """A blended criterion: what ``*.blend.json`` holds, see `blend.blended.document`.

    It is read without this software as easily as with it, and loading it never runs code.
    """

    schema_version: Literal[2] = 2
    groups: Annotated[tuple[BlendedGroup, ...], Field(min_length=1)]
    normalisation: Literal["rank", "minmax", "z"]
    allocation: Literal["global", "uniform"]
    reduction: Annotated[float, Field(gt=0.0, lt=1.0)]
    cost: Literal["macs", "params"]
    floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    calibration_loss: Literal["task", "squared_norm", "divergence"] = "task"
    compensate: Literal["none", "channel", "patch"] = "none"
    criteria: tuple[CriterionRecord, ...]
    network: NetworkIdentity
    task: dict[str, Any]
    seed: int
    metrics: dict[str, Any]
    versions: dict[str, str]

    @field_validator("task")
    @classmethod
    def _task_is_readable(cls, task: dict[str, Any]) -> dict[str, Any]:
        TaskPart.model_validate(task)
        return task

    @field_validator("metrics")
    @classmethod
    def _metrics_are_readable(cls, metrics: dict[str, Any]) -> dict[str, Any]:
        MetricsPart.model_validate(metrics)
        return metrics

    @model_validator(mode="after")
    def _each_group_once(self) -> BlendedCriterion:
        names = [group.name for group in self.groups]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"group '{name}' must be there once, got it {names.count(name)} times")
        return self

    def save(self, path: str | Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
            InputError: If it cannot be written.
        """
        write(Path(path), json.loads(self.model_dump_json()))

    @classmethod
    def load(cls, path: str | Path) -> BlendedCriterion:
        """Reads a file of this or an older schema version.

        Raises:
            InputError: If it cannot be read, was changed after it was written, or breaks the schema, naming the first
                place.
        """
        document = read(Path(path))
        try:
            return cls.model_validate_json(json.dumps(document), strict=True)
        except ValidationError as error:
            raise not_one(Path(path), first_problem(error)) from error

    @classmethod
    def of(cls, criterion: BlendedCriterion | str | Path) -> BlendedCriterion:
        """A criterion as it is, or that of a file (`load`)."""
        return criterion if isinstance(criterion, BlendedCriterion) else cls.load(criterion)

    def frozen_scores(self, graph: ChannelGraph) -> dict[str, NDArray[np.float64]]:
        """The stored scores, per group of a network of the very same layout.

        Raises:
            InputError: If the layout differs, naming the first difference.
        """
        self.network.check_layout(graph)
        sizes = {group.name: group.size for group in graph.groups}
        for group in self.groups:
            if sizes.get(group.name) != group.size:
                raise InputError(f"group '{group.name}' has {group.size} scores, but {sizes.get(group.name)} channels")
        return {group.name: np.array(group.scores) for group in self.groups}

    def without_corrections(self) -> BlendedCriterion:
        """The blend as it was before polishing, with the evidence for that; itself if it was not polished."""
        if not any(group.corrections for group in self.groups):
            return self
        groups = (g.model_copy(update={"scores": g.own_scores, "corrections": ()}) for g in self.groups)
        rest = {key: value for key, value in self.metrics.items() if key != "polish"}
        baselines = [row for row in rest.get("baselines", []) if row["kind"] != "unpolished"]
        without = self.metrics.get("polish", {}).get("without", {})
        return self.model_copy(update={"groups": tuple(groups), "metrics": {**rest, "baselines": baselines, **without}})

    def recomputed_scores(self, table: ScoreTable) -> dict[str, NDArray[np.float64]]:
        """The formula applied to fresh scores: other weights, other data, another step of iterative pruning.

        Corrections are left out: they are about single channels of the network that was searched on.

        The network may have other widths: formulas are found by the groups' names.

        Raises:
            InputError: If there is none, because the scores were searched channel by channel; or the network has no
                such groups, or a criterion cannot rank them.
        """
        self.check_formula()
        for group in self.groups:
            if group.name not in table.groups:
                raise InputError(f"the network has no group '{group.name}', which the blend has a formula for")
        formula = {
            group.name: GroupFormula(tuple((c.criterion, c.factor) for c in group.candidates), group.offset)
            for group in self.groups
        }
        return Blender(table, self.normalisation).scores(formula)

    def warn_of_no_compensation(self) -> None:
        """Warns (`NotCompensatedWarning`) if it was searched with a compensation that is not done here."""
        if self.compensate != "none":
            warnings.warn(
                f"the blend was searched for networks that are compensated ({self.compensate}), which is not done "
                "here: it may keep far less than a blend that was searched with --compensate none",
                NotCompensatedWarning,
                stacklevel=3,
            )

    def check_formula(self) -> None:
        """Refuses a file whose scores were searched channel by channel, so that no criterion speaks.

        Raises:
            InputError: Naming the first such group.
        """
        for group in self.groups:
            if not group.candidates:
                raise InputError(
                    f"scores must be frozen: those of group '{group.name}' were searched channel by channel, so there "
                    "is no formula to apply to fresh ones"
                )

    def keep_mask(self, graph: ChannelGraph, reduction: float | None = None) -> Keep:
        """Which channels stay at a reduction (the searched one by default), by the frozen scores."""
        scores, cost = self.frozen_scores(graph), CostModel(graph, self.cost)
        return keep_mask(
            graph, scores, self.reduction if reduction is None else reduction, cost, floors(graph, self.floor)
        )

    def prune(
        self,
        model: nn.Module,
        example_input: Tensor,
        reduction: float | None = None,
        *,
        calibration: Tensor | None = None,
    ) -> nn.Module:
        """A physically smaller copy of a network.

        Args:
            model: The network, which is left as it is.
            example_input: A batch of at least one input, for tracing.
            reduction: Share of the cost to remove, by default the searched one.
            calibration: Inputs, shape (n, ...), without labels; about as many as the search recalibrated on (256). With
                them consumers are compensated as in the search (``compensate``) and BatchNorm is recalibrated; without,
                nothing is, and the network is to be recalibrated or trained further.

        Warns:
            OtherWeightsWarning: The scores were computed on other weights of this layout.
            NotCompensatedWarning: The search compensated, and there is no calibration data to do so.

        Raises:
            InputError: If the network has another layout, naming the first difference; or the calibration data are
                empty.
        """
        if calibration is not None and not len(calibration):
            raise InputError("calibration must hold at least one input, got none")
        graph = ChannelGraph.build(model, example_input, ignore=self.task.get("ignore", ()))
        keep = self.keep_mask(graph, reduction)
        self.network.warn_of_other_weights(model)
        if calibration is None:
            self.warn_of_no_compensation()
            return PrunedNetwork(model, graph).extract(keep)
        from blend.pruned.step import Calibration, compensated, recalibrated  # loading a file needs none of it

        images = Calibration(calibration, recalibration_images=len(calibration))
        corrected = compensated(model, graph, keep, images, self.compensate)
        return recalibrated(model, graph, keep, images, corrected)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a file of this version, as it is published in ``blend/schema``."""
    schema = BlendedCriterion.model_json_schema()
    schema["properties"]["checksum"] = {
        "type": "string",
        "pattern": "^sha256:[0-9a-f]{64}$",
        "description": checksum.__doc__,
    }
    schema["required"].append("checksum")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def library_versions(criteria: Iterable[Criterion] = ()) -> dict[str, str]:
    """Versions of what the result depends on: libraries, and the packages that criteria are from."""
    names = {"blend-pruning", "torch", "deap", "scikit-learn", "scipy", "numpy"}
    homes = {criterion.function.__module__.partition(".")[0] for criterion in criteria} - {"blend", "criteria"}
    if homes:
        packages = packages_distributions()
        names |= {name for home in homes for name in packages.get(home, ())}
    return {"python": platform.python_version(), **{name: version(name) for name in sorted(names)}}


def layer_names(graph: ChannelGraph) -> Mapping[str, tuple[str, ...]]:
    """Per group, all layers that produce its channels."""
    return {group.name: tuple(member.layer for member in group.producers) for group in graph.groups}
