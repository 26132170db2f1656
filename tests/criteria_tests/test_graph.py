"""Channel groups of networks whose coupling is known by looking at them."""

import pickle
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from blend.budget import CostModel
from blend.tasks.networks import build_network
from criteria import ChannelGraph, CriterionError, GraphError

from .tiny_networks import assert_same, snapshot

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Wired(nn.Module):
    """Layers, and how they are put together."""

    def __init__(self, wiring, **layers):
        super().__init__()
        self.wiring = wiring
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.wiring(self, x)


class Scale(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, int(np.prod(shape))).view(shape))

    def forward(self, x):
        return x * self.gain


def sequential(**layers):
    return nn.Sequential(OrderedDict(layers))


def chain():
    return sequential(
        stem=nn.Conv2d(3, 4, 3, padding=1), norm=nn.BatchNorm2d(4), relu=nn.ReLU(),
        conv=nn.Conv2d(4, 5, 3, bias=False), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(5, 2),
    )  # fmt: skip


def residual():
    return Wired(
        lambda net, x: net.head(F.relu(net.bn2(net.conv2(net.conv1(x))) + net.bn0(net.project(x))).mean((2, 3))),
        head=nn.Linear(6, 2), project=nn.Conv2d(3, 6, 1), bn0=nn.BatchNorm2d(6),
        conv1=nn.Conv2d(3, 4, 3, padding=1), conv2=nn.Conv2d(4, 6, 3, padding=1), bn2=nn.BatchNorm2d(6),
    )  # fmt: skip


def layout(graph):
    """Per group: name, size, producers with their norms, consumers."""
    return [
        (g.name, g.size, [(p.layer, p.norm) for p in g.producers], [c.layer for c in g.consumers]) for g in graph.groups
    ]


def owners(graph):
    return {(axis.tensor, axis.dim): axis.owner.tolist() for axis in graph.axes}


def test_a_chain():
    graph = ChannelGraph.build(chain(), IMAGES)
    assert layout(graph) == [
        ("stem", 4, [("stem", "norm")], ["conv"]),
        ("conv", 5, [("conv", None)], ["head"]),
    ]
    stem, conv = [0, 1, 2, 3], [4, 5, 6, 7, 8]
    assert owners(graph) == {
        ("stem.weight", 0): stem, ("stem.bias", 0): stem,
        ("norm.weight", 0): stem, ("norm.bias", 0): stem, ("norm.running_mean", 0): stem, ("norm.running_var", 0): stem,
        ("conv.weight", 1): stem, ("conv.weight", 0): conv,
        ("head.weight", 1): conv,
    }  # fmt: skip
    assert {(axis.tensor, axis.dim) for axis in graph.axes if axis.consumes} == {("conv.weight", 1), ("head.weight", 1)}
    assert len(graph) == 9
    assert graph.slices == {"stem": slice(0, 4), "conv": slice(4, 9)}
    assert [(group.name, part.tolist()) for group, part in graph.split(np.arange(9))] == [
        ("stem", stem),
        ("conv", conv),
    ]
    assert graph.parameters == {"stem.weight", "stem.bias", "norm.weight", "norm.bias", "conv.weight", "head.weight",
                                "head.bias"}  # fmt: skip
    assert graph.shapes["conv.weight"] == (5, 4, 3, 3)


def test_a_residual_block_with_a_projection_in_forward_order():
    graph = ChannelGraph.build(residual(), IMAGES)
    assert layout(graph) == [  # conv1 runs first, though the projection is registered before it
        ("conv1", 4, [("conv1", None)], ["conv2"]),
        ("conv2", 6, [("conv2", "bn2"), ("project", "bn0")], ["head"]),
    ]
    assert owners(graph)["project.weight", 0] == owners(graph)["conv2.weight", 0] == [4, 5, 6, 7, 8, 9]


def test_a_depthwise_convolution_makes_and_reads_the_same_channels():
    net = sequential(expand=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), deep=nn.Conv2d(4, 4, 3, groups=4),
                     relu=nn.ReLU6(), project=nn.Conv2d(4, 2, 1))  # fmt: skip
    graph = ChannelGraph.build(net, IMAGES)
    assert layout(graph) == [("expand", 4, [("expand", "norm"), ("deep", None)], ["deep", "project"])]
    assert owners(graph)["deep.weight", 0] == [0, 1, 2, 3]
    assert ("deep.weight", 1) not in owners(graph)
    assert [axis.tensor for axis in graph.axes if axis.consumes] == ["project.weight"]


def test_a_concatenation_keeps_its_parts_apart():
    net = Wired(
        lambda net, x: net.head(net.norm(torch.cat([net.left(x), net.stay(x), net.right(x)], 1))),
        left=nn.Conv2d(3, 2, 1), right=nn.Conv2d(3, 4, 1), stay=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(9),
        head=nn.Conv2d(9, 2, 1),
    )  # fmt: skip
    graph = ChannelGraph.build(net, IMAGES, ignore=["stay"])
    assert layout(graph) == [
        ("left", 2, [("left", None)], ["head"]),
        ("right", 4, [("right", None)], ["head"]),
    ]
    joined = [0, 1, -1, -1, -1, 2, 3, 4, 5]
    assert owners(graph)["head.weight", 1] == owners(graph)["norm.running_var", 0] == joined
    assert graph.groups[1].consumers[0].channels.tolist() == [-1, -1, -1, -1, -1, 0, 1, 2, 3]


def test_a_linear_layer_after_flattening_has_several_positions_per_channel():
    net = sequential(conv=nn.Conv2d(3, 2, 4, stride=4), flat=nn.Flatten(), norm=nn.BatchNorm1d(8), head=nn.Linear(8, 3))
    graph = ChannelGraph.build(net, IMAGES)
    assert layout(graph) == [("conv", 2, [("conv", None)], ["head"])]
    assert graph.groups[0].consumers[0].channels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert owners(graph)["norm.weight", 0] == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("net", "shape", "axes"),
    [
        (
            sequential(up=nn.ConvTranspose2d(3, 4, 2), last=nn.ConvTranspose2d(4, 2, 2)),
            (2, 3, 5, 5),
            {("up.weight", 1), ("up.bias", 0), ("last.weight", 0)},
        ),
        (
            sequential(up=nn.Conv1d(3, 4, 3), norm=nn.BatchNorm1d(4, affine=False), last=nn.Conv1d(4, 2, 3)),
            (2, 3, 9),
            {("up.weight", 0), ("up.bias", 0), ("norm.running_mean", 0), ("norm.running_var", 0), ("last.weight", 1)},
        ),
        (
            sequential(up=nn.Conv3d(3, 4, 2), act=nn.PReLU(4), one=nn.PReLU(), last=nn.Conv3d(4, 2, 2)),
            (2, 3, 4, 4, 4),
            {("up.weight", 0), ("up.bias", 0), ("act.weight", 0), ("last.weight", 1)},
        ),
        (
            sequential(up=nn.Linear(3, 4), act=nn.Tanh(), last=nn.Linear(4, 2)),
            (2, 3),
            {("up.weight", 0), ("up.bias", 0), ("last.weight", 1)},
        ),
    ],
    ids=["transposed", "1d", "3d", "mlp"],
)
def test_every_kind_of_layer(net, shape, axes):
    graph = ChannelGraph.build(net, torch.randn(shape))
    norm = "norm" if hasattr(net, "norm") else None
    assert layout(graph) == [("up", 4, [("up", norm)], ["last"])]
    assert owners(graph) == {key: [0, 1, 2, 3] for key in axes}


def test_a_scale_held_by_a_module_of_its_own_is_sliced_with_its_channels():
    net = sequential(conv=nn.Conv2d(3, 4, 1), scale=Scale(1, 4, 1, 1), alpha=Scale(1), head=nn.Conv2d(4, 2, 1))
    graph = ChannelGraph.build(net, IMAGES)
    assert owners(graph)["scale.gain", 1] == [0, 1, 2, 3]
    assert not any(axis.tensor == "alpha.gain" for axis in graph.axes)


def test_a_layer_that_is_called_twice_is_coupled_with_itself():
    net = Wired(
        lambda net, x: net.head(net.conv(F.relu(net.norm(net.conv(net.stem(x))))).mean((2, 3))),
        stem=nn.Conv2d(3, 4, 1), conv=nn.Conv2d(4, 4, 3, padding=1), norm=nn.BatchNorm2d(4), head=nn.Linear(4, 2),
    )  # fmt: skip
    graph = ChannelGraph.build(net, IMAGES)
    # The norm reads only one of the two outputs of conv, so that it is not the norm of conv.
    assert layout(graph) == [("stem", 4, [("stem", None), ("conv", None)], ["conv", "head"])]
    assert graph.positions["conv.weight"] == 2 * 64


def test_one_module_under_two_names_is_one_layer():
    conv = nn.Conv2d(4, 4, 1)
    net = sequential(stem=nn.Conv2d(3, 4, 1), conv=conv, alias=conv, head=nn.Conv2d(4, 2, 1))
    graph = ChannelGraph.build(net, IMAGES)
    assert layout(graph) == [("stem", 4, [("stem", None), ("conv", None)], ["conv", "head"])]
    assert sum(name.endswith("weight") for name in graph.parameters) == 3


@pytest.mark.parametrize(
    "net",
    [
        sequential(only=nn.Conv2d(3, 4, 1)),
        sequential(conv=nn.Conv2d(3, 4, 1), relu=nn.ReLU(inplace=True)),
        sequential(conv=nn.Conv2d(3, 4, 1), deep=nn.Conv2d(4, 4, 1, groups=4)),
        Wired(lambda net, x: net.conv(net.conv(x)), conv=nn.Conv2d(3, 3, 1)),
        Wired(lambda net, x: net.conv(x) + net.skip(x), conv=nn.Conv2d(3, 3, 1), skip=nn.Conv2d(3, 3, 1)),
    ],
    ids=["one layer", "activation", "depthwise", "called twice", "sum"],
)
def test_channels_that_reach_the_output_are_never_prunable(net):
    with pytest.raises(GraphError, match="the network has no prunable channel group"):
        ChannelGraph.build(net, IMAGES)


def test_a_buffer_that_is_a_single_number_belongs_to_no_channel():
    layers = {"conv": nn.Conv2d(3, 4, 3), "head": nn.Linear(4, 2)}
    network = Wired(lambda net, x: net.head(net.conv(x / net.scale).mean((2, 3))), **layers)
    network.register_buffer("scale", torch.tensor(2.0))
    assert [(group.name, group.size) for group in ChannelGraph.build(network, IMAGES).groups] == [("conv", 4)]


@pytest.mark.parametrize("computed", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_a_weight_that_is_computed_stays_and_counts(computed):
    plain = sequential(stem=nn.Conv2d(3, 4, 3), conv=nn.Conv2d(4, 5, 3), tail=nn.Conv2d(5, 2, 3))
    whole = CostModel(ChannelGraph.build(plain, IMAGES)).full
    with torch.no_grad():
        plain.stem = computed(plain.stem)
    graph = ChannelGraph.build(plain, IMAGES)
    assert [group.name for group in graph.groups] == ["conv"]
    assert CostModel(graph).full == whole


def test_a_forward_that_keeps_calling_another_networks_layers_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    calls_these = network.forward
    network.forward = lambda images: calls_these(images) * 2
    with pytest.raises(GraphError, match="replaced on the instance keeps calling the layers of the network"):
        ChannelGraph.build(network, torch.ones(1, 3, 8, 8))


@pytest.mark.parametrize("name", ["resnet20", "vgg16_bn", "mobilenetv2"])
def test_positions_times_elements_are_the_macs(name):
    net = build_network(name, in_channels=3, classes=10, width=4 if name == "resnet20" else 0.25).eval()
    images = torch.randn(2, 3, 32, 32)
    graph = ChannelGraph.build(net, images)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images)
    macs = sum(np.prod(graph.shapes[tensor]) * uses for tensor, uses in graph.positions.items())
    assert 2 * macs * len(images) == counter.get_total_flops()  # two operations per multiply-accumulate
    assert graph.groups[0].name in ("stem.0", "features.0")
    assert "classifier" not in {p.layer for g in graph.groups for p in g.producers}


def test_positions_of_layers_that_see_an_example_in_several_pieces():
    net = Wired(
        lambda net, x: net.up(net.tokens(input=x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (8, 8))),
        tokens=nn.Linear(3, 4), up=nn.ConvTranspose2d(4, 2, 2, stride=2),
    )  # fmt: skip
    graph = ChannelGraph.build(net, IMAGES)
    assert graph.positions == {"tokens.weight": 64, "up.weight": 64}
    folded = Wired(lambda net, x: net.b(net.a(x.flatten(0, 1))).view(len(x), -1), a=nn.Linear(8, 4), b=nn.Linear(4, 2))
    assert ChannelGraph.build(folded, IMAGES).positions == {"a.weight": 3 * 8, "b.weight": 3 * 8}


@pytest.mark.parametrize("batch", [1, 3])
def test_the_example_is_always_a_batch(batch):
    """A network that also takes one example without a batch axis must not be traced on one."""
    net = Wired(
        lambda net, x: net.head(torch.cat([net.a(x), net.b(x)], -1)),
        a=nn.Linear(3, 4), b=nn.Linear(3, 4), head=nn.Linear(8, 2),
    )  # fmt: skip
    graph = ChannelGraph.build(net, torch.randn(batch, 3))
    assert owners(graph)["head.weight", 1] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert graph.positions == {"a.weight": 1, "b.weight": 1, "head.weight": 1}


def test_the_network_is_not_touched():
    net = residual().train()
    net.bn0.eval()
    net(IMAGES).sum().backward()
    net.conv1.register_forward_hook(lambda module, args, output: None)
    before = snapshot(net)
    ChannelGraph.build(net, IMAGES)
    assert_same(before, snapshot(net))


def test_it_works_without_gradients():
    with torch.no_grad():
        assert layout(ChannelGraph.build(chain(), IMAGES)) == layout(ChannelGraph.build(chain(), IMAGES))


def test_pickle_keeps_everything():
    graph = ChannelGraph.build(residual(), IMAGES)
    copied = pickle.loads(pickle.dumps(graph))
    assert (copied.fingerprint, layout(copied), owners(copied)) == (graph.fingerprint, layout(graph), owners(graph))
    assert (copied.positions, copied.parameters, copied.shapes) == (graph.positions, graph.parameters, graph.shapes)


def test_the_fingerprint_follows_the_layout_and_not_the_weights():
    torch.manual_seed(0)
    one = ChannelGraph.build(chain(), IMAGES)
    other = ChannelGraph.build(chain(), IMAGES)
    assert one.fingerprint == other.fingerprint
    wider = chain()
    wider.stem, wider.norm, wider.conv = (
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 5, 3, bias=False),
    )
    fewer = ChannelGraph.build(chain(), IMAGES, ignore=["conv"])
    swapped = Wired(lambda net, x: net.c(torch.cat([net.b(x), net.a(x)], 1)), a=nn.Conv2d(3, 2, 1),
                    b=nn.Conv2d(3, 2, 1), c=nn.Conv2d(4, 1, 1))  # fmt: skip
    straight = Wired(lambda net, x: net.c(torch.cat([net.a(x), net.b(x)], 1)), a=nn.Conv2d(3, 2, 1),
                     b=nn.Conv2d(3, 2, 1), c=nn.Conv2d(4, 1, 1))  # fmt: skip
    graphs = [one, fewer, *(ChannelGraph.build(net, IMAGES) for net in (wider, swapped, straight))]
    assert len({graph.fingerprint for graph in graphs}) == 5


def test_ignored_layers_stay_whole():
    assert layout(ChannelGraph.build(chain(), IMAGES, ignore=["st*"])) == [("conv", 5, [("conv", None)], ["head"])]
    graph = ChannelGraph.build(residual(), IMAGES, ignore=["project"])  # and with it all that it is coupled to
    assert layout(graph) == [("conv1", 4, [("conv1", None)], ["conv2"])]


def test_ignoring_a_module_ignores_everything_inside_it():
    net = sequential(block=sequential(a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1)), block2=nn.Conv2d(4, 4, 1),
                     head=nn.Conv2d(4, 2, 1))  # fmt: skip
    assert [g.name for g in ChannelGraph.build(net, IMAGES, ignore=["block"]).groups] == ["block2"]


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(GraphError, match=r"ignore: no layer matches 'stern'; the layers are called stem, norm, relu"):
        ChannelGraph.build(chain(), IMAGES, ignore=["stern"])


def test_frozen_layers_are_refused_unless_they_are_ignored():
    net = chain()
    net.norm.bias.requires_grad_(False)
    with pytest.raises(GraphError, match=r"parameter 'norm\.bias' is frozen .*ignore=\['norm'\]"):
        ChannelGraph.build(net, IMAGES)
    assert [group.name for group in ChannelGraph.build(net, IMAGES, ignore=["norm"]).groups] == ["conv"]
    assert not net.norm.bias.requires_grad
    frozen = nn.Sequential(sequential(a=nn.Conv2d(3, 4, 1), n=nn.BatchNorm2d(4)).requires_grad_(False), chain()[3:])
    assert [group.name for group in ChannelGraph.build(frozen, IMAGES, ignore=["0"]).groups] == ["1.conv"]


def refused(net, shape=(2, 3, 8, 8)):
    with pytest.raises(GraphError) as caught:
        ChannelGraph.build(net, torch.randn(shape))
    assert isinstance(caught.value, CriterionError)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def notes(graph):
    return [(note.group, note.layer, note.reason) for note in graph.notes]


def test_conv_groups_keep_their_number_and_lose_the_same_channels():
    net = sequential(conv=nn.Conv2d(3, 4, 1), odd=nn.Conv2d(4, 6, 1, groups=2),
                     up=nn.ConvTranspose2d(6, 4, 1, groups=2), last=nn.Conv2d(4, 2, 1))  # fmt: skip
    graph = ChannelGraph.build(net, IMAGES)
    assert layout(graph) == [
        ("conv", 2, [("conv", None)], ["odd"]),
        ("odd", 3, [("odd", None)], ["up"]),
        ("up", 2, [("up", None)], ["last"]),
    ]  # fmt: skip
    assert owners(graph) == {
        ("conv.weight", 0): [0, 1, 0, 1], ("conv.bias", 0): [0, 1, 0, 1], ("odd.weight", 1): [0, 1],
        ("odd.weight", 0): [2, 3, 4, 2, 3, 4], ("odd.bias", 0): [2, 3, 4, 2, 3, 4],
        ("up.weight", 0): [2, 3, 4, 2, 3, 4], ("up.weight", 1): [5, 6], ("up.bias", 0): [5, 6, 5, 6],
        ("last.weight", 1): [5, 6, 5, 6],
    }  # fmt: skip
    assert graph.groups[0].consumers[0].channels.tolist() == [0, 1, 0, 1]


def test_several_filters_for_each_channel_go_with_it():
    net = sequential(conv=nn.Conv2d(3, 4, 1), deep=nn.Conv2d(4, 8, 1, groups=4), last=nn.Conv2d(8, 2, 1))
    graph = ChannelGraph.build(net, IMAGES)
    assert layout(graph) == [("conv", 4, [("conv", None), ("deep", None)], ["deep", "last"])]
    assert owners(graph)["deep.weight", 0] == owners(graph)["last.weight", 1] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert ("deep.weight", 1) not in owners(graph)


def test_group_norm_loses_whole_groups():
    net = sequential(conv=nn.Conv2d(3, 6, 1), norm=nn.GroupNorm(3, 6), last=nn.Conv2d(6, 2, 1))
    graph = ChannelGraph.build(net, IMAGES)
    assert [(group.name, group.size) for group in graph.groups] == [("conv", 3)]
    assert owners(graph)["norm.weight", 0] == owners(graph)["last.weight", 1] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (nn.GroupNorm(1, 4), "mixes all channels (GroupNorm)"),
        (nn.GroupNorm(2, 4, affine=False), "does not know its number of channels (GroupNorm with affine=False)"),
        (nn.LayerNorm([4, 8, 8]), "mixes channels (LayerNorm)"),
        (nn.Softmax(1), "mixes channels (_softmax)"),
        (nn.LocalResponseNorm(2), "mixes channels (avg_pool3d)"),
        (nn.utils.spectral_norm(nn.Conv2d(4, 4, 1)), "has a weight that is computed from other parameters"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)  # fmt: skip
def test_channels_that_a_layer_mixes_are_left_alone_with_a_note(odd, reason):
    net = sequential(first=nn.Conv2d(3, 5, 1), conv=nn.Conv2d(5, 4, 1), odd=odd, last=nn.Conv2d(4, 2, 1))
    graph = ChannelGraph.build(net, IMAGES)
    assert [group.name for group in graph.groups] == ["first"]
    assert ("conv", "odd", reason) in notes(graph)
    assert not any(axis.tensor.startswith(("conv.bias", "odd", "last")) for axis in graph.axes)
    with pytest.raises(GraphError, match=r"no prunable channel group: .*'conv' are left alone: 'odd' "):
        ChannelGraph.build(net[1:], torch.randn(2, 5, 8, 8))
    assert not ChannelGraph.build(net, IMAGES, ignore=["conv", "odd"]).notes  # nobody has to be told


def wired(wiring, **layers):
    layers = {"inner": nn.Conv2d(3, 4, 1), "conv": nn.Conv2d(4, 8, 1), **layers}
    return Wired(lambda net, x: net.last(wiring(net, net.conv(net.inner(x)), x)), last=nn.LazyConv2d(2, 1), **layers)


@pytest.mark.parametrize(
    ("wiring", "layer", "reason"),
    [
        (lambda net, y, x: y - y.mean(1, keepdim=True), "", "mixes channels (mean)"),
        (lambda net, y, x: y.roll(1, 1), "", "mixes or reorders channels (roll)"),
        (lambda net, y, x: y[:, :6], "", "takes some of the channels by their position"),
        (lambda net, y, x: y.split([5, 3], 1)[0], "", "takes some of the channels by their position"),
        (lambda net, y, x: y + torch.ones(8, 1, 1), "", "is combined with values that stay"),
        (lambda net, y, x: F.conv2d(y, torch.ones(2, 8, 1, 1)), "", "mixes or reorders channels (convolution)"),
        (lambda net, y, x: torch.zeros_like(y).copy_(y), "", "mixes or reorders channels (copy_)"),
        (lambda net, y, x: y.as_strided(y.shape, (512, 8, 64, 1)), "", "mixes or reorders channels (as_strided)"),
        (lambda net, y, x: torch.einsum("nchw,cd->ndhw", y, torch.ones(8, 8)), "", "mixes or reorders channels (bmm)"),
    ],
    ids=["mean", "roll", "slice", "split", "constant", "functional", "copy", "strides", "einsum"],
)  # fmt: skip
def test_channels_that_an_operation_mixes_are_left_alone_with_a_note(wiring, layer, reason):
    net = wired(wiring)
    net(IMAGES)
    graph = ChannelGraph.build(net, IMAGES)
    assert [group.name for group in graph.groups] == ["inner"]
    assert notes(graph) == [("conv", layer, reason)]


@pytest.mark.parametrize(
    ("wiring", "owner"),
    [
        (lambda net, y, x: y.flip(1), [7, 6, 5, 4, 3, 2, 1, 0]),
        (lambda net, y, x: torch.mul(*y.chunk(2, 1)), [0, 1, 2, 3]),
        (lambda net, y, x: F.glu(y, 1), [0, 1, 2, 3]),
        (lambda net, y, x: F.pixel_shuffle(y, 2), [0, 1]),
        (lambda net, y, x: F.channel_shuffle(y, 2), [0, 0, 1, 1, 2, 2, 3, 3]),
        (lambda net, y, x: y.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2), [0, 0, 1, 1, 2, 2, 3, 3]),
        (lambda net, y, x: torch.cat([x, y, x], 1), [-1, -1, -1, 0, 1, 2, 3, 4, 5, 6, 7, -1, -1, -1]),
        (lambda net, y, x: y * x.mean(1, keepdim=True), [0, 1, 2, 3, 4, 5, 6, 7]),
        (lambda net, y, x: F.pad(y, (1, 1, 0, 0, 1, 1)), [-1, 0, 1, 2, 3, 4, 5, 6, 7, -1]),
        (lambda net, y, x: y.clone().add_(1).mul_(y), [0, 1, 2, 3, 4, 5, 6, 7]),
        (lambda net, y, x: F.interpolate(y, scale_factor=2, mode="bilinear"), [0, 1, 2, 3, 4, 5, 6, 7]),
        (lambda net, y, x: y.permute(2, 3, 0, 1)[1:].mean((0, 1)).softmax(0)[:, :, None, None] ,
         [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
    ids=["flip", "chunk", "glu", "pixels", "shuffle", "reshape", "cat", "map", "pad", "in place", "up", "dimensions"],
)  # fmt: skip
def test_operations_move_channels(wiring, owner):
    net = wired(wiring)
    net(IMAGES)
    graph = ChannelGraph.build(net, IMAGES)
    assert not graph.notes
    assert (np.array(owners(graph)["last.weight", 1]) - 4 * (np.array(owner) >= 0)).tolist() == owner


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1), nn.AvgPool2d(8)])
def test_the_memory_format_of_images_changes_nothing(pool):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), pool, nn.Conv2d(8, 5, 1)).eval()
    images = torch.randn(2, 3, 8, 8)
    plain = ChannelGraph.build(net, images)
    last = ChannelGraph.build(
        net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    )
    assert (len(plain.groups), plain.notes) == (1, ())
    assert (last.fingerprint, last.notes) == (plain.fingerprint, ())


class LayerNorm2d(nn.LayerNorm):
    def forward(self, maps):
        maps = nn.functional.layer_norm(maps.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias)
        return maps.permute(0, 3, 1, 2)


def test_a_layer_norm_with_a_forward_of_its_own_is_followed_through_that():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), LayerNorm2d(8), nn.Conv2d(8, 12, 1), nn.GELU(), nn.Conv2d(12, 5, 1))
    graph = ChannelGraph.build(net.eval(), torch.randn(2, 3, 10, 10))
    assert [group.name for group in graph.groups] == ["2"]
    assert notes(graph) == [("0", "1", "mixes or reorders channels (native_layer_norm)")]


def test_what_is_written_into_another_tensor_is_left_alone():
    def write(net, y, x):
        joined = torch.zeros(len(y), 11, *y.shape[2:])
        joined[:, 3:] = y
        joined[:, :3] += x
        return joined

    net = wired(write)
    net(IMAGES)
    assert notes(ChannelGraph.build(net, IMAGES)) == [("conv", "", "mixes or reorders channels (copy_)")]


def test_channels_of_one_layer_may_belong_to_several_groups():
    part = Wired(
        lambda net, x: net.last(torch.cat([net.a(x), net.b(x)], 1) + net.both(x)),
        both=nn.Conv2d(3, 6, 1), a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(3, 4, 1), last=nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    graph = ChannelGraph.build(part, IMAGES)
    assert layout(graph) == [
        ("a", 2, [("a", None), ("both", None)], ["last"]), ("b", 4, [("b", None), ("both", None)], ["last"]),
    ]  # fmt: skip
    assert owners(graph)["both.weight", 0] == [0, 1, 2, 3, 4, 5]
    first = Wired(
        lambda net, x: net.last(net.both(x) + torch.cat([net.a(x), net.b(x)], 1)),
        both=nn.Conv2d(3, 6, 1), a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(3, 4, 1), last=nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    assert [group.name for group in ChannelGraph.build(first, IMAGES).groups] == ["both", "both#2"]


def test_channels_that_meet_zeros_stay():
    net = Wired(
        lambda net, x: net.last(F.pad(net.conv(x), (0, 0, 0, 0, 1, 1)) + net.wide(x)),
        conv=nn.Conv2d(3, 4, 1), wide=nn.Conv2d(3, 6, 1), last=nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    graph = ChannelGraph.build(net, IMAGES)
    assert owners(graph)["wide.weight", 0] == owners(graph)["last.weight", 1] == [-1, 0, 1, 2, 3, -1]
    assert notes(graph) == [("wide", "", "is combined with values that stay")]


def test_parameters_outside_of_layers():
    class Odd(nn.Module):
        def __init__(self, bias_used=False):
            super().__init__()
            self.bias_used = bias_used
            self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.scale, self.grid = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(1, 4, 8, 8))
            self.register_buffer("shift", torch.ones(4, 1, 1))

        def forward(self, x):
            x = self.conv(x) * self.scale.view(1, -1, 1, 1) + self.grid - self.shift
            return self.last(x * self.conv.bias[:, None, None] if self.bias_used else x).mean()

    graph = ChannelGraph.build(Odd(), IMAGES)
    ours = {key: owner for key, owner in owners(graph).items() if key[0] in ("scale", "grid", "shift")}
    assert ours == {("scale", 0): [0, 1, 2, 3], ("grid", 1): [0, 1, 2, 3], ("shift", 0): [0, 1, 2, 3]}
    with pytest.raises(GraphError, match=r"'conv\.bias' is also used outside of its layer"):
        ChannelGraph.build(Odd(bias_used=True), IMAGES)


def test_numbers_outside_of_layers():
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
            self.temperature = nn.Parameter(torch.tensor(0.5))
            self.register_buffer("passes", torch.tensor(0))

        def forward(self, x):
            self.passes += 1
            return self.last(self.conv(x) * self.temperature.exp()) / (1 + self.passes.sqrt())

    graph = ChannelGraph.build(Tempered(), IMAGES)
    assert notes(graph) == []
    assert owners(graph)["conv.weight", 0] == owners(graph)["last.weight", 1] == [0, 1, 2, 3]


def test_weights_that_are_not_a_layers_own_stay():
    tied = sequential(a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1), last=nn.Conv2d(3, 2, 1))
    tied.b.weight = tied.a.weight
    assert "'a' shares its weight with 'b'; " in refused(tied)
    assert "'b' shares its weight with 'a'" in refused(tied)
    computed = sequential(a=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), last=nn.Conv2d(3, 2, 1))
    assert "'a' has a weight that is computed from other parameters" in refused(computed)
    with torch.enable_grad():
        uncopiable = sequential(a=nn.Conv2d(3, 3, 1), last=nn.Conv2d(3, 2, 1))
        uncopiable.leftover = uncopiable.a.weight * 2
    assert refused(uncopiable).startswith("the network must be one that can be copied, got RuntimeError: ")


def test_a_layer_that_reads_other_channels_than_it_is_given_is_left_alone():
    class WithCoordinates(nn.Conv2d):
        def forward(self, x):
            return super().forward(torch.cat([x, x[:, :1] * 0 + 1], 1))

    net = sequential(
        stem=nn.Conv2d(3, 6, 3, padding=1), odd=WithCoordinates(7, 5, 1),
        next=nn.Conv2d(5, 4, 1), last=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    graph = ChannelGraph.build(net, IMAGES)
    assert [group.name for group in graph.groups] == ["next"]
    told = "the channels of 'stem' are left alone: 'odd' reads or makes other channels than its weight has"
    assert [str(note) for note in graph.notes] == [told]


def test_multiplications_outside_of_layers_are_known():
    net = Wired(
        lambda net, x: net.last(net.mid(F.conv2d(net.stem(x), net.own.gain)).relu()),
        stem=nn.Conv2d(3, 6, 3, padding=1), own=Scale(5, 6, 3, 3), mid=nn.Conv2d(5, 4, 1), last=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(IMAGES)
    graph = ChannelGraph.build(net, IMAGES)
    layers = sum(np.prod(graph.shapes[tensor]) * uses for tensor, uses in graph.positions.items())
    assert graph.uncounted == {"": 5 * 6 * 9 * 36}
    assert 2 * len(IMAGES) * (layers + graph.uncounted[""]) == counter.get_total_flops()


def by_hand(q, k, v):
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v


@pytest.mark.parametrize("attention", [F.scaled_dot_product_attention, by_hand])
def test_multiplications_of_attention_are_known_however_it_is_written(attention):
    def wiring(net, x):
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        return net.head(attention(tokens, tokens, tokens).mean(1))

    net = Wired(wiring, stem=nn.Conv2d(3, 6, 2, 2), head=nn.Linear(6, 4), last=nn.Identity()).eval()
    net.head = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    assert ChannelGraph.build(net, IMAGES).uncounted == {"": 2 * 16 * 16 * 6}


def test_multiplications_of_a_layer_of_attention_are_known():
    """Four projections of 16 tokens, and twice every pair of tokens."""
    tokens = Wired(lambda net, x: x.flatten(2).transpose(1, 2))
    own = nn.MultiheadAttention(6, 2, batch_first=True)
    attention = Wired(lambda net, x: net.own(x, x, x, need_weights=False)[0], own=own)
    layers = {"stem": nn.Conv2d(3, 6, 2, 2), "tokens": tokens, "attention": attention}
    net = sequential(**layers, wide=nn.Linear(6, 5), head=nn.Linear(5, 4))
    assert sum(ChannelGraph.build(net.eval(), IMAGES).uncounted.values()) == 4 * 16 * 6 * 6 + 2 * 16 * 16 * 6


def test_a_lazy_layer_whose_weight_was_loaded_is_one_like_others():
    net = nn.Sequential(nn.LazyConv2d(6, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    net.load_state_dict(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).state_dict())
    assert [(group.name, group.size) for group in ChannelGraph.build(net.eval(), IMAGES).groups] == [("0", 6)]


def test_a_network_that_cannot_be_copied_is_refused():
    net = chain().eval()
    net.rows = (row for row in range(3))
    with pytest.raises(GraphError, match="one that can be copied, got TypeError: cannot pickle 'generator' object"):
        ChannelGraph.build(net, IMAGES)


def test_a_convolution_that_returns_more_than_a_tensor_is_named():
    class Partial(nn.Conv2d):
        def forward(self, x):
            return super().forward(x), x[:, :1] > 0

    net = Wired(lambda net, x: net.last(net.masked(x)[0]), masked=Partial(3, 6, 1), last=nn.Conv2d(6, 2, 1))
    with pytest.raises(GraphError, match="layer 'masked' must return one tensor, got tuple"):
        ChannelGraph.build(net.eval(), IMAGES)


def test_elements_of_large_tensors_take_no_table_of_all_axes():
    """A square matrix of 512 outside of layers: a row of the table for each of its elements took a gigabyte."""
    mixing = Wired(lambda net, x: x @ net.own.gain, own=Scale(512, 512))
    net = sequential(
        **{f"conv{i}": nn.Conv2d(3 if i == 0 else 4, 4, 1) for i in range(60)}, pool=nn.AdaptiveAvgPool2d(16),
        wide=nn.Conv2d(4, 2, 1), flat=nn.Flatten(), mixing=mixing, head=nn.Linear(512, 3),
    ).eval()  # fmt: skip
    tracemalloc.start()
    ChannelGraph.build(net, IMAGES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * 2**20
