"""Networks that are only looked at."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """A context with every module in evaluation mode; afterwards modes and attributes are what they were.

    A forward pass may keep what it makes in an attribute of a module. With the tensor it would keep a graph for
    gradients, with which no module can be copied.
    """
    before = [(module, module.training, dict(vars(module))) for network in networks for module in network.modules()]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for module, training, attributes in before:
            module.training = training  # a ScriptModule's is none of its attributes
            vars(module).clear()
            vars(module).update(attributes)


def called_with(model: nn.Module, stand_ins: Mapping[int, Tensor], inputs: Tensor) -> Any:
    """What a network makes of inputs with other tensors in the place of all of its own.

    Where a module has several names, torch would by itself put them in once for each name, and at the end put back for
    the last name what it has put in for the first.

    Args:
        model: The network, which is left as it was.
        stand_ins: By the ``id`` of the parameter or buffer that each stands for.
        inputs: A batch.
    """
    state = {
        f"{place}.{name}" if place else name: stand_ins[id(tensor)]
        for place, module in model.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    return functional_call(model, state, (inputs,), tie_weights=False)
