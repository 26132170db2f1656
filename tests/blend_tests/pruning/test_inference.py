import copy

import numpy as np
import pytest
import torch
from torch import nn

from blend.pruning import PrunedNetwork, chain, inference, norms, recalibrate
from blend.pruning.chain import portions
from blend.pruning.inference import InferenceNetwork
from criteria import ChannelGraph
from tests.networks import NETWORKS, build
from tests.networks import inputs as inputs_of

from ..small_networks import graph_of, images, random_keep


def in_training(network, inputs):
    """The same network after one forward pass in training mode with a momentum of 1."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        network(inputs)
    return network.eval()


def outputs_of(network, inputs):
    with torch.no_grad():
        return network(inputs)


def close(got, expected, tolerance=1e-4):
    return float((got - expected).abs().max() / expected.abs().max()) < tolerance


def statistics(network):
    return {name: tensor.clone() for name, tensor in network.named_buffers() if "running" in name}


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2"])
def test_statistics_are_those_of_all_images_in_training_mode(name):
    model, graph = graph_of(name)
    keep, inputs = random_keep(graph, 1), images(33, seed=2)
    plain = in_training(PrunedNetwork(model, graph).extract(keep), inputs)
    network = InferenceNetwork(model, graph, inputs[:8])
    ours = network.prune(keep, inputs.split([16, 16, 1]))
    assert close(outputs_of(ours, inputs), outputs_of(plain, inputs))
    expected, got = statistics(plain), network.statistics()
    assert expected.keys() == got.keys()
    assert all(close(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_kind_of_network_runs_as_in_training_mode(name):
    model = build(name).double()
    parts = [inputs_of(name, seed=seed).double() for seed in (1, 2, 3)]
    together = torch.cat(parts)
    graph = ChannelGraph.build(model, parts[0])
    keep = random_keep(graph, 3)
    plain = in_training(PrunedNetwork(model, graph).extract(keep), together)
    network = InferenceNetwork(model, graph, parts[0])
    assert close(outputs_of(network.prune(keep, parts), together), outputs_of(plain, together), 1e-9)
    unprepared = PrunedNetwork(model, graph).extract(keep)
    assert close(outputs_of(network.prune(keep), together), outputs_of(unprepared, together), 1e-9)
    assert is_fast(network) == any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def is_fast(network):
    """Whether BatchNorms halt; a network that does not stand that is run as it is."""
    return any(isinstance(module, norms.Norm) for module in network.network.shell.modules())


class Whimsical(nn.Module):
    """A small network whose forward does what the caller wants."""

    def __init__(self, body):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.norm.running_mean.normal_()
        self.body = body

    def forward(self, x):
        return self.head(self.body(self, x).relu().mean((2, 3)))


def insisting(net, x):
    assert isinstance(net.norm, nn.BatchNorm2d)
    return net.norm(net.conv(x))


def branching(net, x):
    return net.norm(net.conv(x) if x.mean() > 0 else net.norm(net.conv(x)))


@pytest.mark.parametrize(
    "body",
    [
        lambda net, x: net.norm(y := net.conv(x)) + y,
        lambda net, x: net.norm(net.conv(x)) * (1 + net.norm.eps),
        lambda net, x: net.norm(net.norm(net.conv(x)).relu()),
        branching,
        insisting,
    ],
    ids=[
        "two readers",
        "attributes of BatchNorm",
        "BatchNorm passed twice",
        "depends on the inputs",
        "insists on a BatchNorm",
    ],
)
def test_a_network_that_cannot_be_folded_is_run_as_it_is(body):
    torch.manual_seed(0)
    model = Whimsical(body).eval()
    inputs = torch.cat([images(4, seed=1).abs(), -images(4, seed=2).abs()])
    keep = np.array([True, True, False, True, False, True])
    plain = PrunedNetwork(model, graph := ChannelGraph.build(model, inputs[:2])).extract(keep)
    recalibrate(plain, [inputs])
    network = InferenceNetwork(model, graph, inputs)
    assert close(outputs_of(network.prune(keep, [inputs]), inputs), outputs_of(plain, inputs))


def test_a_batchnorm_of_two_names_takes_part():
    torch.manual_seed(0)
    model = Whimsical(lambda net, x: net.block(x) if x.shape[0] else net.norm(net.conv(x)))
    model.block = nn.Sequential(model.conv, model.norm)
    graph, inputs = ChannelGraph.build(model.eval(), images(2)), images(8, seed=1)
    network = InferenceNetwork(model, graph, inputs)
    plain = PrunedNetwork(model, graph).extract(keep := np.arange(6) % 2 == 0)
    recalibrate(plain, [inputs])
    assert is_fast(network)
    assert close(outputs_of(network.prune(keep, [inputs]), inputs), outputs_of(plain, inputs))


def test_rounding_alone_does_not_make_a_network_slow():
    model, graph = graph_of("resnet20")
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.stem[0].weight[0] *= 1e-4  # whose variance is lost beside its mean
        model.stem[0].bias = nn.Parameter(torch.full((4,), 1000.0))
    network = InferenceNetwork(model, graph, images(8))
    assert is_fast(network)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.cuda.OutOfMemoryError("out"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_memory_that_is_short_for_a_moment_does_not_decide_how_a_network_is_run(monkeypatch, error, turn):
    model, graph = graph_of("resnet20")
    turns, recalibrated = iter(range(100)), chain.recalibrate_together

    def short(*arguments):
        if next(turns) == turn:
            raise error
        recalibrated(*arguments)

    monkeypatch.setattr(chain, "recalibrate_together", short)
    with pytest.raises(type(error)):
        InferenceNetwork(model, graph, images(4)).prune(random_keep(graph, 1), [images(8)])


def test_folding_leaves_nothing_of_batchnorm_to_do():
    model, graph = graph_of("resnet20")
    network = InferenceNetwork(model, graph, images(4))
    pruned = network.prune(random_keep(graph, 1), [images(8, seed=2)])
    assert [module.folded for module in pruned.modules() if isinstance(module, norms.Norm)] == [True] * 21


def test_a_visit_leaves_no_traces():
    model, graph = graph_of("resnet20")
    inputs, network = images(8, seed=2), InferenceNetwork(model, graph, images(4), torch.bfloat16)
    before = outputs_of(network.prune(random_keep(graph, 1), [inputs.bfloat16()]), inputs.bfloat16())
    network.prune(random_keep(graph, 2), [images(8, seed=3).bfloat16()])
    after = outputs_of(network.prune(random_keep(graph, 1), [inputs.bfloat16()]), inputs.bfloat16())
    assert before.dtype == torch.bfloat16
    assert torch.equal(before, after)


def test_a_pass_that_fails_leaves_no_traces():
    model, graph = graph_of("resnet20")
    inputs, network, keep = images(8, seed=2), InferenceNetwork(model, graph, images(4)), random_keep(graph, 1)
    before = outputs_of(network.prune(keep, [inputs]), inputs)

    def fail(module, inputs):
        raise RuntimeError("out of memory")

    with network.network.shell.classifier.register_forward_pre_hook(fail), pytest.raises(RuntimeError, match="memory"):
        network.prune(keep, [images(8, seed=3)])
    assert torch.equal(outputs_of(network.prune(keep, [inputs]), inputs), before)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_kind_of_network_runs_in_half_precision(name):
    model = build(name)
    parts = [inputs_of(name, seed=seed) for seed in (1, 2, 3)]
    graph = ChannelGraph.build(model, parts[0])
    keep = random_keep(graph, 3)
    plain = in_training(PrunedNetwork(model, graph).extract(keep), torch.cat(parts))
    network = InferenceNetwork(model, graph, parts[0], torch.bfloat16)
    outputs = outputs_of(network.prune(keep, [part.bfloat16() for part in parts]), torch.cat(parts).bfloat16())
    assert outputs.dtype == torch.bfloat16
    assert close(outputs.float(), outputs_of(plain, torch.cat(parts)), 0.3)  # up to 40 random layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 3, 6, 6), (7, 11, 5, 5), (4, 64, 4, 4), (4, 65, 4, 4), (9, 5), (3, 4, 7)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_statistics_and_normalising_are_those_of_batch_norm(shape, dtype, layout):
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 3).to(dtype)
    values = values.to(memory_format=layout if len(shape) == 4 else torch.contiguous_format)
    mean, variance, count = norms.batch_statistics(values)
    places = [0, *range(2, len(shape))]
    exact = values.double()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert count == values.numel() // shape[1]
    assert torch.allclose(mean.double(), exact.mean(places), rtol=tolerance)
    assert torch.allclose(variance.double(), exact.var(places, unbiased=False), rtol=tolerance)

    weight, bias = torch.rand(2, shape[1], generator=generator).to(mean.dtype)
    expected = torch.nn.functional.batch_norm(values, mean, variance, weight, bias, eps=1e-5)
    written = norms.Normalise(weight, bias, mean, variance, count, 1e-5).in_place(values)
    assert written is values
    assert torch.equal(values, expected)


def test_a_network_in_half_precision():
    model, graph = graph_of("resnet20")
    half = copy.deepcopy(model).bfloat16()
    keep, inputs = random_keep(graph, 1), images(16, seed=2)
    network = InferenceNetwork(half, graph, inputs[:4].bfloat16())
    outputs = outputs_of(network.prune(keep, [inputs.bfloat16()]), inputs.bfloat16())
    exact = outputs_of(in_training(PrunedNetwork(model, graph).extract(keep), inputs), inputs)
    assert close(outputs.float(), exact, 0.1)


def test_where_memory_is_scarce_batches_are_averaged(monkeypatch):
    model, graph = graph_of("resnet20")
    keep, inputs = random_keep(graph, 1), images(32, seed=2)
    network = InferenceNetwork(model, graph, inputs[:4])
    plain = PrunedNetwork(model, graph).extract(keep)
    recalibrate(plain, inputs.split(8))
    together = outputs_of(network.prune(keep, inputs.split(8)), inputs)
    # The stem's input is the largest: 4 channels of 16 × 16 floats for each image.
    monkeypatch.setattr(inference, "MAX_ACTIVATION_BYTES", 32 * 4 * 16 * 16 * 4)
    assert torch.equal(outputs_of(network.prune(keep, inputs.split(8)), inputs), together)
    monkeypatch.setattr(inference, "MAX_ACTIVATION_BYTES", 32 * 4 * 16 * 16 * 4 - 1)
    scarce = outputs_of(network.prune(keep, inputs.split(8)), inputs)
    assert close(scarce, outputs_of(plain, inputs))
    assert not close(scarce, together)


def test_portions_are_as_equal_as_can_be():
    assert [len(part) for part in portions(torch.zeros(33), 16)] == [11, 11, 11]
    assert portions(torch.zeros(0), 16) == ()
