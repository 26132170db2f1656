"""Networks that are only looked at."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
