"""Small networks of every kind that the channel graph, the statistics and the pruning have to get right."""

from functools import cache

import torch
from torch import nn

from blend.tasks.networks import build_network
from criteria import ChannelGraph

from .blocks import (
    Bottleneck,
    ChannelsFirstNorm,
    ConvNeXtBlock,
    DenseLayer,
    InputCoupled,
    InvertedResidual,
    OptionA,
    SEBlock,
    ShuffleV1,
    ShuffleV2,
    TokenMLP,
    UNet,
    conv_bn,
)  # fmt: skip

CLASSES = 4


class Head(nn.Sequential):
    def __init__(self, channels):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def builtin(name, width):
    return lambda: build_network(name, in_channels=3, classes=CLASSES, width=width)


def resnet50():
    blocks = [Bottleneck(8, 4, 16), Bottleneck(16, 4, 16), Bottleneck(16, 8, 24, stride=2), Bottleneck(24, 8, 24)]
    return nn.Sequential(conv_bn(3, 8), nn.ReLU(), *blocks, Head(24))


def resnext():
    blocks = [Bottleneck(8, 12, 16, groups=3), Bottleneck(16, 12, 16, groups=3, stride=2)]
    return nn.Sequential(conv_bn(3, 8), nn.ReLU(), *blocks, Head(16))


def densenet():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), DenseLayer(6, 4), DenseLayer(10, 4), nn.BatchNorm2d(14), nn.ReLU(),
        nn.Conv2d(14, 7, 1), nn.AvgPool2d(2), DenseLayer(7, 4), nn.BatchNorm2d(11), nn.ReLU(), Head(11),
    )  # fmt: skip


def mlp():
    hidden = [nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh()]
    return nn.Sequential(*hidden, nn.Linear(9, CLASSES))


def conv1d():
    layers = [nn.Conv1d(2, 6, 5, padding=2), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2)]
    layers += [nn.Conv1d(6, 8, 3, padding=1, groups=2), nn.BatchNorm1d(8), nn.ReLU(), nn.AdaptiveAvgPool1d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, CLASSES))


def plain():
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.LeakyReLU(), nn.Conv2d(8, 5, 3)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(20, CLASSES))


def groupnorm():
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1)]
    layers += [nn.GroupNorm(1, 6), nn.ReLU(), nn.Conv2d(6, 5, 3, bias=False), nn.GroupNorm(5, 5), nn.ReLU()]
    return nn.Sequential(*layers, Head(5))


def convnext(norm):
    stem = nn.Conv2d(3, 8, 2, stride=2)
    blocks = [ConvNeXtBlock(8, 12), ChannelsFirstNorm(8), nn.Conv2d(8, 10, 2, stride=2), ConvNeXtBlock(10, 14)]
    return nn.Sequential(stem, *blocks[: 4 if norm else 1], Head(10 if norm else 8))


def option_a():
    return nn.Sequential(conv_bn(3, 4), nn.ReLU(), OptionA(4, 4, 1), OptionA(4, 8, 2), OptionA(8, 12, 2), Head(12))


def grouped_transposed():
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(8), nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), nn.ReLU()]
    layers += [nn.ConvTranspose2d(6, 6, 2, stride=2, groups=6), nn.ReLU(), nn.Conv2d(6, 24, 3, groups=6), nn.ReLU()]
    return nn.Sequential(*layers, nn.PixelShuffle(2), nn.Conv2d(6, 4, 1), Head(4))


def mobilenetv2():
    """Of the parts of the built-in one, which has hundreds of channels even where it is narrow."""
    blocks = [InvertedResidual(5, 8, 6, 2), InvertedResidual(6, 9, 6), InvertedResidual(6, 7, 8)]
    model = nn.Sequential(conv_bn(3, 5), nn.ReLU6(), *blocks, conv_bn(8, 10, 1), nn.ReLU6(), Head(10))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # as it is made, most channels are dead on the data
    return model


NETWORKS = {
    "resnet20": builtin("resnet20", 4),
    "resnet50": resnet50,
    "vgg_bn": builtin("vgg16_bn", 0.1),
    "mobilenetv2": mobilenetv2,
    "densenet": densenet,
    "resnext": resnext,
    "se_resnet": lambda: nn.Sequential(conv_bn(3, 8), nn.ReLU(), SEBlock(8), SEBlock(8), Head(8)),
    "shufflenet": lambda: nn.Sequential(
        conv_bn(3, 16), nn.ReLU(), ShuffleV1(16, 16, 2), ShuffleV1(16, 24, 2), Head(16)
    ),
    "shufflenet_v2": lambda: nn.Sequential(conv_bn(3, 16), nn.ReLU(), ShuffleV2(16, 6), ShuffleV2(16, 6), Head(16)),
    "unet": lambda: UNet(2),
    "unet3d": lambda: UNet(3, 3),
    "conv1d": conv1d,
    "mlp": mlp,
    "convnext": lambda: convnext(norm=True),
    "vit_mlp": TokenMLP,
    "vit": lambda: TokenMLP(attention=True),
    "groupnorm": groupnorm,
    "plain": plain,
    "option_a": option_a,
    "grouped_transposed": grouped_transposed,
    "input_coupled": InputCoupled,
}
SHAPES = {"unet": (2, 16, 16), "unet3d": (2, 8, 8, 8), "conv1d": (2, 20), "mlp": (6,)}


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def build(name, maker=None, seed=0):
    """An untrained network in evaluation mode, every norm of which does something; of another maker if there is one."""
    torch.manual_seed(seed)
    return randomise_norms((maker or NETWORKS[name])().eval())


def randomise_norms(model):
    """The network, with norms and slopes that differ from channel to channel."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (*NORMS, nn.GroupNorm, nn.LayerNorm)) and module.weight is not None:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
            if isinstance(module, nn.PReLU):
                module.weight.uniform_(0.1, 0.5)
            if isinstance(module, NORMS):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model


def inputs(name, count=3, seed=0):
    return torch.randn(count, *SHAPES.get(name, (3, 16, 16)), generator=torch.Generator().manual_seed(seed))


@cache
def graph_of(name):
    """Its channel graph, which nobody changes."""
    return ChannelGraph.build(build(name), inputs(name))
