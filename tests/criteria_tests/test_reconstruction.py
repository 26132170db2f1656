import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from criteria import CRITERIA, ChannelGraph, CriterionError, Network, reconstruction, score
from criteria.moments import ConsumerMoments, consumer_moments, reading_filters, unfolded

from .test_criteria import Net
from .tiny_networks import conv_net, graph, group, images, member


def network_of(model, net_graph, *inputs):
    return Network(model.eval(), net_graph, [(x, x) for x in inputs], None)


def linear_pair(weights, inputs):
    """The group is what the consumer reads itself: an identity makes it."""
    size = len(weights[0])
    model = nn.Sequential(nn.Linear(size, size, bias=False), nn.Linear(size, len(weights), bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(size))
        model[1].weight.copy_(torch.as_tensor(weights))
    net_graph = graph(group("g", size, [member("0", size)], [member("1", size)]))
    return network_of(model, net_graph, torch.as_tensor(inputs, dtype=torch.float32))


def test_cap_by_hand():
    # Independent channels of variance 1, 1, 1 and weights 1, -3, 2: explained are 1, 9 and 4.
    corners = [[a, b, c] for a in (-1.0, 1.0) for b in (-1.0, 1.0) for c in (-1.0, 1.0)]
    assert reconstruction.cap(linear_pair([[1.0, -3.0, 2.0]], corners))["g"].tolist() == [1, 3, 2]
    # The first two are alike, y = 2 x1 + 2 x2 + 3 x3: either explains 16, then x3 9, and the other one next to nothing.
    twins = [[a, a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]
    assert reconstruction.cap(linear_pair([[2.0, 2.0, 3.0]], twins))["g"].tolist() == [3, 1, 2]
    # A constant explains no variance, whatever its weight: the bias, or recalibration, stands in for it.
    constant = [[a, 7.0, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]
    assert reconstruction.cap(linear_pair([[1.0, 9.0, 2.0]], constant))["g"].tolist() == [2, 0, 3]


def test_thinet_by_hand():
    # Second moments 1: removing T costs (sum of weights over T, where alike)²; 2 and -2 of twins cancel together.
    twins = [[a, a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]
    assert reconstruction.thinet(linear_pair([[2.0, -2.0, 3.0]], twins))["g"].tolist() == [1, 2, 3]
    assert reconstruction.thinet(linear_pair([[2.0, 2.0, 3.0]], twins))["g"].tolist() == [1, 3, 2]  # 16 against 4 + 9
    # It is not centred: a constant counts.
    constant = [[a, 7.0, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]
    assert reconstruction.thinet(linear_pair([[1.0, 9.0, 0.0]], constant))["g"].tolist() == [2, 3, 0]


# --- brute force from the formula ----------------------------------------------------------------------------------


def explained(x, weight, chosen, ridge):
    """tr(Σ_yS (Σ_SS + λ I)⁻¹ Σ_Sy) over the variance of y."""
    x = x - x.mean(0)
    covariance = x.T @ x / len(x)
    cross = weight @ covariance
    block = covariance[np.ix_(chosen, chosen)] + ridge * covariance.diagonal().mean() * np.eye(len(chosen))
    part = cross[:, chosen]
    return np.trace(part @ np.linalg.inv(block) @ part.T) / np.trace(weight @ covariance @ weight.T)


def brute_cap(consumers, size, ridge=0.01):
    """Consumers: (x of shape (n, size · b), weight of shape (outputs, size · b)), b elements to a channel."""
    taken, scores = [], np.zeros(size)
    while len(taken) < size:

        def total(channel):
            shares = []
            for x, weight in consumers:
                block = x.shape[1] // size
                elements = [c * block + i for c in [*taken, channel] for i in range(block)]
                shares.append(explained(x, weight, elements, ridge))
            return sum(shares)

        best = max((c for c in range(size) if c not in taken), key=total)
        scores[best] = size - len(taken)
        taken.append(best)
    return scores


def brute_thinet(consumers, size):
    removed, scores = [], np.zeros(size)
    while len(removed) < size:

        def error(channel):
            errors = []
            for x, weight in consumers:
                parts = [
                    x.reshape(len(x), size, -1)[:, c] @ weight.reshape(len(weight), size, -1)[:, c].T
                    for c in range(size)
                ]
                alone = sum(np.square(part).sum() for part in parts)
                errors.append(np.square(sum(parts[c] for c in [*removed, channel])).sum() / alone)
            return sum(errors)

        weakest = min((c for c in range(size) if c not in removed), key=error)
        removed.append(weakest)
        scores[weakest] = len(removed)
    return scores


class Two(nn.Module):
    """One group that a strided convolution and a flattening linear layer read."""

    def __init__(self, channels=6):
        super().__init__()
        self.stem = nn.Conv2d(2, channels, 3, padding=1)
        self.conv = nn.Conv2d(channels, 4, 3, stride=2, padding=1, dilation=2)
        self.flat = nn.Linear(channels * 9, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.conv(x).mean((2, 3)), self.flat(F.avg_pool2d(x, 2).flatten(1))


def two(channels=6, seed=0):
    torch.manual_seed(seed)
    consumers = [member("conv", channels), member("flat", np.repeat(np.arange(channels), 9))]
    return Two(channels), graph(group("stem", channels, [member("stem", channels)], consumers))


def by_patch(model, inputs):
    with torch.no_grad():
        read = model.stem(inputs).relu()
        patches = F.unfold(read, 3, dilation=2, padding=1, stride=2).movedim(1, -1).flatten(0, 1)
        flat = F.avg_pool2d(read, 2).flatten(1)
        parts = [(patches, model.conv.weight.flatten(1)), (flat, model.flat.weight)]
    return [(x.double().numpy(), weight.detach().double().numpy()) for x, weight in parts]


def by_channel(model, inputs):
    with torch.no_grad():
        read = model.stem(inputs).relu()
        channels = len(model.stem.weight)
        conv = model.conv.weight.flatten(2).movedim(1, -1).reshape(-1, channels)
        flat = model.flat.weight.view(3, channels, 9).movedim(1, -1).reshape(-1, channels)
        parts = [
            (read.movedim(1, -1).reshape(-1, channels), conv),
            (F.avg_pool2d(read, 2).movedim(1, -1).reshape(-1, channels), flat),
        ]
    return [(x.double().numpy(), weight.detach().double().numpy()) for x, weight in parts]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("patches", "observed"), [(True, by_patch), (False, by_channel)])
def test_against_brute_force(patches, observed, seed):
    model, net_graph = two(seed=seed)
    inputs, more = images(60, seed=seed)[0], images(23, seed=9)[0]
    network = network_of(model, net_graph, inputs, more)
    expected = observed(model, torch.cat([inputs, more]))
    assert reconstruction.cap(network, patches=patches)["stem"].tolist() == brute_cap(expected, 6).tolist()
    assert reconstruction.cap(network, patches=patches, ridge=0.5)["stem"].tolist() == (
        brute_cap(expected, 6, 0.5).tolist()
    )
    if patches:
        assert reconstruction.thinet(network, patches=True)["stem"].tolist() == brute_thinet(expected, 6).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_thinet_by_channel_takes_taps_for_independent(seed):
    model, net_graph = two(seed=seed)
    inputs = images(40)[0]
    kernel = np.zeros((6, 6))
    for x, weight in by_channel(model, inputs):
        part = (weight.T @ weight) * (x.T @ x / len(x))
        kernel += part / np.trace(part)
    removed, scores = [], np.zeros(6)
    for place in range(1, 7):
        rest = [c for c in range(6) if c not in removed]
        removed.append(min(rest, key=lambda c: kernel[np.ix_([*removed, c], [*removed, c])].sum()))
        scores[removed[-1]] = place
    assert reconstruction.thinet(network_of(model, net_graph, inputs))["stem"].tolist() == scores.tolist()


# --- moments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patches", [False, True])
def test_moments_are_numpys_whatever_the_batches(patches):
    model, net_graph = two()
    inputs = images(30)[0] + 5  # a mean far from 0 must not cost digits
    expected = (by_patch if patches else by_channel)(model, inputs)
    for parts in (inputs.split(30), inputs.split(7)):
        ((_, found),) = consumer_moments(network_of(model, net_graph, *parts), patches)
        for moments, (x, weight) in zip(found, expected, strict=True):
            np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(moments.covariance, np.cov(x.T, bias=True), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(moments.second_moment, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(moments.filters, weight)


LAYERS = [
    nn.Conv1d(4, 6, 3, stride=2, padding=2),
    nn.Conv2d(4, 6, (3, 2), padding="same", dilation=(1, 2), padding_mode="reflect", bias=False),
    nn.Conv2d(4, 6, 3, groups=2),
    nn.Conv3d(4, 3, 2, padding=1, stride=(1, 2, 1)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_patches_times_filters_are_the_layers_output(layer):
    torch.manual_seed(0)
    read = torch.randn(2, 4, *[6] * len(layer.kernel_size))
    made = torch.einsum("oct,nct...->no...", reading_filters(layer), unfolded(read, layer))
    if layer.bias is not None:
        made += layer.bias.view(-1, *[1] * len(layer.kernel_size))
    torch.testing.assert_close(made, layer(read), rtol=1e-4, atol=1e-5)


def test_filters_of_transposed_convolutions():
    layer = nn.ConvTranspose2d(4, 6, 1, groups=2, bias=False)
    read = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(torch.einsum("oct,nchw->nohw", reading_filters(layer), read), layer(read))


def test_moments_that_do_not_fit_together_take_passes_of_their_own(monkeypatch):
    model, net_graph = conv_net()
    steps = []
    network = Network(model.eval(), net_graph, [images()] * 3, None, on_step=lambda *step: steps.append(step))
    together = reconstruction.cap(network)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    steps.clear()
    monkeypatch.setattr("criteria.moments.MEMORY", 1)
    apart = reconstruction.cap(network)
    assert steps == [(n, 6) for n in range(1, 7)]
    assert {name: scores.tolist() for name, scores in apart.items()} == {n: s.tolist() for n, s in together.items()}


def test_large_patches_are_refused(monkeypatch):
    model, net_graph = conv_net()
    monkeypatch.setattr("criteria.moments.WIDEST", 35)
    with pytest.raises(CriterionError, match=r"inputs of 'conv' must be at most 35 .*, got 36; take them by channel"):
        reconstruction.cap(network_of(model, net_graph, images()[0]), patches=True)


def test_a_ridge_is_positive():
    with pytest.raises(ValueError, match="ridge must be above 0, got 0"):
        reconstruction.cap(network_of(*conv_net(), images()[0]), ridge=0)


# --- kinds of networks ---------------------------------------------------------------------------------------------


class Mobile(nn.Module):
    def __init__(self):
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project, self.side = nn.Conv2d(8, 6, 1), nn.Conv2d(3, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        wide = self.depthwise(self.expand(x).relu()).relu()
        return self.head((self.project(wide) + self.side(x)).relu().mean((2, 3)))


def test_a_depthwise_layer_hands_on_to_its_readers():
    torch.manual_seed(0)
    model = Mobile().eval()
    nn.init.ones_(model.depthwise.bias)  # so that no channel is dead
    net_graph = ChannelGraph.build(model, torch.zeros(1, 3, 5, 5))
    assert [member.layer for member in net_graph.groups[0].consumers] == ["depthwise", "project"]
    inputs = torch.randn(30, 3, 5, 5)
    with torch.no_grad():
        read = model.depthwise(model.expand(inputs).relu()).relu().movedim(1, -1).reshape(-1, 8).double().numpy()
    consumer = (read, model.project.weight.detach().flatten(1).double().numpy())
    network = network_of(model, net_graph, inputs)
    assert reconstruction.cap(network)["expand"].tolist() == brute_cap([consumer], 8).tolist()
    assert reconstruction.thinet(network)["expand"].tolist() == brute_thinet([consumer], 8).tolist()


def test_a_concatenation_is_read_at_the_groups_own_place():
    torch.manual_seed(0)
    model = Net().eval()
    net_graph = ChannelGraph.build(model, torch.zeros(1, 3, 8, 8))
    inputs = torch.randn(40, 3, 8, 8)
    read = []
    handle = model.last.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    with torch.no_grad():
        model(inputs)
    handle.remove()
    patches = F.unfold(read[0], 3).movedim(1, -1).flatten(0, 1)[:, : 5 * 9].double().numpy()
    consumer = (patches, model.last.weight.detach()[:, :5].flatten(1).double().numpy())
    network = network_of(model, net_graph, inputs)
    assert reconstruction.cap(network, patches=True)["side"].tolist() == brute_cap([consumer], 5).tolist()
    assert reconstruction.thinet(network, patches=True)["side"].tolist() == brute_thinet([consumer], 5).tolist()


def test_a_group_that_nothing_mixes_has_no_scores():
    model, net_graph = conv_net()
    unread = graph(net_graph.groups[0], group("conv", 3, [member("conv", 3)]))
    table = score(model, unread, [images()], F.cross_entropy, ["cap", "l1"])
    assert [(note.criterion, note.group) for note in table.notes] == [("cap", "conv")]
    assert "needs a convolution or linear layer that mixes the group's channels; there is none" in table.notes[0].reason
    with pytest.raises(CriterionError, match=r"criterion 'cap' needs a convolution .* \(nor does it to any other"):
        score(model, graph(unread.groups[1]), [images()], F.cross_entropy, ["cap"])


@pytest.mark.parametrize("name", ["cap", "thinet"])
def test_dead_channels_share_the_last_place(name):
    model, net_graph = conv_net(8)
    with torch.no_grad():
        model.norm.running_mean.zero_()
        model.norm.bias.fill_(0.5)
        model.norm.weight[[1, 5]] = 0
        model.norm.bias[[1, 5]] = -1  # below the non-linearity
    scores = score(model, net_graph, [images()], F.cross_entropy, [name]).get(name, "stem")
    assert scores[[1, 5]].tolist() == [0, 0]
    assert np.sort(np.delete(scores, [1, 5])).tolist() == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("name", ["cap", "thinet"])
def test_permuting_channels_permutes_scores(name):
    order = torch.tensor([2, 0, 3, 1])
    model, net_graph = conv_net()
    permuted, _ = conv_net()
    with torch.no_grad():
        for tensor in (*permuted.stem.parameters(), *permuted.norm.state_dict().values()):
            if tensor.ndim:
                tensor.copy_(tensor[order])
        permuted.conv.weight.copy_(permuted.conv.weight[:, order])
    for patches in (False, True):
        function = CRITERIA.get(name).function
        before = function(network_of(model, net_graph, images()[0]), patches=patches)["stem"]
        after = function(network_of(permuted, net_graph, images()[0]), patches=patches)["stem"]
        assert after.tolist() == before[order].tolist()


def test_wide_groups_take_seconds():
    """Measured 0.6 s for 512 channels; the bound is for a busy machine, and far below what refitting would take."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2000, 512, generator=generator, dtype=torch.float64)
    filters = torch.randn(9 * 512, 512, generator=generator, dtype=torch.float64)
    moments = ConsumerMoments(np.arange(512), torch.zeros(512), torch.cov(values.T), filters)
    began = time.monotonic()
    scores = reconstruction._forward(512, [reconstruction._Regression(moments, 0.01)])
    assert time.monotonic() - began < 15
    assert sorted(scores.tolist()) == list(range(1, 513))
