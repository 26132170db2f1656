"""A pruned network on disk: its tensors, and a record that makes the original class into it. Nothing is unpickled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from blend.errors import InputError, first_problem
from blend.identity import NetworkIdentity
from criteria.graph import ChannelGraph, Keep
from criteria.layers import refit, unit_of

RECORD, WEIGHTS = "pruning.json", "weights.safetensors"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RemovedChannels(_Strict):
    """What a channel group has given.

    Attributes:
        name: As in the channel graph: the first layer that produces the channels.
        size: Number of channels before.
        layers: All layers whose output channels these are.
        removed: Which ones are gone, from 0, ascending.
    """

    name: str
    size: Annotated[int, Field(ge=1)]
    layers: tuple[str, ...]
    removed: tuple[int, ...]


class Cut(_Strict):
    """Positions of one dimension of one tensor that are gone."""

    tensor: str
    dim: int
    removed: tuple[int, ...]


class PruningRecord(_Strict):
    """What ``pruning.json`` holds.

    Attributes:
        groups: Which channels are gone.
        cuts: The same by tensors, so that no tracing is needed to rebuild the network.
        biases: Layers that had no bias and have got one.
        network: The unpruned network: layout, hash of its weights, shapes.
        criterion: By which the channels were chosen.
        pruning: What was asked for and what was reached.
        stages: Costs, size and held-out results, unpruned first, the saved network last.
        finetuning: How it was trained on, and what came out after every epoch of every step.
        task: What it was pruned for.
        versions: Of the libraries.
        weights_sha256: Of the file with the tensors; None in records of earlier versions.
    """

    schema_version: Literal[1] = 1
    groups: tuple[RemovedChannels, ...]
    cuts: tuple[Cut, ...]
    biases: tuple[str, ...] = ()
    network: NetworkIdentity
    criterion: dict[str, Any]
    pruning: dict[str, Any]
    stages: tuple[dict[str, Any], ...]
    finetuning: dict[str, Any] | None = None
    task: dict[str, Any]
    versions: dict[str, str]
    weights_sha256: str | None = None

    @model_validator(mode="after")
    def _fits_the_network(self) -> PruningRecord:
        for cut in self.cuts:
            shape = self.network.shapes.get(cut.tensor, ())
            if not 0 <= cut.dim < len(shape):
                raise ValueError(f"cuts must be of dimensions that the network has, got {cut.dim} of '{cut.tensor}'")
            _check_positions(f"'{cut.tensor}'", cut.removed, shape[cut.dim])
        for group in self.groups:
            _check_positions(f"group '{group.name}'", group.removed, group.size)
        return self

    @classmethod
    def load(cls, folder: str | Path) -> PruningRecord:
        """Reads the record of a folder.

        Raises:
            InputError: If it cannot be read or breaks the schema, naming the first place.
        """
        path = Path(folder) / RECORD
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise InputError(f"cannot read '{path}': {error.strerror}") from error
        except ValidationError as error:
            raise InputError(f"'{path}' is not a pruning record: {first_problem(error)}") from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The pruned network's shapes, but for those of added biases."""
        shapes = {name: list(shape) for name, shape in self.network.shapes.items()}
        for cut in self.cuts:
            shapes[cut.tensor][cut.dim] -= len(cut.removed)
        return {name: tuple(shape) for name, shape in shapes.items()}


def _check_positions(what: str, removed: Sequence[int], size: int) -> None:
    if list(removed) != sorted(set(removed) & set(range(size))):
        raise ValueError(f"removed must be some of the {size} positions of {what}, ascending, got {list(removed)}")


def load_pruned(folder: str | Path, model_factory: Callable[[], nn.Module]) -> nn.Module:
    """Rebuilds a network that ``blend prune`` has saved.

    Args:
        folder: Where it was saved.
        model_factory: Makes the unpruned network: its class, or a function without arguments. Its weights don't matter.

    Returns:
        The pruned network in evaluation mode, on the device that the factory puts it on.

    Raises:
        InputError: The folder does not hold a pruned network, or the factory makes another network than the one that
            was pruned: the first layer that differs is named, with both shapes.
    """
    record = PruningRecord.load(folder)
    model = model_factory()
    if not isinstance(model, nn.Module):
        raise InputError(f"model_factory must make a torch.nn.Module, got {type(model).__name__}")
    tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
    _check_network(record, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    saved = _read_weights(Path(folder) / WEIGHTS, record)
    sliced = {cut.tensor.rpartition(".")[0] for cut in record.cuts}
    layers = [(module, unit_of(module)) for name, module in model.named_modules() if name in sliced]
    for name in record.biases:
        layer = model.get_submodule(name)
        layer.bias = nn.Parameter(saved.pop(f"{name}.bias").to(next(layer.parameters()).device))
    for name, values in saved.items():
        tensors[name].data = values.to(tensors[name].device)
    for layer, unit in layers:
        refit(layer, unit)
    return model.eval()


def write_weights(network: nn.Module, layout: str, path: Path) -> int:
    """Writes a network's tensors, and returns the size of the file in bytes."""
    return path.write_bytes(save(plain_tensors(network), metadata={"layout": layout}))


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_tensors(network: nn.Module) -> dict[str, Tensor]:
    """A network's tensors that are saved, as `plain` has them."""
    return plain(network.state_dict())


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors, each with memory of its own, as the file's format wants them."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def removed_channels(graph: ChannelGraph, keep: Keep) -> tuple[RemovedChannels, ...]:
    """Every group with what it gives."""
    return tuple(
        RemovedChannels(
            name=group.name,
            size=group.size,
            layers=tuple(member.layer for member in group.producers),
            removed=tuple(np.flatnonzero(~part).tolist()),
        )
        for group, part in graph.split(keep)
    )


def cuts(graph: ChannelGraph, keep: Keep, model: nn.Module) -> tuple[Cut, ...]:
    """The positions of tensors that a mask removes, by every name that the unpruned network has for them."""
    tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    kept = np.append(keep, True)  # owner -1 reads the last one
    found: dict[tuple[str, int], tuple[int, ...]] = {}
    for axis in graph.axes:
        if where := np.flatnonzero(~kept[axis.owner]).tolist():
            found.update({(name, axis.dim): tuple(where) for name in names[id(tensors[axis.tensor])]})
    return tuple(Cut(tensor=name, dim=dim, removed=where) for (name, dim), where in found.items())


def _check_network(record: PruningRecord, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if difference := record.network.difference(shapes):
        name, here, there = difference
        raise InputError(
            f"model_factory must make the network that was pruned (layout {record.network.layout}): '{name}' has "
            f"shape {here} in what it makes and {there} in the record"
        )


def _read_weights(path: Path, record: PruningRecord) -> dict[str, Tensor]:
    """The saved tensors, checked against the record."""
    try:
        if record.weights_sha256 not in (None, file_hash(path)):
            raise InputError(f"'{path}' is not the file that was written, or is damaged: its SHA-256 is another")
        with safe_open(path, framework="pt") as file:
            layout = (file.metadata() or {}).get("layout")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — not a mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read '{path}': {error}") from error
    if layout != record.network.layout:
        raise InputError(f"'{path}' belongs to another record: its layout is {layout}, not {record.network.layout}")
    expected: dict[str, tuple[int, ...] | None] = {**record.shapes(), **{f"{n}.bias": None for n in record.biases}}
    for name in {**expected, **tensors}:
        found = tuple(tensors[name].shape) if name in tensors else "absent"
        wanted = expected.get(name, "absent")
        if found != wanted and not (wanted is None and name in tensors):
            raise InputError(f"'{path}' does not fit its record: '{name}' has shape {found}, and should have {wanted}")
    return tensors
