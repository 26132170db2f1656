"""``blend prune``: from a criterion and a task to a physically smaller network on disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blend.blended import library_versions
from blend.errors import BlendError
from blend.identity import NetworkIdentity, weight_hash
from blend.pruned.choice import Chosen, Request, choose
from blend.pruned.durable import check_free_folder, new_folder
from blend.pruned.exports import check_formats, export
from blend.pruned.iterative import Position, Steps, training_record
from blend.pruned.saved import (
    RECORD,
    WEIGHTS,
    PruningRecord,
    cuts,
    file_hash,
    load_pruned,
    removed_channels,
    write_weights,
)
from blend.pruned.stages import Stages, timing
from blend.pruned.step import EXAMPLES
from blend.pruned.unfinished import Unfinished, interruptible
from blend.pruning import TOLERANCES, reproducibly


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
    unfinished = Unfinished(folder)
    with interruptible(unfinished):
        chosen = choose(request)
        steps = Steps(chosen, request)
        with unfinished.held(steps.identity(), wanted=steps.resumable):
            record = _written(steps, steps.run(unfinished), folder)
            unfinished.remove()
    return record


def _written(steps: Steps, made: Position, folder: Path) -> PruningRecord:
    """Saves what was made."""
    chosen, network, stages = steps.chosen, made.now.network, Stages(steps.chosen)
    with new_folder(folder) as draft:
        for one in made.shown:
            stages.add(one.title, one.network, one.keep)
        stages.rows[-1]["bytes"] = write_weights(network, chosen.graph.fingerprint, draft / WEIGHTS)
        stages.finish()
        record = _record(steps, made, stages.rows, file_hash(draft / WEIGHTS))
        (draft / RECORD).write_text(record.model_dump_json(indent=1) + "\n")
        _check_written(draft, chosen, network)
        export(steps.request.formats, network, chosen.splits.heldout.inputs[:EXAMPLES], draft)
    return record


def _record(steps: Steps, made: Position, stages: list[dict[str, Any]], weights: str) -> PruningRecord:
    chosen, request, keep = steps.chosen, steps.request, made.now.keep
    config, graph = chosen.config, chosen.graph
    added = [name for name in made.now.network.state_dict() if name not in graph.shapes]
    return PruningRecord(
        groups=removed_channels(graph, keep),
        cuts=cuts(graph, keep, chosen.task.model),
        biases=tuple(name.removesuffix(".bias") for name in added),
        network=NetworkIdentity(layout=graph.fingerprint, weights=weight_hash(chosen.task.model), shapes=graph.shapes),
        criterion=chosen.criterion,
        pruning={
            "reduction": config.reduction, "achieved": chosen.cost.reduction(keep),
            "cost": chosen.cost.kind, "allocation": config.allocation, "floor": config.floor,
            "min_channels": request.min_channels, "round_to": request.round_to, "ignore": list(request.ignore),
            "recalibration_images": config.recalibration_images, "compensate": chosen.compensate,
            "iterative": request.plan.steps, "schedule": request.plan.schedule,
            "timing": timing(chosen, keep, stages),
        },
        finetuning=training_record(steps, made.courses),
        stages=tuple(stages),
        task={"name": chosen.task.name, "options": config.options, "seed": config.seed},
        versions=library_versions(),
        weights_sha256=weights,
    )  # fmt: skip


def _check_written(folder: Path, chosen: Chosen, network: nn.Module) -> None:
    """Loads what was written into the unpruned network and compares.

    Raises:
        BlendError: Its outputs are not the same.
    """
    inputs: Tensor = chosen.splits.heldout.inputs[:EXAMPLES]
    loaded = load_pruned(folder, lambda: copy.deepcopy(chosen.task.model))
    with reproducibly(), torch.no_grad():
        found, meant = loaded(inputs), network.eval()(inputs)
        if not (found - meant).abs().max() <= TOLERANCES[meant.dtype] * meant.abs().max():
            raise BlendError("the saved network does not compute what the pruned one does")
