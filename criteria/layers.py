"""What is known of layers: which axes of which tensors hold their channels, and which of them can be sliced."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (*CONV, nn.Linear)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORM = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def is_depthwise(module: nn.Module) -> bool:
    """Whether a layer is a convolution with one filter for each channel."""
    return isinstance(module, CONV) and module.groups == module.out_channels == module.in_channels > 1


def width(module: nn.Module, side: str) -> int:
    """Number of channels or features that a conv or linear layer reads (``in``) or makes (``out``)."""
    return int(getattr(module, f"{side}_features" if isinstance(module, nn.Linear) else f"{side}_channels"))


def unsliceable(module: nn.Module) -> str | None:
    """Why a layer cannot be sliced; None if it can."""
    if isinstance(module, CONV) and module.groups > 1 and not is_depthwise(module):
        return f"is a grouped convolution (groups={module.groups})"
    if isinstance(module, (*WEIGHTED, *BATCH_NORM, *INSTANCE_NORM, nn.PReLU)):
        return None
    return f"is a {type(module).__name__}"


def channel_axes(module: nn.Module, makes: bool) -> Iterator[tuple[str, int, bool]]:
    """The axes that hold the channels which a layer makes, or else reads: the weight's first.

    Yields:
        Name of the tensor in the layer, dimension, and whether the axis reads the channels from another layer.
    """
    if isinstance(module, WEIGHTED):
        passes = is_depthwise(module)  # what it reads is what it makes
        transposed = isinstance(module, CONV) and module.transposed
        yield "weight", 0 if passes else int(makes == transposed), not makes and not passes
        if (makes or passes) and module.bias is not None:
            yield "bias", 0, False
    elif isinstance(module, nn.PReLU):
        if module.num_parameters > 1:
            yield "weight", 0, False
    else:
        for key in ("weight", "bias", "running_mean", "running_var"):
            if getattr(module, key, None) is not None:
                yield key, 0, False


def refit(module: nn.Module, depthwise: bool) -> None:
    """Makes what a sliced layer says of itself true again.

    Args:
        module: The layer, its tensors already sliced.
        depthwise: Whether it was depthwise before.
    """
    if isinstance(module, CONV):
        if depthwise:
            module.groups = module.weight.shape[0]
        outer, inner = module.weight.shape[0], module.weight.shape[1] * module.groups
        module.out_channels, module.in_channels = (inner, outer) if module.transposed else (outer, inner)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, (*BATCH_NORM, *INSTANCE_NORM)):
        known = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if known is None else len(known)
