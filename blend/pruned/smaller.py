"""``blend prune``: from a criterion and a task to a physically smaller network on disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blend.blended import library_versions
from blend.compensation import Corrected, absorbed_means, compensation
from blend.consumer_inputs import compensation_images
from blend.errors import BlendError
from blend.identity import NetworkIdentity, weight_hash
from blend.inference import InferenceNetwork, portions
from blend.progress import say
from blend.pruned.choice import Chosen, Request, choose, chosen_keep
from blend.pruned.exports import check_formats, export
from blend.pruned.saved import (
    RECORD,
    WEIGHTS,
    PruningRecord,
    check_free_folder,
    cuts,
    load_pruned,
    new_folder,
    removed_channels,
    write_weights,
)
from blend.pruned.stages import Stages, timing
from blend.pruning import TOLERANCES, PrunedNetwork, single_thread
from blend.sequential import sequential
from criteria.graph import Keep

EXAMPLES = 8  # on which what was written is held against what was meant


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
    check_formats(request.formats)
    chosen = choose(request)
    keep = chosen_keep(chosen, request)
    with new_folder(folder) as draft:
        stages = Stages(chosen)
        stages.add("unpruned", chosen.task.model, np.ones_like(keep))
        network = recalibrated(chosen, keep)
        stages.add("pruned", network, keep)
        corrected = Corrected({})
        if chosen.compensate != "none":
            corrected = compensated(chosen, keep)
            network = recalibrated(chosen, keep, corrected)
            stages.add("compensated", network, keep)
        stages.rows[-1]["bytes"] = write_weights(network, chosen.graph.fingerprint, draft / WEIGHTS)
        stages.finish()
        record = _record(chosen, request, keep, corrected, stages.rows)
        (draft / RECORD).write_text(record.model_dump_json(indent=1) + "\n")
        _check_written(draft, chosen, network)
        export(request.formats, network, chosen.splits.heldout.inputs[:EXAMPLES], draft)
    return record


def _record(
    chosen: Chosen, request: Request, keep: Keep, corrected: Corrected, stages: list[dict[str, Any]]
) -> PruningRecord:
    config, graph = chosen.config, chosen.graph
    added = [name for name in corrected.tensors if name not in graph.shapes]
    return PruningRecord(
        groups=removed_channels(graph, keep),
        cuts=cuts(graph, keep),
        biases=tuple(name.removesuffix(".bias") for name in added),
        network=NetworkIdentity(layout=graph.fingerprint, weights=weight_hash(chosen.task.model), shapes=graph.shapes),
        criterion=chosen.criterion,
        pruning={
            "reduction": config.reduction, "achieved": chosen.cost.reduction(keep),
            "cost": chosen.cost.kind, "allocation": config.allocation, "floor": config.floor,
            "min_channels": request.min_channels, "round_to": request.round_to, "ignore": list(request.ignore),
            "recalibration_images": config.recalibration_images, "compensate": chosen.compensate,
            "timing": timing(chosen, keep, stages),
        },
        stages=tuple(stages),
        task={"name": chosen.task.name, "options": config.options, "seed": config.seed},
        versions=library_versions(),
    )  # fmt: skip


def compensated(chosen: Chosen, keep: Keep) -> Corrected:
    """The consumers' corrected tensors; says what could not be corrected as asked."""
    config, model, graph = chosen.config, chosen.task.model, chosen.graph
    batches = portions(
        compensation_images(chosen.splits.calibration.inputs, config.recalibration_images), config.batch_size
    )
    absorbed = absorbed_means(graph) if config.recalibration_images else frozenset()
    with single_thread(), torch.no_grad():
        if chosen.compensate == "sequential":
            corrected, notes = sequential(
                model, graph, keep, batches, absorbed, recalibrated=config.recalibration_images > 0
            )
        else:
            correct, notes = compensation(model, graph, batches, chosen.compensate, absorbed=absorbed)
            corrected = correct(keep)
    for note in notes:
        say(f"note: {note}")
    for name in corrected.singular:
        say(f"note: what is left for '{name}' to read determines no unique correction; the smallest one was taken")
    return corrected


def recalibrated(chosen: Chosen, keep: Keep, corrected: Corrected | None = None) -> nn.Module:
    """The pruned network, its BatchNorms with the statistics of all recalibration images taken as one batch."""
    config, model = chosen.config, chosen.task.model
    tensors = {} if corrected is None else corrected.tensors
    images = chosen.splits.calibration.inputs[: config.recalibration_images]
    with single_thread(), torch.no_grad():
        judged = InferenceNetwork(model, chosen.graph, chosen.splits.calibration.inputs[:EXAMPLES])
        judged.prune(keep, portions(images, config.batch_size), tensors)
        network = PrunedNetwork(model, chosen.graph).extract(keep, tensors)
        network.load_state_dict(judged.statistics(), strict=False)
    return network


def _check_written(folder: Path, chosen: Chosen, network: nn.Module) -> None:
    """Loads what was written into the unpruned network and compares.

    Raises:
        BlendError: Its outputs are not the same.
    """
    inputs: Tensor = chosen.splits.heldout.inputs[:EXAMPLES]
    loaded = load_pruned(folder, lambda: copy.deepcopy(chosen.task.model))
    with single_thread(), torch.no_grad():
        found, meant = loaded(inputs), network.eval()(inputs)
        if not (found - meant).abs().max() <= TOLERANCES[meant.dtype] * meant.abs().max():
            raise BlendError("the saved network does not compute what the pruned one does")
