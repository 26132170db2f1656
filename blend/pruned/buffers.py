"""Buffers that a network does not save (``persistent=False``): checkpoints hold them, no result may need them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blend.errors import InputError, described
from blend.pruned.saved import plain
from blend.pruned.training_data import TrainingData, seeded
from blend.pruning import reproducibly


def unsaved_names(network: nn.Module) -> set[str]:
    """The names of all buffers that are not persistent, also of those that hold nothing yet."""
    return {
        f"{name}.{key}" if name else key
        for name, module in network.named_modules(remove_duplicate=False)
        for key in module._non_persistent_buffers_set  # torch tells it nowhere else
    }


def all_tensors(network: nn.Module) -> dict[str, Tensor]:
    """A network's tensors, those that it does not save among them, each with memory of its own."""
    return plain({**network.state_dict(), **_unsaved(network)})


@torch.no_grad()
def put_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a network all of its tensors; what it does not save may be missing, and stays as it is then."""
    unsaved = tensors.keys() & unsaved_names(network)
    network.load_state_dict({name: values for name, values in tensors.items() if name not in unsaved})
    for name in unsaved:
        parent, _, key = name.rpartition(".")
        module, values = network.get_submodule(parent), tensors[name]
        found: Any = getattr(module, key)
        if found is None or not _same_form(found, values):
            setattr(module, key, values)
        elif not torch.equal(found, values):
            found.copy_(values)


def check_unsaved(model: nn.Module, data: TrainingData) -> None:
    """Refuses a network that training gives something which it needs and does not save.

    A copy makes one forward pass in training mode. If that changes a buffer that is not persistent, the copy is held
    against another one that has loaded its state dictionary.

    Raises:
        InputError: They do not compute the same, or the pass fails.
    """
    if not unsaved_names(model):
        return
    trained, loaded = copy.deepcopy(model).train(), copy.deepcopy(model).eval()
    before = all_tensors(model)
    with reproducibly():
        with seeded(0):
            inputs = next(data.epoch(0))[0]
            try:
                trained(inputs)
            except (RuntimeError, ValueError, TypeError, LookupError) as error:
                shape = tuple(inputs.shape)
                raise InputError(f"a training step failed on a batch of shape {shape}: {described(error)}") from error
        after = {name: values.detach() for name, values in _unsaved(trained).items()}
        changed = [
            name
            for name, values in after.items()
            if name not in before or not (_same_form(before[name], values) and torch.equal(before[name], values))
        ]
        loaded.load_state_dict(trained.state_dict())
        if changed and not torch.equal(_outputs(trained, inputs), _outputs(loaded, inputs)):
            raise InputError(
                f"buffer '{changed[0]}' must be persistent for fine-tuning: training changes it and with it what the "
                "network computes, but no saved network would have it; register it with persistent=True"
            )


def _unsaved(network: nn.Module) -> dict[str, Tensor]:
    names = unsaved_names(network)
    return {name: values for name, values in network.named_buffers(remove_duplicate=False) if name in names}


def _same_form(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _outputs(network: nn.Module, inputs: Tensor) -> Tensor:
    with seeded(0), torch.no_grad():
        outputs: Tensor = network.eval()(inputs)
    return outputs
