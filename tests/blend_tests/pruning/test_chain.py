"""Candidates that begin where an earlier one has been give the same bits as candidates that begin at the beginning."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blend.pruning import chain, reproducibly
from blend.pruning.inference import InferenceNetwork
from blend.pruning.prefixes import PrefixCache
from criteria import ChannelGraph
from tests.networks import NETWORKS, build
from tests.networks import inputs as inputs_of

from ..small_networks import SIDE, graph_of, images, random_keep

ROOM = 2**28


def cached(model, graph, example, limit=ROOM):
    """A network, and its cache."""
    cache = PrefixCache(limit)
    return InferenceNetwork(model, graph, example, cache=cache), cache


def masks(graph, count=12, seed=0):
    """Each differs from an earlier one in the last channel of a group, or in any others of it."""
    rng, found = np.random.default_rng(seed), [random_keep(graph, seed)]
    while len(found) < count:
        keep = found[rng.integers(len(found))].copy()
        group = list(graph.slices.values())[rng.integers(len(graph.groups))]
        if len(found) % 2:
            keep[group.stop - 1] ^= group.stop - group.start > 1
        else:
            keep[group] = random_keep(graph, rng.integers(2**31))[group]
        found.append(keep)
    return found


def outputs(network, keep, inputs):
    """Of a network recalibrated on the inputs, in batches that have a name; with its statistics."""
    with reproducibly(), torch.no_grad():
        pruned = network.prune(keep, inputs.split(3))
        made = [pruned(batch, number) for number, batch in enumerate(inputs.split(3))]
    return torch.cat(made), network.statistics()


def are_equal(one, other):
    return torch.equal(one[0], other[0]) and all(torch.equal(one[1][name], other[1][name]) for name in one[1])


@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.Identity])
def test_nothing_need_be_fused(norm, activation):
    torch.manual_seed(0)
    layers = [(nn.Conv2d(a, b, 3, padding=1), norm(b), activation()) for a, b in ((3, 8), (8, 8), (8, 6))]
    flat = [layer for block in layers for layer in block]
    model = nn.Sequential(*flat, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    graph = ChannelGraph.build(model, images(2, 8))
    network, cache = cached(model, graph, images(4, 8))
    plain = InferenceNetwork(model, graph, images(4, 8))
    for keep in masks(graph):
        assert are_equal(outputs(network, keep, images(6, 8, seed=1)), outputs(plain, keep, images(6, 8, seed=1)))
    assert cache.hits > 0


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "vgg16_bn"])
def test_outputs_and_statistics_are_the_same_bits_and_found_again(name):
    model, graph = graph_of(name)
    example, inputs = images(4, SIDE[name]), images(6, SIDE[name], seed=1)
    network, cache = cached(model, graph, example)
    plain = InferenceNetwork(model, graph, example)
    for keep in masks(graph):
        assert are_equal(outputs(network, keep, inputs), outputs(plain, keep, inputs))
    assert cache.hits > 8


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_kind_of_network(name, monkeypatch):
    monkeypatch.setattr(chain, "_PORTION_BYTES", 1)  # one image at a time wherever that can be
    model = build(name)
    graph, inputs = ChannelGraph.build(model, inputs_of(name)), inputs_of(name, 6, seed=1)
    network, _ = cached(model, graph, inputs_of(name))
    plain = InferenceNetwork(model, graph, inputs_of(name))
    for keep in masks(graph, 8):
        assert are_equal(outputs(network, keep, inputs), outputs(plain, keep, inputs))


class Counted(nn.Conv2d):
    """A convolution that counts how often it is run, and is not traced into."""

    runs = 0

    def forward(self, x):
        self.runs += 1
        return super().forward(x)


def counted():
    torch.manual_seed(0)
    layers = [Counted(3 if number == 0 else 6, 6, 3, padding=1, bias=False) for number in range(4)]
    blocks = [nn.Sequential(layer, nn.BatchNorm2d(6), nn.ReLU()) for layer in layers]
    model = nn.Sequential(*blocks, nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(384, 2))
    return model.eval()


def test_layers_before_the_first_difference_are_not_run():
    model = counted()
    graph = ChannelGraph.build(model, images(2, 8))
    network, _ = cached(model, graph, images(4, 8))
    layers = [layer for layer in network.network.shell.modules() if isinstance(layer, Counted)]
    first = random_keep(graph, 0)
    third = first.copy()
    third[graph.slices["2.0"]] = ~first[graph.slices["2.0"]]
    others = [np.where(np.arange(len(graph)) < graph.slices["3.0"].start, third, random_keep(graph, n)) for n in (3, 4)]
    runs = []
    for keep in (first, third, *others):
        before = [layer.runs for layer in layers]
        outputs(network, keep, images(2, 8))
        runs.append([layer.runs - earlier for layer, earlier in zip(layers, before, strict=True)])
    # Twice for recalibration and outputs. What the first two candidates share, the second keeps and the third finds;
    # what the third shares with the second alone, it keeps for the fourth.
    assert runs == [[2, 2, 2, 2], [2, 2, 2, 2], [0, 0, 2, 2], [0, 0, 0, 2]]


class Unusual(nn.Module):
    """With a forward that the caller writes the middle of."""

    def __init__(self, body):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(n, 6, 3, padding=1, bias=False) for n in (3, 6, 6))
        self.norm, self.norm2, self.norm3 = (nn.BatchNorm2d(6) for _ in range(3))
        self.writing = Writing(6, 6, 3, padding=1, bias=False)
        self.head, self.body = nn.Linear(6, 4), body

    def forward(self, x):
        return self.head(self.body(self, F.relu(self.norm(self.first(x)))).mean((2, 3)))


class Writing(nn.Conv2d):
    """A convolution that writes to what it reads."""

    def forward(self, x):
        return super().forward(x.sub_(0.5).abs_())


def overwritten(net, x):
    return F.relu(net.norm3(net.third(F.relu(net.norm2(net.writing(x))))))


def visited_twice(net, x):
    return F.relu(net.norm2(net.third(F.relu(net.norm2(net.second(x))))))


def two_pass(net, x):
    return F.relu(net.norm2(net.second(x))) + F.relu(net.norm3(net.third(x)))


@pytest.mark.parametrize(("body", "parts"), [(overwritten, 4), (visited_twice, 3), (two_pass, 3)])
def test_nothing_that_comes_after_a_part_changes_what_is_kept_of_it(body, parts):
    torch.manual_seed(0)
    model = Unusual(body).eval()
    graph = ChannelGraph.build(model, images(2, 8))
    network, cache = cached(model, graph, images(4, 8))
    plain = InferenceNetwork(model, graph, images(4, 8))
    for keep in masks(graph, 24):
        assert are_equal(outputs(network, keep, images(6, 8, seed=1)), outputs(plain, keep, images(6, 8, seed=1)))
    assert len(network._fused.parts) == parts
    assert cache.hits


def with_prelu():
    torch.manual_seed(0)
    convs = [nn.Conv2d(n, 6, 3, padding=1, bias=False) for n in (3, 6, 6, 6)]
    ends = [nn.ReLU(), nn.PReLU(), nn.PReLU(), nn.ReLU()]
    layers = [layer for conv, end in zip(convs, ends, strict=True) for layer in (conv, nn.BatchNorm2d(6), end)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


@pytest.mark.parametrize("ignore", [(), ("0", "3"), ("6", "9")])
def test_parts_that_no_channel_says_anything_about(ignore):
    model = with_prelu()
    graph = ChannelGraph.build(model, images(2, 8), ignore)
    network, cache = cached(model, graph, images(4, 8))
    plain = InferenceNetwork(model, graph, images(4, 8))
    for keep in masks(graph, 24):
        assert are_equal(outputs(network, keep, images(6, 8, seed=1)), outputs(plain, keep, images(6, 8, seed=1)))
    assert any(len(channels) == 0 for channels in network._fused._channels)
    assert cache.hits


def test_portions_are_small_where_maps_are_large():
    mebibyte = 2.0**20
    maps = [mebibyte / 8, mebibyte / 2, mebibyte / 4, mebibyte / 8, mebibyte / 16, mebibyte / 64]
    # 64 images of the first, 16 of the next two, which are alike; 64 or more are half of all: as a whole.
    assert chain._stretches(maps, 256) == [(0, 1, 64), (1, 3, 16), (3, 5, 64), (5, 6, 0)]
    assert chain._stretches(maps, 128) == [(0, 1, 0), (1, 3, 16), (3, 5, 0), (5, 6, 0)]
    assert chain._stretches([100 * mebibyte], 8) == [(0, 1, 1)]
    assert chain._stretches([100 * mebibyte], 1) == [(0, 1, 0)]


class Counting(nn.Conv2d):
    """A convolution that tells how many images it is given at once, and is not traced into."""

    def forward(self, x):
        self.__dict__.setdefault("given", []).append(len(x))
        return super().forward(x)


class Narrowing(nn.Module):
    """Large maps, small maps, and a middle that the caller writes."""

    def __init__(self, middle=lambda x: x):
        super().__init__()
        self.convs = nn.ModuleList(Counting(a, b, 3, padding=1) for a, b in ((3, 8), (8, 8), (8, 8), (8, 6)))
        self.head, self.middle = nn.Linear(6, 4), middle

    def forward(self, x):
        x = F.relu(self.convs[1](F.relu(self.convs[0](x))))
        x = F.relu(self.convs[2](self.middle(F.max_pool2d(x, 4))))
        return self.head(self.convs[3](x).mean((2, 3)))


def narrowing(monkeypatch, middle=lambda x: x):
    """The network, of which the head is never sliced, and three images of its largest maps as a portion."""
    monkeypatch.setattr(chain, "_PORTION_BYTES", 3 * 8 * 16 * 16 * 4)
    torch.manual_seed(0)
    model = Narrowing(middle).eval()
    return model, ChannelGraph.build(model, images(2, 16), ["convs.3"])


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_images_go_through_in_portions_where_maps_are_large(precision, monkeypatch):
    model, graph = narrowing(monkeypatch)
    network = InferenceNetwork(model, graph, images(4, 16), precision)
    keep, inputs = random_keep(graph, 0), images(8, 16, seed=1).to(precision)
    convs = [layer for layer in network.network.shell.modules() if isinstance(layer, Counting)]
    with reproducibly(), torch.no_grad():
        pruned = network.prune(keep)
        for conv in convs:
            conv.given.clear()
        made = pruned(inputs)
        assert [conv.given for conv in convs] == [[3, 3, 2], [3, 3, 2], [8], [8]]
        expected = InferenceNetwork(model, graph, images(4, 16), fuse=False).prune(keep)(inputs.to(torch.float32))
        tolerances = {} if precision is None else {"rtol": 0.0, "atol": 0.01}
        torch.testing.assert_close(made, expected, check_dtype=False, **tolerances)


def test_what_is_begun_within_a_portion_gives_the_same_bits(monkeypatch):
    model, graph = narrowing(monkeypatch)
    network, cache = cached(model, graph, images(4, 16))
    plain = InferenceNetwork(model, graph, images(4, 16))
    inputs = images(32, 16, seed=1)
    for keep in masks(graph, 24):
        with reproducibly(), torch.no_grad():
            made, alone = network.prune(keep)(inputs, "inputs"), plain.prune(keep)(inputs)
        assert torch.equal(made, alone)
    assert cache.hits


class Permuted(nn.Module):
    """Linear layers on maps with the channels last, seen as such."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 12), (12, 12), (11, 7)))
        self.linears, self.head = nn.ModuleList([nn.Linear(12, 20), nn.Linear(20, 11)]), nn.Linear(7, 4)

    def forward(self, x):
        x = F.relu(self.convs[1](F.relu(self.convs[0](x)))).permute(0, 2, 3, 1)
        x = F.relu(self.linears[1](F.gelu(self.linears[0](x)))).permute(0, 3, 1, 2)
        return self.head(F.relu(self.convs[2](x)).mean((2, 3)))


def multilayer():
    widths = (37, 131, 77, 33, 4)
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.GELU())]
    return nn.Sequential(*layers[:-1])


def depthwise():
    convs = [nn.Conv2d(3, 9, 3, padding=1), nn.Conv2d(9, 9, 3, padding=1, groups=9), nn.Conv2d(9, 13, 1)]
    layers = [layer for conv in convs for layer in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(13, 4))


@pytest.mark.parametrize(("build", "shape"), [(multilayer, (37,)), (depthwise, (3, 9, 9)), (Permuted, (3, 9, 9))])
def test_odd_sizes_too_as_they_lie_at_addresses_that_kernels_read_otherwise(build, shape, monkeypatch):
    torch.manual_seed(0)
    model, example, inputs = build().eval(), torch.randn(16, *shape), torch.randn(29, *shape)
    if len(shape) == 3:
        model, example, inputs = (it.to(memory_format=torch.channels_last) for it in (model, example, inputs))
    graph = ChannelGraph.build(model, example[:2])
    network, cache = cached(model, graph, example)
    plain = InferenceNetwork(model, graph, example)
    assert network._fused.map_bytes
    for count in (1, 3, 5):
        monkeypatch.setattr(chain, "_PORTION_BYTES", count * max(network._fused.map_bytes))
        for keep in masks(graph, 24):
            with reproducibly(), torch.no_grad():
                made, alone = network.prune(keep)(inputs, count), plain.prune(keep)(inputs)
            assert torch.equal(made, alone)
    assert cache.hits


@pytest.mark.parametrize(
    "middle",
    [
        lambda x: x - x.mean(0),  # of each image what the others make of it
        lambda x: x + 1e-3 * x.mean(0),
        lambda x: x.roll(1, 0),  # in the place of another
        lambda x: x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1),  # in pairs
        lambda x: x.squeeze(),  # one image has no batch
    ],
)
def test_parts_that_do_not_stand_it_take_all_images_at_once(monkeypatch, middle):
    model, graph = narrowing(monkeypatch, middle)
    network = InferenceNetwork(model, graph, images(8, 16))
    assert len(network._fused.parts) > 1
    assert network._fused.map_bytes == ()
