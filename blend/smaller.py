"""``blend prune``: from a criterion and a task to a physically smaller network on disk."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from blend.blended import BlendedCriterion, NetworkIdentity, library_versions
from blend.budget import ALLOCATIONS, CostModel, Scores, floors, keep_mask, uniform
from blend.config import SearchConfig, search_config
from blend.errors import BlendError, InputError, nearest
from blend.inference import InferenceNetwork, portions
from blend.problem import checked_graph, ignored_groups, loaded_task, prepare, weight_hash
from blend.progress import say
from blend.pruning import PrunedNetwork, single_thread
from blend.rounding import rounded_keep_mask
from blend.saved import (
    RECORD,
    WEIGHTS,
    PruningRecord,
    check_free_folder,
    cuts,
    load_pruned,
    new_folder,
    plain_tensors,
    removed_channels,
    write_weights,
)
from blend.task import Split, Splits, Task
from criteria.graph import ChannelGraph, Keep

EXAMPLES = 8  # on which what was written is held against what was meant


@dataclass(frozen=True)
class Request:
    """What ``blend prune`` was asked for; what is None is the criterion file's own, or the usual.

    Attributes:
        criterion: A criterion file (``*.json``), or the name of a criterion.
        task: As for a search.
        options: Passed to the task's function.
        reduction: The share of the cost to remove.
        cost: ``macs`` or ``params``.
        allocation: ``global``: one ranking of the scores. ``uniform``: the same share of each group.
        floor: Share of each group that always stays.
        min_channels: Channels of each group that always stay.
        round_to: The numbers of channels shall be multiples of it.
        ignore: Patterns of layers whose channels stay.
        recalibration_images: Calibration images that BatchNorm is re-estimated on.
        batch_size: Images per forward pass.
        seed: Of a criterion that draws at random, and of the task.
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
    seed: str = "0"


@dataclass(frozen=True)
class Chosen:
    """What a criterion says of a task's network.

    Attributes:
        config: All that was asked for, validated.
        scores: Of the groups that may give channels, comparable across them.
        criterion: What the record says of the criterion.
    """

    config: SearchConfig
    task: Task
    splits: Splits
    graph: ChannelGraph
    scores: Scores
    criterion: dict[str, Any]


def prune_to_folder(request: Request, folder: Path) -> PruningRecord:
    """Prunes a task's network and saves it, whole or not at all.

    Args:
        request: What was asked for.
        folder: Where to; must not exist yet.

    Raises:
        InputError: Something given is wrong.
        BlendError: It could not be written, or what was written is not what was meant.
    """
    check_free_folder(folder)
    _check_counts(request)
    chosen = by_file(request) if request.criterion.endswith(".json") else by_name(request)
    config, graph = chosen.config, chosen.graph
    keep = chosen_keep(chosen, request)
    with new_folder(folder) as draft:
        stages = [stage("unpruned", chosen, chosen.task.model, np.ones_like(keep))]
        stages[0]["bytes"] = len(save(plain_tensors(chosen.task.model)))
        network = recalibrated(chosen, keep)
        stages += [stage("pruned", chosen, network, keep)]
        stages[-1]["bytes"] = write_weights(network, graph.fingerprint, draft / WEIGHTS)
        record = PruningRecord(
            groups=removed_channels(graph, keep),
            cuts=cuts(graph, keep),
            network=NetworkIdentity(
                layout=graph.fingerprint, weights=weight_hash(chosen.task.model), shapes=graph.shapes
            ),
            criterion=chosen.criterion,
            pruning={
                "reduction": config.reduction, "achieved": CostModel(graph, config.cost).reduction(keep),
                "cost": config.cost, "allocation": config.allocation, "floor": config.floor,
                "min_channels": request.min_channels, "round_to": request.round_to, "ignore": list(request.ignore),
                "recalibration_images": config.recalibration_images,
            },
            stages=tuple(stages),
            task={"name": chosen.task.name, "options": config.options, "seed": config.seed},
            versions=library_versions(),
        )  # fmt: skip
        (draft / RECORD).write_text(record.model_dump_json(indent=1) + "\n")
        _check_written(draft, chosen, network)
    return record


def by_file(request: Request) -> Chosen:
    """The scores of a criterion file, frozen as they are.

    Raises:
        InputError: It belongs to another network, or cannot be read.
    """
    path = Path(request.criterion)
    file = BlendedCriterion.load(path)
    config = _config(request, file.allocation, file)
    task, splits = loaded_task(config)
    file.check_shapes({name: tuple(tensor.shape) for name, tensor in task.model.state_dict().items()})
    graph = checked_graph(task, tuple(file.task.get("ignore", ())))
    frozen = file.frozen_scores(graph)
    if weight_hash(task.model) != file.network.weights:
        say("note: the network has other weights than the one that the criterion was searched on")
    alone = ignored_groups(task, graph, request.ignore)
    scores: Scores = {group: values for group, values in frozen.items() if group not in alone}
    scores = uniform(scores) if request.allocation == "uniform" else scores
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Chosen(config, task, splits, graph, scores, {"file": path.name, "sha256": digest})


def by_name(request: Request) -> Chosen:
    """The scores of a single criterion.

    Raises:
        InputError: There is no such criterion, or it cannot rank this network.
    """
    config = _config(request, "uniform")
    problem = prepare(config)
    name = config.criteria[0]
    found = {group: problem.table.get(name, group) for group in problem.clusters}
    scores: Scores = {group: values for group, values in found.items() if values is not None}
    if config.allocation == "uniform":
        scores = uniform(scores)
    elif missing := [group.name for group in problem.graph.groups if group.name not in scores]:
        raise InputError(
            f"allocation must be 'uniform' with criterion '{name}', which cannot rank '{missing[0]}', got 'global'"
        )
    return Chosen(config, problem.task, problem.splits, problem.graph, scores, {"name": name})


def chosen_keep(chosen: Chosen, request: Request) -> Keep:
    """The channels that stay.

    Raises:
        InputError: The reduction cannot be reached.
    """
    config, graph = chosen.config, chosen.graph
    if not chosen.scores:
        raise InputError("ignore must leave something to prune; all groups are ignored")
    floor = {
        name: min(group.size, max(count, request.min_channels))
        for group, (name, count) in zip(graph.groups, floors(graph, config.floor).items(), strict=True)
    }
    cost = CostModel(graph, config.cost)
    if request.round_to == 1:
        return keep_mask(graph, chosen.scores, config.reduction, cost, floor)
    return rounded_keep_mask(graph, chosen.scores, config.reduction, cost, floor, request.round_to)


def recalibrated(chosen: Chosen, keep: Keep) -> nn.Module:
    """The pruned network, its BatchNorms with the statistics of all recalibration images taken as one batch."""
    config, model = chosen.config, chosen.task.model
    images = chosen.splits.calibration.inputs[: config.recalibration_images]
    with single_thread(), torch.no_grad():
        judged = InferenceNetwork(model, chosen.graph, chosen.splits.calibration.inputs[:EXAMPLES])
        judged.prune(keep, portions(images, config.batch_size))
        network = PrunedNetwork(model, chosen.graph).extract(keep)
        network.load_state_dict(judged.statistics(), strict=False)
    return network


def stage(title: str, chosen: Chosen, network: nn.Module, keep: Keep) -> dict[str, Any]:
    """Costs and held-out results of one of the networks on the way."""
    loss, metric = heldout(network, chosen.task, chosen.splits.heldout, chosen.config.batch_size)
    return {
        "stage": title,
        "macs": CostModel(chosen.graph)(keep),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "heldout_loss": loss,
        "heldout_metric": metric,
    }


def heldout(network: nn.Module, task: Task, split: Split, batch_size: int) -> tuple[float, float]:
    """Mean loss and metric of a network on a split."""
    losses, values = 0.0, 0.0
    training = {module: module.training for module in network.modules()}
    with single_thread(), torch.no_grad():
        network.eval()
        for inputs, targets in split.batches(batch_size):
            outputs = network(inputs)
            losses += float(task.loss(outputs, targets)) * len(inputs)
            values += float(task.metric(outputs, targets).double().sum())
    for module, mode in training.items():
        module.training = mode
    return losses / len(split), values / len(split)


def _config(request: Request, allocation: str, file: BlendedCriterion | None = None) -> SearchConfig:
    """Everything asked for, validated as for a search."""
    if request.allocation not in (None, *ALLOCATIONS):
        hint = nearest(str(request.allocation), ALLOCATIONS)
        raise InputError(f"allocation must be one of {', '.join(ALLOCATIONS)}, got '{request.allocation}'{hint}")
    own: dict[str, Any] = {"criteria": (request.criterion,), "ignore": request.ignore}
    if file is not None:
        own = {key: getattr(file, key) for key in ("reduction", "cost", "floor", "calibration_loss")}
    given = {key: getattr(request, key) for key in ("reduction", "cost", "floor")}
    values = {**own, **{key: value for key, value in given.items() if value is not None}}
    return search_config(
        task=request.task, options=dict(request.options), seed=request.seed, batch_size=request.batch_size,
        recalibration_images=request.recalibration_images, allocation=request.allocation or allocation, **values,
    )  # fmt: skip


def _check_counts(request: Request) -> None:
    for name, value in (("min-channels", request.min_channels), ("round-to", request.round_to)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")


def _check_written(folder: Path, chosen: Chosen, network: nn.Module) -> None:
    """Loads what was written into the unpruned network and compares.

    Raises:
        BlendError: Its outputs are not the same bits.
    """
    inputs: Tensor = chosen.splits.heldout.inputs[:EXAMPLES]
    loaded = load_pruned(folder, lambda: copy.deepcopy(chosen.task.model))
    with single_thread(), torch.no_grad():
        if not torch.equal(loaded(inputs), network.eval()(inputs)):
            raise BlendError("the saved network does not compute what the pruned one does")
