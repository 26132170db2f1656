"""What is known of layers: their widths, which of their axes hold their channels, and what a sliced one looks like."""

from __future__ import annotations

from typing import Any

from torch import nn

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (*CONV, nn.Linear)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORM = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
CHANNELWISE = (*BATCH_NORM, *INSTANCE_NORM, nn.PReLU, nn.GroupNorm)
MIXING: tuple[type[nn.Module], ...] = (nn.LayerNorm, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []))
KNOWN = (*WEIGHTED, *CHANNELWISE, *MIXING)


def is_known(module: nn.Module) -> bool:
    """Whether a layer is taken as a whole.

    Whatever else a subclass of the others does, its channels lie where theirs do; a norm over the last dimensions that
    has a forward of its own may have moved the channels there.
    """
    if isinstance(module, MIXING):
        return any(type(module).forward is kind.forward for kind in MIXING)
    return isinstance(module, KNOWN)


def has_own_forward(module: nn.Module) -> bool:
    """Whether a conv or linear layer's class does more than torch's: it may pad, scale or join what it reads."""
    return not any(type(module).forward is kind.forward for kind in WEIGHTED)


def is_depthwise(module: nn.Module) -> bool:
    """Whether a layer is a convolution with filters for each input channel alone; one each, or several."""
    return isinstance(module, CONV) and module.groups == module.in_channels > 1


def is_transposed(module: nn.Module) -> bool:
    """Whether a layer's weight holds the channels that it reads along its first dimension."""
    return isinstance(module, CONV) and module.transposed


def width(module: nn.Module, side: str) -> int:
    """Number of channels or features that a conv or linear layer reads (``in``) or makes (``out``).

    Its weight tells: a lazy layer whose weight was loaded says 0 of itself.
    """
    return widths_of_weight(module)[side == "in"]


def channel_dim(module: nn.Module) -> int:
    """The dimension of the input and the output that holds the channels, counted from the end where it has to be."""
    if isinstance(module, nn.Linear):
        return -1
    if isinstance(module, (*CONV, *INSTANCE_NORM)):
        return -1 - next(rank for rank in (1, 2, 3) if f"{rank}d" in _kind(module))
    return 1


def _kind(module: nn.Module) -> str:
    return next(base.__name__ for base in type(module).__mro__ if base in KNOWN)


def channelwise_tensors(module: nn.Module) -> list[str]:
    """Names of the tensors of a norm or an activation that hold one value for each channel."""
    if isinstance(module, nn.PReLU):
        return ["weight"] if module.num_parameters > 1 else []
    names = ("weight", "bias", "running_mean", "running_var")
    return [name for name in names if getattr(module, name, None) is not None]


def block(module: nn.Module) -> int:
    """Number of neighbouring channels that have to go together for a sliced layer to be one: 1, or a norm's group."""
    return module.num_channels // module.num_groups if isinstance(module, nn.GroupNorm) else 1


def unit_of(module: nn.Module) -> int | None:
    """What :func:`refit` has to know of a layer before it is sliced: positions of its weight that make one group.

    None where the number of groups does not change: it follows the channels in depthwise layers and GroupNorm only.
    """
    if isinstance(module, nn.GroupNorm):
        return block(module)
    return int(module.weight.shape[0]) // module.groups if isinstance(module, CONV) and is_depthwise(module) else None


def widths_of_weight(module: Any) -> tuple[int, int]:
    """How many channels or features a conv or linear layer makes and reads, whatever it says of itself."""
    outer, inner = module.weight.shape[:2]
    if isinstance(module, nn.Linear):
        return outer, inner
    return (inner * module.groups, outer) if module.transposed else (outer, inner * module.groups)


def refit(module: nn.Module, unit: int | None) -> None:
    """Makes what a sliced layer says of itself true again.

    Args:
        module: The layer, its tensors already sliced.
        unit: What :func:`unit_of` said of it before.
    """
    if isinstance(module, CONV):
        if unit is not None:
            module.groups = module.weight.shape[0] // unit
        module.out_channels, module.in_channels = widths_of_weight(module)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = widths_of_weight(module)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = module.num_channels if module.weight is None else len(module.weight)
        module.num_groups = module.num_channels // (unit or 1)
    elif isinstance(module, (*BATCH_NORM, *INSTANCE_NORM)):
        known = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if known is None else len(known)
