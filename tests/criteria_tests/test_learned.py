import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from criteria import CRITERIA, ChannelGraph, Network, learned, score
from criteria.learned import INITIALISATIONS

from .test_reconstruction import Mobile
from .tiny_networks import conv_net, graph, group, half_squared_error, images, member, two_examples, two_linear

BOTH = pytest.mark.parametrize("name", ["learned_scale", "se_gate"])


def hand_network():
    """Residuals y - t are -1 and 3, and y = 2 m1 w1·x - m2 w2·x."""
    model, net_graph = two_linear()
    return Network(model.eval(), net_graph, [two_examples()], half_squared_error)


def test_learned_scale_by_hand():
    # dL/dm1 = mean of residual · 2 w1·x = (-1 · 2 + 3 · 4) / 2 = 5; dL/dm2 = (-1 · -3 + 3 · 1) / 2 = 3.
    one = learned.learned_scale(hand_network(), initialisation="ones", steps=1, learning_rate=0.1, decay=0)
    torch.testing.assert_close(one["first"], torch.tensor([0.5, 0.7], dtype=torch.float64), atol=1e-6, rtol=0)
    # Decay adds 2 m to the gradient.
    one = learned.learned_scale(hand_network(), initialisation="ones", steps=1, learning_rate=0.1, decay=2)
    torch.testing.assert_close(one["first"], torch.tensor([0.3, 0.5], dtype=torch.float64), atol=1e-6, rtol=0)
    # It is the size that counts: one step of 0.3 leads to -0.5 and 0.1.
    one = learned.learned_scale(hand_network(), initialisation="ones", steps=1, learning_rate=0.3, decay=0)
    torch.testing.assert_close(one["first"], torch.tensor([0.5, 0.1], dtype=torch.float64), atol=1e-6, rtol=0)


def test_momentum_by_hand():
    _, targets = two_examples()
    m, velocity = np.array([1.0, 1.0]), np.zeros(2)
    features = np.array([[2.0, -3.0], [4.0, 1.0]])  # 2 w1·x and -w2·x
    for _ in range(4):
        residual = features @ m - targets.squeeze(1).numpy()
        velocity = 0.9 * velocity + features.T @ residual / 2
        m = m - 0.02 * velocity
    found = learned.learned_scale(hand_network(), initialisation="ones", steps=4, learning_rate=0.02, decay=0)
    np.testing.assert_allclose(found["first"], np.abs(m), rtol=1e-5)


def test_se_gate_by_hand():
    """Adam's first step is the learning rate, down the sign of the gradient, for every number that has one."""
    # Gates begin at ½ times 2; more of either channel raises the loss (5 and 3, above), so that both fall.
    found = learned.se_gate(hand_network(), steps=1, learning_rate=1e-4, sparsity=0)["first"]
    assert (found < 0.5).all()
    torch.testing.assert_close(found, torch.full((2,), 0.5, dtype=torch.float64), atol=1e-3, rtol=0)
    # Channels that are always 1 and 0, and a loss that falls with the first. One hidden unit h = relu(w · (1, 0)).
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([1.0, 0.0]))
        model[1].weight.copy_(torch.tensor([[2.0, 5.0]]))
        model[1].bias.zero_()
    net_graph = graph(group("0", 2, [member("0", 2)], [member("1", 2)]))
    network = Network(model, net_graph, [(torch.zeros(3, 2), torch.zeros(3, 1))], half_squared_error)
    hidden = max(0.0, float(torch.randn(1, generator=network.generator())))
    fallen = 1 / (1 + math.exp(0.01 * (1 + hidden)))  # offset and outer weight are -0.01 after a step
    found = learned.se_gate(network, steps=1, learning_rate=0.01, sparsity=0)["0"]
    assert found.tolist() == [pytest.approx(fallen, rel=1e-5), 0.5]  # what is 0 has no gradient
    found = learned.se_gate(network, steps=1, learning_rate=0.01, sparsity=1)["0"]
    assert found.tolist() == [pytest.approx(fallen, rel=1e-5)] * 2  # but for the sparsity's


class Decides(nn.Module):
    """Of five channels one is dead, one decides, and three matter a little."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(5, 5, 1, bias=False), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(5)[:, :, None, None])
            self.norm.weight[3] = 0
            self.head.weight.copy_(torch.tensor([[4.0, 0.5, 0.4, 1.0, 0.6], [-4.0, -0.5, -0.4, -1.0, -0.6]]))

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def decisive():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(128, 5, 4, 4, generator=generator) + torch.randn(128, 5, 1, 1, generator=generator)
    weights = torch.tensor([4.0, 0.5, 0.4, 0.0, 0.6])
    targets = (inputs.relu().mean((2, 3)) @ weights < 2.2).long()
    model = Decides()
    with torch.no_grad():
        model.head.bias = nn.Parameter(torch.tensor([-2.2, 2.2]))
    net_graph = graph(group("g", 5, [member("conv", 5, "norm")], [member("head", 5)]))
    return model, net_graph, list(zip(inputs.split(32), targets.split(32), strict=True))


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_a_dead_filter_ends_lowest_and_a_decisive_one_highest(name, seed):
    model, net_graph, batches = decisive()
    scores = score(model, net_graph, batches, F.cross_entropy, [name], seed=seed).get(name, "g")
    assert scores.argmin() == 3
    assert scores.argmax() == 0


@BOTH
def test_reproducible_by_seed(name):
    model, net_graph = conv_net()
    batches = [images(), images(seed=2)]
    tables = [score(model, net_graph, batches, F.cross_entropy, [name], seed=seed) for seed in (1, 1, 2)]
    first, again, other = (table.get(name, "stem") for table in tables)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@BOTH
def test_coupled_and_depthwise_layers_have_gates_of_their_own(name):
    torch.manual_seed(0)
    model = Mobile()
    net_graph = ChannelGraph.build(model, torch.zeros(1, 3, 5, 5))
    gates = {
        (one.name, made.layer): torch.arange(1.0, one.size + 1) * (1 + place)
        for one in net_graph.groups
        for place, made in enumerate(one.producers)
    }
    assert [key[1] for key in gates] == ["expand", "depthwise", "project", "side"]
    batch = (torch.randn(12, 3, 5, 5), torch.arange(12) % 4)
    table = score(model, net_graph, [batch], F.cross_entropy, [name])
    assert all(np.isfinite(table.get(name, group)).all() for group in table.groups)
    network = Network(model.eval(), net_graph, [batch], F.cross_entropy)
    found = learned._of_groups(network, gates)  # each layer's are scaled to mean 1, and the means averaged: 1 and 2
    np.testing.assert_allclose(found["expand"], np.arange(1, 9) * 1.5)


@pytest.mark.parametrize("linear", [False, True])
def test_gates_multiply_the_positions_of_their_channels(linear):
    layer = nn.Linear(3, 6, bias=False) if linear else nn.Conv2d(3, 6, 1, bias=False)
    model = nn.Sequential(layer)
    net_graph = graph(group("g", 2, [member("0", [0, 0, 1, -1, -1, 1])]))
    network = Network(model, net_graph, [], half_squared_error)
    inputs = torch.randn(2, 5, 3) if linear else torch.randn(2, 3, 5, 5)
    plain = network.outputs(inputs)
    expected = torch.tensor([2.0, 2, 3, 1, 1, 3])
    with learned.hooks(learned._gated(network, lambda key, output: torch.tensor([2.0, 3.0]))()):
        gated = network.outputs(inputs)
    torch.testing.assert_close(gated, plain * (expected if linear else expected.view(6, 1, 1)))
    per_example = torch.tensor([[2.0, 3.0], [5.0, 7.0]])
    with learned.hooks(learned._gated(network, lambda key, output: per_example)()):
        gated = network.outputs(inputs)
    expected = torch.tensor([[2.0, 2, 3, 1, 1, 3], [5, 5, 7, 1, 1, 7]])
    torch.testing.assert_close(gated, plain * (expected.view(2, 1, 6) if linear else expected.view(2, 6, 1, 1)))


def test_initialisations_have_the_spread_they_are_named_for():
    count, fan_in, fan_out = 20_000, 50, 30
    draws = {
        name: draw(count, fan_in, fan_out, torch.Generator().manual_seed(0)) for name, draw in INITIALISATIONS.items()
    }
    assert set(draws) == {"ones", "uniform", "chaotic", "he", "lecun_uniform", "xavier"}
    assert (draws["ones"] == 1).all()
    # Standard deviations are known to 1 / sqrt(2 · 20,000) = 0.5 %, and asserted to four times that.
    expected = {
        "uniform": math.sqrt(1 / 12),
        "chaotic": math.sqrt(1 / 8),  # the orbit is distributed as sin² of a uniform angle
        "he": math.sqrt(2 / fan_in),
        "lecun_uniform": math.sqrt(1 / fan_in),
        "xavier": math.sqrt(2 / (fan_in + fan_out)),
    }
    for name, deviation in expected.items():
        assert float(draws[name].std()) == pytest.approx(deviation, rel=0.02), name
    for name in ("uniform", "chaotic"):
        assert draws[name].min() >= 0
        assert draws[name].max() <= 1
    assert draws["lecun_uniform"].abs().max() <= math.sqrt(3 / fan_in)
    assert draws["xavier"].abs().max() <= math.sqrt(6 / (fan_in + fan_out))


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
def test_every_initialisation_ends_in_finite_scores(initialisation):
    model, net_graph = conv_net()
    network = Network(model.eval(), net_graph, [images()], F.cross_entropy)
    found = learned.learned_scale(network, initialisation=initialisation, steps=3)
    assert all(scores.isfinite().all() for scores in found.values())


def test_wrong_arguments():
    network = hand_network()
    with pytest.raises(ValueError, match=r"initialisation must be one of ones, uniform, .*, got 'normal'"):
        learned.learned_scale(network, initialisation="normal")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        learned.learned_scale(network, steps=0)
    with pytest.raises(ValueError, match="squeeze must be at least 1, got 0"):
        learned.se_gate(network, squeeze=0)


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("learned_scale:epochs=0", "of 'learned_scale' must be one of initialisation, steps, .*, got 'epochs'"),
        ("learned_scale:steps=0", "'steps' of 'learned_scale' must be at least 1, got 0"),
        ("learned_scale:momentum=1", r"'momentum' of 'learned_scale' must be in \[0, 1\), got 1.0"),
        ("learned_scale:initialisation=zeros", "must be one of ones, uniform, chaotic, he, .*, got 'zeros'"),
        ("se_gate:steps=-1", "'steps' of 'se_gate' must be at least 1, got -1"),
        ("se_gate:squeeze=0", "'squeeze' of 'se_gate' must be at least 1, got 0"),
    ],
)
def test_wrong_parameters_are_refused_by_name(specification, message):
    with pytest.raises(ValueError, match=message):
        CRITERIA.get(specification)


@pytest.mark.parametrize("specification", ["learned_scale:learning_rate=1e30", "learned_scale:decay=1e30"])
def test_training_that_runs_off_says_what_to_lower(specification):
    model, net_graph = conv_net()
    with pytest.raises(ValueError, match=r"at step \d+; lower the learning rate, or what holds the weights down"):
        score(model, net_graph, [images(), images(seed=2)], F.cross_entropy, [specification])


@pytest.mark.parametrize("specification", ["learned_scale:steps=1", "learned_scale:momentum=0.0"])
def test_the_least_training_gives_scores(specification):
    model, net_graph = conv_net()
    table = score(model, net_graph, [images()], F.cross_entropy, [specification])
    assert all(np.isfinite(table.get(specification, group)).all() for group in table.groups)


def test_gates_that_one_step_has_moved_alike_are_noted():
    model, net_graph = conv_net()
    table = score(model, net_graph, [images()], F.cross_entropy, ["se_gate:steps=1:learning_rate=1e-9"])
    assert [note.reason.partition(":")[0] for note in table.notes] == ["degenerate"] * len(table.groups)
