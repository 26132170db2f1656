"""Building blocks of the networks that the channel graph is tried on."""

import torch
from torch import nn


def conv_bn(inputs, outputs, kernel=3, stride=1, groups=1):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped in ResNeXt), 1x1, and a shortcut around them."""

    def __init__(self, inputs, inner, outputs, groups=1, stride=1):
        super().__init__()
        self.reduce = conv_bn(inputs, inner, 1)
        self.conv = conv_bn(inner, inner, 3, stride, groups)
        self.expand = conv_bn(inner, outputs, 1)
        self.shortcut = conv_bn(inputs, outputs, 1, stride) if inputs != outputs or stride > 1 else nn.Identity()

    def forward(self, x):
        inner = torch.relu(self.conv(torch.relu(self.reduce(x))))
        return torch.relu(self.expand(inner) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """Wide inside: 1x1, depthwise, 1x1, and a shortcut where the ends fit."""

    def __init__(self, inputs, inner, outputs, stride=1):
        super().__init__()
        self.expand, self.deep = conv_bn(inputs, inner, 1), conv_bn(inner, inner, 3, stride, groups=inner)
        self.project, self.fits = conv_bn(inner, outputs, 1), inputs == outputs and stride == 1

    def forward(self, x):
        inner = nn.functional.relu6(self.deep(nn.functional.relu6(self.expand(x))))
        return self.project(inner) + x if self.fits else self.project(inner)


class SqueezeExcitation(nn.Module):
    def __init__(self, channels, reduction=2):
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.excite = nn.Linear(channels // reduction, channels)

    def forward(self, x):
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class SEBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.conv2 = conv_bn(channels, channels), conv_bn(channels, channels)
        self.se = SqueezeExcitation(channels)

    def forward(self, x):
        return torch.relu(self.se(self.conv2(torch.relu(self.conv1(x)))) + x)


class DenseLayer(nn.Module):
    """Normalises and reads all that was made before it, and adds a few channels."""

    def __init__(self, inputs, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        new = self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


def shuffle(x, groups):
    examples, channels, height, width = x.shape
    return x.view(examples, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


class ShuffleV1(nn.Module):
    """Grouped 1x1, channel shuffle, depthwise, grouped 1x1, and a shortcut."""

    def __init__(self, channels, inner, groups):
        super().__init__()
        self.groups = groups
        self.reduce, self.deep = conv_bn(channels, inner, 1, groups=groups), conv_bn(inner, inner, 3, groups=inner)
        self.expand = conv_bn(inner, channels, 1, groups=groups)

    def forward(self, x):
        inner = shuffle(torch.relu(self.reduce(x)), self.groups)
        return torch.relu(x + self.expand(self.deep(inner)))


class ShuffleV2(nn.Module):
    """One half goes through a branch, and both are shuffled."""

    def __init__(self, channels, inner):
        super().__init__()
        half = channels // 2
        self.first, self.deep = conv_bn(half, inner, 1), conv_bn(inner, inner, 3, groups=inner)
        self.last = conv_bn(inner, half, 1)

    def forward(self, x):
        left, right = x.chunk(2, 1)
        right = torch.relu(self.last(self.deep(torch.relu(self.first(right)))))
        return shuffle(torch.cat([left, right], 1), 2)


class ChannelsFirstNorm(nn.Module):
    """LayerNorm over dimension 1, written out."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels) / 5)

    def forward(self, x):
        centred = x - x.mean(1, keepdim=True)
        normed = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight[:, None, None] * normed + self.bias[:, None, None]


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm with the channels last, a hidden layer with GELU, a layer scale, a shortcut."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.deep, self.norm = nn.Conv2d(channels, channels, 7, padding=3, groups=channels), nn.LayerNorm(channels)
        self.up, self.act, self.down = nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)
        self.scale = nn.Parameter(torch.rand(channels))

    def forward(self, x):
        inner = self.norm(self.deep(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(self.act(self.up(inner)))).permute(0, 3, 1, 2)


class OptionA(nn.Module):
    """A residual block whose shortcut subsamples, and pads channels of zeros on both sides."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.conv2 = conv_bn(inputs, outputs, stride=stride), conv_bn(outputs, outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x):
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, self.pad, self.pad)) if self.pad else shortcut
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + shortcut)


class UNet(nn.Module):
    """Down, up again by a transposed convolution, with what was on the way down beside it."""

    def __init__(self, dims, width=4):
        super().__init__()
        conv, norm = (getattr(nn, f"{kind}{dims}d") for kind in ("Conv", "BatchNorm"))
        up, self.pool = getattr(nn, f"ConvTranspose{dims}d"), getattr(nn, f"MaxPool{dims}d")(2)

        def block(inputs, outputs):
            return nn.Sequential(conv(inputs, outputs, 3, padding=1), norm(outputs), nn.ReLU(inplace=True))

        self.down1, self.down2, self.bottom = block(2, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.up2, self.join2 = up(4 * width, 2 * width, 2, stride=2), block(4 * width, 2 * width)
        self.up1, self.join1 = up(2 * width, width, 2, stride=2), block(2 * width, width)
        self.head = conv(width, 3, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(self.pool(one))
        x = self.up2(self.bottom(self.pool(two)))
        x = self.join2(torch.cat([two, x], 1))
        return self.head(self.join1(torch.cat([one, self.up1(x)], 1)))


class TokenMLP(nn.Module):
    """Tokens from patches, LayerNorm, a hidden layer with GELU, a shortcut, and attention where it is asked for."""

    def __init__(self, width=8, hidden=12, attention=False):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 16, width) / 5)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True) if attention else None
        self.norm1 = nn.LayerNorm(width) if attention else None
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        if self.attention is not None:
            y = self.norm1(x)
            x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class InputCoupled(nn.Module):
    """The raw input is added to channels, and stands beside others."""

    def __init__(self):
        super().__init__()
        self.same, self.inner = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.join, self.head = nn.Conv2d(9, 5, 1), nn.Linear(5, 4)

    def forward(self, x):
        x = x + self.same(x)
        return self.head(torch.relu(self.join(torch.cat([x, torch.relu(self.inner(x))], 1))).mean((2, 3)))
