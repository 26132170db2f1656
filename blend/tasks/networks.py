"""Small convolutional networks for 16 to 64 pixel images, every layer of which can be pruned.

Residual networks (He et al., 2015, arXiv:1512.03385, section 4.2), VGG-16 with batch normalisation
(Simonyan and Zisserman, 2014, arXiv:1409.1556) and MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from blend.errors import InputError, nearest


def _conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size (but for its stride) and its batch normalisation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def _initialise(network: nn.Module) -> None:
    """Draw convolution weights as in He et al., 2015, arXiv:1502.01852."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them: the identity, or a 1x1 projection where shapes differ.

    The inner convolution ``conv1`` is coupled to nothing; the output is coupled to every block of its stage.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build a block from ``inputs`` to ``outputs`` channels."""
        super().__init__()
        self.conv1, self.bn1 = _conv_bn(inputs, outputs, stride=stride)
        self.conv2, self.bn2 = _conv_bn(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_bn(inputs, outputs, kernel=1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """Residual network of depth 6 · ``blocks`` + 2 in three stages of ``width``, 2 · and 4 · ``width`` channels.

    Args:
        blocks: residual blocks in each stage.
        in_channels: channels of the images.
        classes: number of outputs.
        width: channels of the first stage.
        stem_stride: stride of the first convolution; 2 quarters the cost of everything after it.

    Raises:
        InputError: ``width`` is not a whole number of at least 1.
    """

    def __init__(
        self, blocks: int, in_channels: int = 3, classes: int = 10, width: float = 16, stem_stride: int = 1
    ) -> None:
        """Build the network, its weights drawn at random."""
        super().__init__()
        if width < 1 or width != int(width):
            raise InputError(f"width of a resnet must be a whole number of channels >= 1, got {width:g}")
        channels = int(width)
        self.stem = nn.Sequential(*_conv_bn(in_channels, channels, stride=stem_stride), nn.ReLU())
        stages: list[nn.Module] = []
        inputs = channels
        for stage in range(3):
            outputs = channels << stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            stages.append(
                nn.Sequential(*(BasicBlock(inputs if i == 0 else outputs, outputs, s) for i, s in enumerate(strides)))
            )
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(inputs, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, in_channels, h, w) to logits (n, classes)."""
        features = self.stages(self.stem(x))
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


class VGG(nn.Module):
    """VGG-16 with batch normalisation, for 16 pixels and up: 13 convolutions and one linear classifier.

    The fifth pooling is adaptive, so that any image size ends in one position.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of all channel counts; 1 gives 64 to 512.
        stem_stride: stride of the first convolution.

    Raises:
        InputError: ``width`` is not above 0.
    """

    STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))

    def __init__(self, in_channels: int = 3, classes: int = 10, width: float = 1.0, stem_stride: int = 1) -> None:
        """Build the network, its weights drawn at random."""
        super().__init__()
        _check_multiplier("vgg16_bn", width)
        layers: list[nn.Module] = []
        inputs, stride = in_channels, stem_stride
        for base, depth in self.STAGES:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                outputs = max(4, round(base * width))
                layers += [*_conv_bn(inputs, outputs, stride=stride), nn.ReLU()]
                inputs, stride = outputs, 1
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(inputs, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, in_channels, h, w) to logits (n, classes)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class InvertedResidual(nn.Module):
    """Expand by a 1x1, filter by a depthwise 3x3, project by a linear 1x1 convolution; identity where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        """Build a block whose depthwise convolution has ``inputs`` · ``expansion`` channels."""
        super().__init__()
        hidden = inputs * expansion
        expand = [*_conv_bn(inputs, hidden, kernel=1), nn.ReLU6()] if expansion > 1 else []
        depthwise = [*_conv_bn(hidden, hidden, stride=stride, groups=hidden), nn.ReLU6()]
        self.body = nn.Sequential(*expand, *depthwise, *_conv_bn(hidden, outputs, kernel=1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        out: Tensor = self.body(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """MobileNetV2 with the strides of small images: 32 pixels end as 4.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of all channel counts, which are rounded to multiples of 8.
        stem_stride: stride of the first convolution.

    Raises:
        InputError: ``width`` is not above 0.
    """

    # expansion, channels, blocks, stride: table 2 of the paper, with stride 1 in place of its first two 2s
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, in_channels: int = 3, classes: int = 10, width: float = 1.0, stem_stride: int = 1) -> None:
        """Build the network, its weights drawn at random."""
        super().__init__()
        _check_multiplier("mobilenetv2", width)

        def scaled(channels: int) -> int:
            return max(8, 8 * round(channels * width / 8))

        inputs, last = scaled(32), scaled(1280)
        layers: list[nn.Module] = [*_conv_bn(in_channels, inputs, stride=stem_stride), nn.ReLU6()]
        for expansion, channels, blocks, stride in self.STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(inputs, scaled(channels), 1 if block else stride, expansion))
                inputs = scaled(channels)
        self.features = nn.Sequential(*layers, *_conv_bn(inputs, last, kernel=1), nn.ReLU6())
        self.classifier = nn.Linear(last, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, in_channels, h, w) to logits (n, classes)."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def _check_multiplier(network: str, width: float) -> None:
    if not width > 0:
        raise InputError(f"width of {network} is a multiplier and must be > 0, got {width:g}")


def _resnet(blocks: int) -> Callable[..., nn.Module]:
    def build(**arguments: Any) -> nn.Module:
        return ResNet(blocks, **arguments)

    return build


NETWORKS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "resnet20": _resnet(3),
        "resnet32": _resnet(5),
        "resnet56": _resnet(9),
        "resnet110": _resnet(18),
        "vgg16_bn": VGG,
        "mobilenetv2": MobileNetV2,
    }
)


def build_network(
    name: str, *, in_channels: int, classes: int, width: float | None = None, stem_stride: int = 1
) -> nn.Module:
    """Build an untrained network, its weights drawn from torch's global random state.

    Args:
        name: a key of ``NETWORKS``.
        in_channels: channels of the images.
        classes: number of outputs.
        width: channels of the first stage of a resnet (16), multiplier of the others (1); None for that default.
        stem_stride: stride of the first convolution.

    Raises:
        InputError: the network is not known, or an argument is out of range.
    """
    if name not in NETWORKS:
        raise InputError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}{nearest(name, NETWORKS)}")
    if stem_stride < 1:
        raise InputError(f"stem_stride must be >= 1, got {stem_stride}")
    width_given = {} if width is None else {"width": width}
    return NETWORKS[name](in_channels=in_channels, classes=classes, stem_stride=stem_stride, **width_given)
