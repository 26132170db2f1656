"""Networks drawn at random of everything that couples channels, to find what nobody thought of."""

import random

import torch
from torch import nn

from . import CLASSES, randomise_norms
from .blocks import shuffle

CHANNELS = range(2, 11)


class Branch(nn.Module):
    """Steps one after the other; `what` they are is for reports."""

    def __init__(self, steps):
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x

    def extra_repr(self):
        return " ".join(type(step).__name__ for step in self.steps)


class Join(nn.Module):
    """Two branches of one input, in one."""

    def __init__(self, how, one, other):
        super().__init__()
        self.how, self.one, self.other = how, one, other

    def forward(self, x):
        one, other = self.one(x), self.other(x)
        if self.how == "cat":
            return torch.cat([one, other], 1)
        return one + other if self.how == "add" else one * other.sigmoid()

    def extra_repr(self):
        return self.how


class Split(nn.Module):
    """The channels in parts, of which one goes through a branch before they are joined again."""

    def __init__(self, sizes, branch, turned):
        super().__init__()
        self.sizes, self.branch, self.turned = sizes, branch, turned

    def forward(self, x):
        first, *rest = x.split(self.sizes, 1) if self.sizes else x.chunk(2, 1)
        parts = [self.branch(first), *rest]
        return torch.cat(parts[::-1] if self.turned else parts, 1)

    def extra_repr(self):
        return f"{self.sizes or 'halves'}, turned={self.turned}"


class Step(nn.Module):
    """A function without parameters."""

    def __init__(self, name, function):
        super().__init__()
        self.name, self.function = name, function

    def forward(self, x):
        return self.function(x)

    def extra_repr(self):
        return self.name


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x):
        gate = self.excite(self.squeeze(x.flatten(2).mean(2)).relu()).sigmoid()
        return x * gate.view(*gate.shape, *[1] * (x.ndim - 2))


class Last(nn.Module):
    """A layer for features that lie in the last dimension."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.movedim(1, -1)).movedim(-1, 1)


class Twice(nn.Module):
    """One layer, applied twice."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(self.layer(x).relu())


class Draw:
    """Draws steps, and knows how many channels there are after each.

    Args:
        seed: of everything.
        written: whether sizes may be written down where the graph can only take them for computed: halves by their
            number of channels, shuffles of as many groups as there are channels.
    """

    def __init__(self, seed, written=False):
        self.random = random.Random(seed)
        self.written = written
        self.dims = self.random.choice([1, 2, 2, 2, 3])

    def network(self):
        torch.manual_seed(self.random.randrange(2**31))
        channels = self.random.choice(CHANNELS)
        stem = [self.conv(3, channels), self.activation()]
        body, channels = self.steps(channels, self.random.randint(3, 7))
        pool = getattr(nn, f"AdaptiveAvgPool{self.dims}d")(self.random.choice([1, 2]))
        head = nn.Linear(channels * pool.output_size**self.dims, CLASSES)
        return randomise_norms(Branch([*stem, *body, pool, nn.Flatten(), head]).double().eval())

    def inputs(self, count=2):
        size = {1: 16, 2: 8, 3: 4}[self.dims]
        shape = (count, 3, *[size] * self.dims)
        return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def steps(self, channels, count, depth=0):
        found = []
        for _ in range(count):
            kinds = [self.plain] * 8 + [self.norm] * 4 + [self.reorder] * 2
            kinds += [self.join, self.join, self.split, self.gate, self.odd] if depth < 2 else []
            step, channels = self.random.choice(kinds)(channels, depth)
            found.append(step)
        return found, channels

    def conv(self, inputs, outputs, groups=1, kernel=None, kind="Conv"):
        kernel = kernel or self.random.choice([1, 3])
        options = {"padding": kernel // 2, "groups": groups, "bias": self.random.random() < 0.5}
        return getattr(nn, f"{kind}{self.dims}d")(inputs, outputs, kernel, **options)

    def plain(self, channels, depth):
        """A convolution: dense, in groups, by channel; transposed or not."""
        kind = self.random.choice(["Conv", "Conv", "Conv", "ConvTranspose"])
        groups = self.random.choice([1, 1, self.divisor(channels), channels])
        outputs = self.random.choice([n for n in range(2, 17) if n % groups == 0] or [channels])
        outputs = channels if self.random.random() < 0.3 else outputs
        return Branch([self.conv(channels, outputs, groups, kind=kind), self.activation()]), outputs

    def norm(self, channels, depth):
        kind = self.random.choice(["BatchNorm", "BatchNorm", "BatchNorm", "GroupNorm", "InstanceNorm", "PReLU", "pool"])
        if kind == "GroupNorm":
            return nn.GroupNorm(self.divisor(channels, 1), channels), channels
        if kind == "PReLU":
            return nn.PReLU(channels), channels
        if kind == "pool":
            pool = self.random.choice(["MaxPool", "AvgPool"])
            return getattr(nn, f"{pool}{self.dims}d")(3, 1, 1), channels
        return getattr(nn, f"{kind}{self.dims}d")(channels, affine=self.random.random() < 0.8), channels

    def reorder(self, channels, depth):
        groups = self.divisor(channels)
        groups = 1 if groups == channels and not self.written else groups
        kind = self.random.choice(["shuffle", "shuffle", "flip", "repeat", "module", "roll", "part", "pad", "cut"])
        if kind == "repeat":
            return Step("repeat", lambda x: torch.cat([x, x], 1)), 2 * channels
        if kind == "flip":
            return Step("flip", lambda x: x.flip(1)), channels
        if kind == "module":
            return nn.ChannelShuffle(groups), channels
        if kind == "roll":
            return Step("roll", lambda x: x.roll(1, 1)), channels
        if kind == "part" and channels > 2:
            return Step("part", lambda x: x[:, 1:]), channels - 1
        if kind == "cut" and channels > 3 and channels % 2 == 0:
            return Step("cut", lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1]), channels // 2
        if kind == "pad":
            pads = [0, 0] * self.dims + [1, 2]
            return Step("pad", lambda x: nn.functional.pad(x, pads)), channels + 3

        def shuffled(x):
            return shuffle(x.flatten(2).unsqueeze(3), groups).view(x.shape)

        return Step(f"shuffle {groups}", shuffled), channels

    def join(self, channels, depth):
        how = self.random.choice(["add", "add", "add", "cat", "cat", "gate"])
        one, ones = self.steps(channels, self.random.randint(0, 2), depth + 1)
        other, others = self.steps(channels, self.random.randint(1, 3), depth + 1)
        if how != "cat" and ones != others:
            other.append(self.conv(others, ones))
        return Join(how, Branch(one), Branch(other)), ones + others if how == "cat" else ones

    def split(self, channels, depth):
        size = channels // 2 if self.random.random() < 0.7 else self.random.randrange(1, channels)
        branch, made = self.steps(size, self.random.randint(0, 2), depth + 1) if size > 1 else ([], size)
        sizes = [size, channels - size] if self.written or 2 * size != channels else None
        return Split(sizes, Branch(branch), self.random.random() < 0.5), channels - size + made

    def gate(self, channels, depth):
        return Gate(channels, self.random.choice([2, 3])), channels

    def odd(self, channels, depth):
        """What mixes channels, lies otherwise, or is used again."""
        kind = self.random.choice(["mean", "norm", "linear", "twice", "max", "scale"])
        if kind == "norm":
            return Last(nn.LayerNorm(channels)), channels
        if kind == "linear":
            outputs = self.random.choice(CHANNELS)
            return Last(nn.Linear(channels, outputs)), outputs
        if kind == "twice":
            return Twice(self.conv(channels, channels, self.random.choice([1, self.divisor(channels)]))), channels
        if kind == "scale":
            return Step("scale", lambda x: x * x.mean(tuple(range(2, x.ndim)), keepdim=True)), channels
        if kind == "max":
            return Step("max", lambda x: x - x.amax(1, keepdim=True)), channels
        return Step("mean", lambda x: x * x.mean(1, keepdim=True).sigmoid()), channels

    def activation(self):
        return self.random.choice([nn.ReLU(), nn.ReLU(), nn.ReLU(inplace=True), nn.Tanh(), nn.GELU(), nn.Identity()])

    def divisor(self, channels, least=2):
        return self.random.choice([n for n in range(least, channels + 1) if channels % n == 0])
