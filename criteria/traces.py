"""What scoring could leave behind: in the network, in torch's hooks on all modules, in random states."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from criteria.specimens import Specimen

_GLOBAL_HOOKS = sorted(
    name for name, value in vars(torch_module).items() if name.startswith("_global") and isinstance(value, dict)
)


def planted(specimen: Specimen) -> Specimen:
    """A copy with gradients on its parameters and modules in both modes, so that losing them can be seen."""
    model = copy.deepcopy(specimen.model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    for number, module in enumerate(model.modules()):
        module.training = number % 2 == 0
    return replace(specimen, model=model)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything of a network and of the process that scoring must leave alone, by what it is called."""
    modules = list(model.modules())
    local = [{key: len(value) for key, value in vars(m).items() if key.endswith("_hooks")} for m in modules]
    everywhere = [len(getattr(torch_module, name)) for name in _GLOBAL_HOOKS]
    parameters = list(model.parameters())
    return {
        "parameters or buffers are changed": {k: v.detach().clone() for k, v in model.state_dict().items()},
        "parameters or buffers are replaced": [id(t) for t in (*parameters, *model.buffers())],
        ".grad is modified": [(id(p.grad), None if p.grad is None else p.grad.clone()) for p in parameters],
        "requires_grad is changed": [p.requires_grad for p in parameters],
        "the mode is changed": [m.training for m in modules],
        "hooks are left": [local, everywhere],
        "attributes or modules are added": [sorted(k for k in vars(m) if not k.endswith("_hooks")) for m in modules],
        "the random state of torch is changed": torch.get_rng_state(),
        "the random state of numpy is changed": np.random.get_state()[1].copy(),  # type: ignore[index]
        "the random state of Python is changed": random.getstate(),
        "torch's settings are changed": [torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()],
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs between two snapshots."""
    return [what for what in before if not _same(before[what], after[what])]


@contextmanager
def cleared() -> Iterator[None]:
    """Whatever happens inside to random states, hooks on all modules and settings is undone on leaving."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    settings = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    kept = {name: dict(getattr(torch_module, name)) for name in _GLOBAL_HOOKS}
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        torch.set_grad_enabled(settings[0])
        torch.set_default_dtype(settings[1])
        torch.set_num_threads(settings[2])
        for name, hooks in kept.items():
            registered = getattr(torch_module, name)
            for key in registered.keys() - hooks.keys():
                del registered[key]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
