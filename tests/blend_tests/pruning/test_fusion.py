import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blend.pruning.fusion import FusedConv, _clamp_numbers
from blend.pruning.inference import InferenceNetwork
from criteria import ChannelGraph
from tests.networks import NETWORKS, build
from tests.networks import inputs as inputs_of

from ..small_networks import graph_of, images, random_keep


def fused_in(network):
    return [module for module in network.modules() if isinstance(module, FusedConv)]


def outputs_of(network, inputs):
    with torch.no_grad():
        return network(inputs)


def run(network, keep, inputs):
    """Outputs of the pruned and recalibrated network, fused and as it is without."""
    fused = network.prune(keep, inputs.split(8))
    outputs = outputs_of(fused, inputs)
    network._fused = network._plain
    plain = outputs_of(network.prune(keep, inputs.split(8)), inputs)
    network._fused = fused
    return outputs, plain


@pytest.mark.parametrize(("name", "convolutions"), [("resnet20", 19), ("mobilenetv2", 47), ("vgg16_bn", 13)])
def test_all_that_can_be_is_fused(name, convolutions):
    model, graph = graph_of(name)
    network = InferenceNetwork(model, graph, images(8))
    outputs, plain = run(network, random_keep(graph, 1), images(16, seed=1))
    assert torch.equal(outputs, plain)
    assert len(fused_in(network._fused)) == convolutions


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_kind_of_network_gives_the_same_outputs(name):
    model = build(name)
    graph = ChannelGraph.build(model, inputs_of(name))
    network = InferenceNetwork(model, graph, inputs_of(name))
    outputs, plain = run(network, random_keep(graph, 3), inputs_of(name, seed=1))
    assert torch.allclose(outputs, plain, rtol=1e-5, atol=1e-6)


class Block(nn.Module):
    """Two convolutions, and a forward that the caller writes."""

    def __init__(self, body, dims=2, **options):
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        options = {"padding": 1, "bias": False} | options
        self.first, self.norm = conv(3, 6, 3, **options), norm(6)
        self.second, self.norm2 = conv(3, 6, 3, **options), norm(6)
        self.relu, self.relu6, self.tanh = nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(-0.5, 0.75)
        self.head = nn.Linear(6, 4)
        for module in (self.norm, self.norm2):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
        self.body, self.dims = body, dims

    def forward(self, x):
        return self.head(self.body(self, x, self.norm(self.first(x))).mean(tuple(range(2, 2 + self.dims))))


def added(net, x):
    return net.norm2(net.second(x))


def with_hook(net, x, y):
    if not net.relu6._forward_hooks:
        net.relu6.register_forward_hook(lambda module, inputs, outputs: outputs * 2)
    return net.relu6(y)


def remembering(net, x, y):
    net.last = F.relu(y)
    return net.last + 1


def adding_in_place(net, x, y):
    y += added(net, x)
    return F.relu(y)


def branching(net, x, y):
    return F.relu(y) if x.abs().max() > 0 else y


def changing(net, x, y):
    shortcut = added(net, x)
    first = shortcut * 2
    shortcut += y
    return shortcut.relu() + first


BODIES = {
    "module in place": (lambda net, x, y: net.relu(y), 1),
    "module": (lambda net, x, y: net.relu6(y), 1),
    "range": (lambda net, x, y: net.tanh(y), 1),
    "function": (lambda net, x, y: F.relu(y), 1),
    "function in place": (lambda net, x, y: F.relu(y, inplace=True), 1),
    "ReLU6 as a function": (lambda net, x, y: F.relu6(y), 1),
    "method": (lambda net, x, y: y.relu(), 1),
    "method in place": (lambda net, x, y: y.relu_(), 1),
    "shared module": (lambda net, x, y: net.relu(y) + net.relu(added(net, x)), 2),
    "sum of two": (lambda net, x, y: net.relu(y + added(net, x)), 1),
    "sum the other way": (lambda net, x, y: net.relu(added(net, x) + y), 1),
    "sum in place": (adding_in_place, 1),
    "sum as a function": (lambda net, x, y: torch.add(y, added(net, x)).relu(), 1),
    "sum without a clamp": (lambda net, x, y: y + added(net, x), 1),
    "sum and ReLU6": (lambda net, x, y: net.relu6(y + added(net, x)), 1),
    "sum with what is ahead": (lambda net, x, y: F.relu(y + (s := F.relu(added(net, x)))) + s, 2),
    "weighted sum": (lambda net, x, y: F.relu(torch.add(y, added(net, x), alpha=2)), 0),
    "sum with a number": (lambda net, x, y: F.relu(y + 1), 0),
    "sum with a constant": (lambda net, x, y: F.relu(y + torch.ones(1, dtype=y.dtype)), 0),
    "with itself": (lambda net, x, y: F.relu(y + y), 0),
    "changing the shortcut": (changing, 1),
    "two readers": (lambda net, x, y: F.relu(y) - y, 0),
    "other function": (lambda net, x, y: F.silu(y), 0),
    "hook": (with_hook, 0),
    "leaving something behind": (remembering, 1),
    "cannot be traced": (branching, 0),
    "depends on the batch": (lambda net, x, y: F.relu(y).expand(len(x), -1, -1, -1), 0),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_forwards(name, precision, layout):
    torch.manual_seed(0)
    body, convolutions = BODIES[name]
    model = Block(body).eval()
    network, keep = prepared(model, precision)
    inputs = images(16, seed=1).to(precision or torch.float32, memory_format=layout)
    before = inputs.clone()
    outputs, plain = run(network, keep, inputs)
    assert len(fused_in(network._fused)) == convolutions
    assert torch.equal(inputs, before)
    if precision is None:
        assert torch.equal(outputs, plain)
    else:  # one rounding less
        assert torch.allclose(outputs, plain, rtol=0.03, atol=0.03)


def prepared(model, precision=None, example=None):
    example = images(8) if example is None else example
    graph = ChannelGraph.build(model, example[:2])
    keep = np.ones(len(graph), dtype=bool)
    keep[1::3] = False
    return InferenceNetwork(model, graph, example, precision), keep


@pytest.mark.parametrize(
    ("options", "convolutions"),
    [({"stride": 2}, 1), ({"dilation": 2}, 1), ({"padding": "same"}, 0), ({"padding_mode": "circular"}, 0)],
)
def test_kinds_of_convolutions(options, convolutions):
    network, keep = prepared(Block(lambda net, x, y: F.relu(y), **options).eval())
    outputs, plain = run(network, keep, images(16, seed=1))
    assert len(fused_in(network._fused)) == convolutions
    assert torch.equal(outputs, plain)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize(("kept", "groups"), [(1, 1), (3, 1), (6, 1), (6, 3)])
@pytest.mark.parametrize("side", [1, 2, 8])
def test_sums_of_any_size(side, kept, groups, precision):
    model = Block(lambda net, x, y: F.relu((s := F.relu(y)) + net.third(s)))
    model.third = nn.Sequential(nn.Conv2d(6, 6, 1, bias=False, groups=groups), nn.BatchNorm2d(6))
    network, keep = prepared(model.eval(), precision)
    keep[:] = np.arange(len(keep)) < kept
    inputs = images(16, side, seed=1).to(precision or torch.float32, memory_format=torch.channels_last)
    outputs, plain = run(network, keep, inputs)
    assert len(fused_in(network._fused)) == 2
    tolerance = 1e-5 if precision is None else 0.03
    assert torch.allclose(outputs, plain, rtol=tolerance, atol=tolerance)


def test_volumes():
    volumes = torch.randn(16, 3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    network, keep = prepared(Block(lambda net, x, y: net.relu(y + added(net, x)), dims=3).eval(), example=volumes[:8])
    outputs, plain = run(network, keep, volumes)
    assert len(fused_in(network._fused)) == 1
    assert torch.allclose(outputs, plain, rtol=1e-5, atol=1e-6)


def test_what_is_in_double_precision_or_reads_tensors_of_its_layers_is_run_as_it_is():
    model = Block(lambda net, x, y: F.relu(y)).eval()
    double, _ = prepared(copy.deepcopy(model).double(), example=images(8).double())
    assert fused_in(double._fused) == []
    model.body = lambda net, x, y: F.relu(y) * net.head.bias.mean()
    network, _ = prepared(model)
    assert fused_in(network._fused) == []


class WithConstants(Block):
    """Tensors of its own: one that is as wide as a layer, and two that are not, of which one is not saved."""

    def __init__(self):
        super().__init__(lambda net, x, y: net.norm2(net.next(F.relu(y * net.scale))))
        self.next = nn.Conv2d(6, 6, 3, padding=1)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 6).view(6, 1, 1))
        self.register_buffer("mean", torch.rand(3, 1, 1))
        self.register_buffer("deviation", torch.rand(3, 1, 1) + 0.5, persistent=False)

    def forward(self, x):
        return super().forward((x - self.mean) / self.deviation)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_constants_of_the_network_may_be_read(precision):
    network, keep = prepared(WithConstants().eval(), precision)
    inputs = images(16, seed=1).to(precision or torch.float32)
    for mask in (keep, np.roll(keep, 1), keep):
        outputs, plain = run(network, mask, inputs)
        tolerance = 1e-5 if precision is None else 0.03
        assert torch.allclose(outputs, plain, rtol=tolerance, atol=tolerance)
    assert len(network._fused.parts) > 1


class WithSizes(nn.Module):
    """Its forward reads from a layer how wide that is, which changes when channels go."""

    def __init__(self, fusible=True):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8 * 16, 5)
        self.fusible = fusible

    def forward(self, x):
        y = self.norm(self.conv(x))
        y = F.relu(y) if self.fusible else torch.tanh(y)
        return self.head(F.adaptive_avg_pool2d(y, 4).reshape(-1, self.head.in_features))


@pytest.mark.parametrize("fusible", [True, False])
def test_sizes_that_a_forward_reads_are_those_of_the_pruned_network(fusible, capsys):
    network, keep = prepared(WithSizes(fusible).eval())
    inputs = images(16, seed=1)
    outputs, plain = run(network, keep, inputs)
    assert torch.equal(outputs, plain)
    assert fused_in(network._fused) == []
    assert capsys.readouterr().err == ""


class Spatial(nn.Module):
    """Attention over places: with another number of channels its reshaping is possible, and wrong."""

    def __init__(self, width=12):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.next, self.norm2, self.head = nn.Conv2d(width, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        y = F.relu(self.norm(self.conv(x)))
        weights = torch.softmax(y.reshape(y.shape[0], self.conv.out_channels, -1), -1).reshape(y.shape)
        return self.head(F.relu(self.norm2(self.next(y * weights * x.shape[2] * x.shape[3]))).mean((2, 3)))


@pytest.mark.parametrize(("width", "kept"), [(12, 12), (12, 7), (12, 4), (12, 3), (2, 1), (3, 2), (3, 1), (4, 3)])
def test_sizes_that_fit_with_other_numbers_of_channels_do_not_stay(width, kept):
    torch.manual_seed(0)
    side = 14 if width == 12 else 12
    network, keep = prepared(Spatial(width).eval(), example=images(8, side))
    keep[:] = True
    keep[next(iter(network.network.graph.slices.values()))] = np.arange(width) < kept
    outputs, plain = run(network, keep, images(16, side, seed=1))
    assert torch.equal(outputs, plain)
    assert not torch.equal(outputs, outputs[:1].expand_as(outputs))


class Autocast(Block):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def test_autocast_stays():
    network, keep = prepared(Autocast(lambda net, x, y: F.relu(y)).eval())
    outputs, plain = run(network, keep, images(16, seed=1))
    assert outputs.dtype == plain.dtype == torch.bfloat16
    assert torch.equal(outputs, plain)


def test_hooks_of_containers_are_called():
    seen = []
    model = Block(lambda net, x, y: net.block(y)).eval()
    model.block = nn.Sequential(nn.ReLU())
    model.block.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    network, keep = prepared(model)
    seen.clear()
    network.prune(keep)(images(4))
    assert [type(outputs) for outputs in seen] == [torch.Tensor]


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(300, 16)
        self.conv, self.norm, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, tokens):
        return self.head(self.norm(self.conv(self.embedding(tokens)[:, None])).relu().mean((2, 3)))


def test_whole_numbers_stay_what_they_are():
    tokens = torch.arange(292, 300).repeat(8, 1)
    network, keep = prepared(Tokens().eval(), torch.bfloat16, tokens)
    assert len(fused_in(network._fused)) == 1
    outputs, plain = run(network, keep, tokens)
    assert outputs.dtype == torch.bfloat16
    assert torch.allclose(outputs, plain, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("what", ["recalibrated", "weight", "statistics"])
def test_what_is_not_a_number_is_seen(precision, what):
    network, keep = prepared(Block(lambda net, x, y: net.relu(y)).eval(), precision)
    inputs = images(16, seed=1).to(precision or torch.float32)
    assert outputs_of(network.prune(keep, [inputs]), inputs).isfinite().all()
    assert outputs_of(network.prune(keep), inputs).isfinite().all()
    name = "norm.running_var" if what == "statistics" else "first.weight"
    network.network._originals[name][0] = math.nan
    broken = network.prune(keep, [inputs] if what == "recalibrated" else [])
    assert outputs_of(broken, inputs).isnan().all()


@pytest.mark.parametrize("high", [6.0, math.inf])
def test_bits_of_half_precision_are_clamped_as_numbers_are(high):
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    values = values[~values.isnan()]
    assert len(values) > 65_000
    expected = values.clamp(0, high)
    assert torch.equal(_clamp_numbers(values, (0.0, high)), expected)


def test_other_ranges_are_clamped_to():
    values = torch.linspace(-3, 3, 13)
    assert torch.equal(_clamp_numbers(values.bfloat16(), (-1.0, 2.0)), values.clamp(-1, 2).bfloat16())
    assert torch.equal(_clamp_numbers(values.clone(), (0.0, 2.0)), values.clamp(0, 2))
