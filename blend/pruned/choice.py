"""Which channels of a task's network go by a criterion: a file's frozen scores, or a single criterion's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from blend.blended import BlendedCriterion
from blend.budget import ALLOCATIONS, COSTS, Cost, CostModel, Scores, floors, keep_mask, uniform
from blend.compensation.consumer_inputs import Grade
from blend.compensation.correction import GRADES
from blend.config import SearchConfig, search_config
from blend.errors import InputError, nearest
from blend.identity import weight_hash
from blend.problem import prepare
from blend.progress import say
from blend.pruned.exports import try_formats
from blend.pruned.latency import LatencyModel, fitted
from blend.pruned.layer_timing import checked_by_a_network, timed_passes
from blend.pruned.plan import ONE_STEP, Plan
from blend.pruned.rounding import rounded_keep_mask
from blend.pruned.step import EXAMPLES, Calibration
from blend.pruned.timing import batch_of
from blend.scoring import checked_graph, ignored_groups, loaded_task
from blend.task import Splits, Task
from criteria.graph import ChannelGraph, Keep


@dataclass(frozen=True)
class Request:
    """What ``blend prune`` was asked for; what is None is the criterion file's own, or the usual.

    Attributes:
        criterion: A criterion file, or the name of a criterion.
        task: As for a search.
        options: Passed to the task's function.
        reduction: The share of the cost to remove.
        cost: ``macs``, ``params`` or ``latency``.
        allocation: ``global``: one ranking of the scores. ``uniform``: the same share of each group.
        floor: Share of each group that always stays.
        min_channels: Channels of each group that always stay.
        round_to: The numbers of channels shall be multiples of it.
        ignore: Patterns of layers whose channels stay.
        recalibration_images: Calibration images that BatchNorm is re-estimated on.
        batch_size: Images per forward pass.
        device: What networks run on where gradients are needed: to be scored and to be trained.
        seed: Of a criterion that draws at random, and of the task.
        calibration_loss: What a criterion's gradients are of.
        compensate: How consumers are corrected, one of `blend.compensation.correction.GRADES`.
        formats: In which the network is written, too, of `blend.pruned.exports.FORMATS`.
        plan: In how many steps, and how the network is trained on.
    """

    criterion: str
    task: str
    options: Mapping[str, str]
    reduction: str | None = None
    cost: str | None = None
    allocation: str | None = None
    floor: str | None = None
    min_channels: int = 1
    round_to: int = 1
    ignore: tuple[str, ...] = ()
    recalibration_images: str = "256"
    batch_size: str = "64"
    device: str = "cpu"
    seed: str | None = None
    calibration_loss: str | None = None
    compensate: str | None = None
    formats: tuple[str, ...] = ()
    plan: Plan = ONE_STEP

    @property
    def by_file(self) -> bool:
        """Whether the criterion is a file: one that is there, or called like one."""
        return self.criterion.endswith(".json") or (
            not self.criterion.isidentifier() and Path(self.criterion).is_file()
        )

    def grade(self, otherwise: Grade = "none") -> Grade:
        """How consumers are corrected, if nothing was asked for otherwise."""
        return cast("Grade", self.compensate or otherwise)


@dataclass(frozen=True)
class Chosen:
    """What a criterion says of a task's network.

    Attributes:
        config: All that was asked for, validated.
        scores: Of the groups that may give channels, comparable across them.
        criterion: What the record says of the criterion.
        compensate: How consumers are corrected.
        cost: What the reduction is about; where it is latency, it was measured once.
    """

    config: SearchConfig
    task: Task
    splits: Splits
    graph: ChannelGraph
    scores: Scores
    criterion: dict[str, Any]
    compensate: Grade = "none"
    cost: Cost = field(kw_only=True)

    @property
    def calibration(self) -> Calibration:
        """What networks are mended by."""
        config = self.config
        return Calibration(self.splits.calibration.inputs, config.recalibration_images, config.batch_size)


def choose(request: Request) -> Chosen:
    """What the criterion that was asked for says of the task's network.

    Raises:
        InputError: Something given is wrong.
        BlendError: The network cannot be written in a format that was asked for.
    """
    for name, value in (("min-channels", request.min_channels), ("round-to", request.round_to)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if ":" in (request.reduction or ""):
        raise InputError(f"reduction must be a number in (0, 1), got '{request.reduction}'")  # ranges are for searches
    _check_among("cost", request.cost, (*COSTS, LatencyModel.kind))
    if request.cost == LatencyModel.kind and request.plan.steps > 1:
        raise InputError(
            f"iterative must be left out with cost 'latency', which is measured for one reduction, got "
            f"{request.plan.steps}"
        )
    _check_among("allocation", request.allocation, ALLOCATIONS)
    _check_among("compensate", request.compensate, GRADES)
    return by_file(request) if request.by_file else by_name(request)


def by_file(request: Request) -> Chosen:
    """The scores of a criterion file, frozen as they are.

    Raises:
        InputError: It belongs to another network, or cannot be read.
    """
    path = Path(request.criterion)
    file = BlendedCriterion.load(path)
    if request.allocation == "global" and file.allocation == "uniform":
        raise InputError(
            f"allocation must be 'uniform' with '{path.name}', which was searched with equal shares, so that its "
            "scores are not comparable across groups, got 'global'"
        )
    config = _config(request, file.allocation, file)
    task, splits = loaded_task(config)
    file.network.check_shapes({name: tuple(tensor.shape) for name, tensor in task.model.state_dict().items()})
    _try_formats(request, task, splits)
    graph = checked_graph(task, tuple(file.task.get("ignore", ())))
    frozen = file.frozen_scores(graph)
    if weight_hash(task.model) != file.network.weights:
        say("note: the network has other weights than the one that the criterion was searched on")
    alone = ignored_groups(task, graph, request.ignore)
    scores: Scores = {group: values for group, values in frozen.items() if group not in alone}
    scores = uniform(scores) if request.allocation == "uniform" else scores
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    about = {"file": path.name, "sha256": digest}
    grade, cost = request.grade(file.compensate), _cost(request, config, task, splits, graph)
    return Chosen(config, task, splits, graph, scores, about, grade, cost=cost)


def by_name(request: Request) -> Chosen:
    """The scores of a single criterion.

    Raises:
        InputError: There is no such criterion, or it cannot rank this network.
    """
    config = _config(request, "uniform")
    problem = prepare(config, check=partial(_try_formats, request))
    (name,) = problem.table.criteria
    found = {group: problem.table.get(name, group) for group in problem.clusters}
    scores: Scores = {group: values for group, values in found.items() if values is not None}
    if config.allocation == "uniform":
        scores = uniform(scores)
    elif missing := [group.name for group in problem.graph.groups if group.name not in scores]:
        raise InputError(
            f"allocation must be 'uniform' with criterion '{name}', which cannot rank '{missing[0]}', got 'global'"
        )
    task, splits, graph = problem.task, problem.splits, problem.graph
    cost = _cost(request, config, task, splits, graph)
    return Chosen(config, task, splits, graph, scores, {"name": name}, request.grade(), cost=cost)


def lowest(chosen: Chosen, request: Request) -> dict[str, int]:
    """The channels that stay in each group whatever their scores."""
    counts = floors(chosen.graph, chosen.config.floor)
    return {group.name: min(group.size, max(counts[group.name], request.min_channels)) for group in chosen.graph.groups}


def keep_at(reduction: float, chosen: Chosen, request: Request, cost: Cost, floor: Mapping[str, int]) -> Keep:
    """The channels that stay at a reduction, by some cost, with some floors.

    Raises:
        InputError: The reduction cannot be reached.
    """
    if not chosen.scores:
        raise InputError("ignore must leave something to prune; all groups are ignored")
    if request.round_to == 1:
        return keep_mask(chosen.graph, chosen.scores, reduction, cost, floor)
    return rounded_keep_mask(chosen.graph, chosen.scores, reduction, cost, floor, request.round_to)


def _config(request: Request, allocation: str, file: BlendedCriterion | None = None) -> SearchConfig:
    """Everything asked for, validated as for a search."""
    of_file = ("reduction", "cost", "floor", "calibration_loss", "seed")
    own: dict[str, Any] = {"criteria": (request.criterion,), "ignore": request.ignore}
    if file is not None:
        own = {key: getattr(file, key) for key in of_file}
    asked = {key: getattr(request, key) for key in of_file}
    given = {key: value for key, value in asked.items() if value is not None}
    values = {**own, **given}
    if request.cost == LatencyModel.kind:
        del values["cost"]  # a search's configuration knows no costs that have to be measured
    return search_config(
        task=request.task, options=dict(request.options), batch_size=request.batch_size,
        recalibration_images=request.recalibration_images, allocation=request.allocation or allocation,
        device=request.device, **values,
    )  # fmt: skip


def _cost(request: Request, config: SearchConfig, task: Task, splits: Splits, graph: ChannelGraph) -> Cost:
    """What the reduction is about; latency is measured here."""
    if request.cost != LatencyModel.kind:
        return CostModel(graph, config.cost)
    inputs = batch_of(splits.calibration.inputs, config.batch_size)
    passes = timed_passes(task.model, graph, inputs, config.seed)
    cost = fitted(graph, passes, config.batch_size, inputs.element_size())
    return checked_by_a_network(cost, task.model, inputs, config.reduction)


def _try_formats(request: Request, task: Task, splits: Splits) -> None:
    """What cannot be exported unpruned cannot be pruned, either, and better fails now than after hours."""
    try_formats(request.formats, task.model, splits.heldout.inputs[:EXAMPLES])


def _check_among(name: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise InputError(f"{name} must be one of {', '.join(known)}, got '{value}'{nearest(value, known)}")
