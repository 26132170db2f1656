"""What goes wrong in this package: one base class, and kinds that are also ValueErrors where a value was wrong."""


import torch


class CriterionError(Exception):
    """A criterion, its statistics or its scores cannot be had as asked."""


class CriterionFault(CriterionError):
    """A criterion's own function raised something."""


class DoesNotApply(CriterionError):
    """A criterion can rank no group of a network."""


class CriterionValueError(CriterionError, ValueError):
    """An argument has a value that its rule does not allow."""


class GraphError(CriterionError, ValueError):
    """A network has no channel graph, or not the one that is asked for."""


def raise_if_out_of_memory(error: Exception) -> None:
    """Pass on what is nobody's fault: another time, or on another machine, there may be room."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        raise error
