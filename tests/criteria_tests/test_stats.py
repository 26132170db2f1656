import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from criteria import NEEDS, ChannelGraph, CriterionError, collect, score, score_table
from criteria.streaming import Maps

from .tiny_networks import assert_same, conv_net, graph, group, half_squared_error, images, member, snapshot

ALL = frozenset(NEEDS)
FIRST_ORDER = ALL - {"hessian_diagonal", "hessian_gradient", "gate_curvature"}
PER_BATCH = {"gate_gradient_squared", "weight_gradient_magnitude"}


def producer(views, name):
    return next(view for view in views[name] if view.side == "producer")


# --- what is measured ----------------------------------------------------------------------------------------------


def test_gate_gradients_are_finite_differences_of_the_loss():
    model, net_graph = conv_net()
    model.double().eval()
    inputs, targets = images(dtype=torch.float64)
    views = collect(model, net_graph, [(inputs, targets)], F.cross_entropy, {"gate_gradient"})

    def loss(place, channel, gate):
        scale = torch.ones(len(model.get_submodule(place).state_dict()["weight"]), 1, 1, dtype=torch.float64)
        scale[channel] = gate
        handle = model.get_submodule(place).register_forward_hook(lambda module, args, output: output * scale)
        with torch.no_grad():
            value = F.cross_entropy(model(inputs), targets).item()
        handle.remove()
        return value

    step = 1e-6
    for name, place, size in (("stem", "norm", 4), ("conv", "conv", 3)):
        slopes = [(loss(place, c, 1 + step) - loss(place, c, 1 - step)) / (2 * step) for c in range(size)]
        # A central difference is off by step² and by rounding, 1e-16 / step; ReLU's and max's kinks are far off.
        squared = producer(views, name).gate_gradient_squared
        np.testing.assert_allclose(squared, np.square(slopes), rtol=1e-6, atol=1e-12)


def test_example_gradients_are_those_of_a_loop_over_examples():
    model, net_graph = conv_net()
    inputs, targets = images()
    whole = collect(model, net_graph, [(inputs, targets)], F.cross_entropy, {"example_gate_gradient"})
    singles = [(inputs[n : n + 1], targets[n : n + 1]) for n in range(len(inputs))]
    loop = collect(model, net_graph, singles, F.cross_entropy, {"gate_gradient"})
    for name in whole:
        torch.testing.assert_close(
            producer(whole, name).example_gate_gradient_squared, producer(loop, name).gate_gradient_squared
        )


class Frames(nn.Module):
    """Takes each frame of an example for an image, and the mean of what it has of them."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2]).mean((1, 3, 4))


def test_one_gate_is_on_all_frames_that_are_folded_into_the_batch():
    torch.manual_seed(0)
    model, net_graph = Frames(), graph(group("g", 3, [member("conv", 3, "norm")]))
    inputs, targets = torch.randn(5, 4, 2, 6, 6), torch.randn(5, 3)
    needs = {"gate_gradient", "gate_curvature", "example_gate_gradient"}
    view = producer(collect(model, net_graph, [(inputs, targets)], half_squared_error, needs), "g")
    with torch.no_grad():
        outputs = model.eval()(inputs)  # z y, of which each channel has a loss of its own: no cross terms to estimate
    slopes, bends = ((outputs - targets) * outputs).mean(0), outputs.square().mean(0)
    torch.testing.assert_close(view.gate_gradient_squared, slopes.square())
    torch.testing.assert_close(view.gate_change_squared, (bends / 2 - slopes).square())
    with pytest.raises(CriterionError, match="gate gradient per example of 'conv'; its output does not keep examples"):
        _ = view.example_gate_gradient_squared
    table = score_table({"g": [view]}, ["taylor_fo", "bn_taylor", "fisher"], strict=False)
    assert table.usable("g") == ("taylor_fo", "bn_taylor")


def test_weight_gradients_are_those_of_backward():
    model, net_graph = conv_net()
    batches = [images(8, 1), images(8, 2)]
    views = collect(model, net_graph, batches, F.cross_entropy, {"weight_gradient"})
    model.eval()
    sum(F.cross_entropy(model(inputs), targets) / 2 for inputs, targets in batches).backward()
    torch.testing.assert_close(producer(views, "stem").weight_gradient, model.stem.weight.grad.flatten(1))
    torch.testing.assert_close(producer(views, "conv").weight_gradient, model.conv.weight.grad.flatten(1))


def test_hessian_diagonal_is_the_exact_one_within_the_probes_deviation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)).double()
    inputs, targets = torch.randn(5, 1, 3, 3).double(), torch.tensor([0, 1, 1, 0, 1])
    names = ("0.weight", "3.weight")

    def loss(*weights):
        outputs = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), inputs)
        return F.cross_entropy(outputs, targets)

    blocks = torch.autograd.functional.hessian(loss, tuple(model.get_parameter(name).detach() for name in names))
    lines = [
        torch.cat([block.reshape(size, -1) for block in line], 1) for line, size in zip(blocks, (8, 16), strict=True)
    ]
    hessian = torch.cat(lines)
    batches = 500
    probes = 8 * batches
    net_graph = graph(group("a", 2, [member("0", 2)]), group("b", 2, [member("3", 2)]))
    views = collect(model, net_graph, [(inputs, targets)] * batches, F.cross_entropy, {"hessian_diagonal"})
    estimate = torch.cat([producer(views, name).hessian_diagonal.flatten() for name in "ab"])
    exact = hessian.diagonal()
    deviation = ((hessian.square().sum(1) - exact.square()) / probes).sqrt()  # of v_i (Hv)_i, whose signs v are fair
    assert ((estimate - exact).abs() < 5 * deviation + 1e-12).all()
    assert (estimate - exact).norm() < 2 * deviation.norm() < 0.5 * exact.norm()


class Attention(nn.Module):
    """Attention over positions, after a convolution; fused, or as torch's own formula for it."""

    def __init__(self, fused):
        super().__init__()
        self.fused, self.conv, self.head = fused, nn.Conv2d(2, 12, 3), nn.Linear(4, 5)

    def forward(self, x):
        q, k, v = self.conv(x).flatten(2).mT.unsqueeze(1).contiguous().chunk(3, -1)
        attended = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.mT / 2).softmax(-1) @ v
        return self.head(attended.mean((1, 2)))


@pytest.mark.parametrize("need", ["hessian_diagonal", "hessian_gradient", "gate_curvature"])
def test_attention_has_second_derivatives(need):
    torch.manual_seed(0)
    fused, formula = Attention(True), Attention(False)
    formula.load_state_dict(fused.state_dict())
    net_graph = graph(group("g", 12, [member("conv", 12)]))
    found, expected = (
        producer(collect(model.double(), net_graph, [images(dtype=torch.float64)], F.cross_entropy, {need}), "g")
        for model in (fused, formula)
    )
    (field,) = NEEDS[need].fields
    torch.testing.assert_close(getattr(found, field), getattr(expected, field))
    assert getattr(found, field).any()


def test_maps_are_a_sample_that_does_not_depend_on_the_split():
    model, net_graph = conv_net()
    inputs, targets = images(20)
    with torch.no_grad():
        read = model.eval()[:4](inputs)
    samples = []
    for size in (20, 7, 1):
        batches = zip(inputs.split(size), targets.split(size), strict=True)
        samples.append(collect(model, net_graph, batches, None, {"maps"}, map_images=6, seed=3)["stem"][1].maps)
    assert samples[0].shape == (6, 4, 3, 3)
    torch.testing.assert_close(samples[1], samples[0])
    torch.testing.assert_close(samples[2], samples[0])
    found = [min(range(20), key=lambda n, s=sample: (read[n] - s).abs().max()) for sample in samples[0]]
    torch.testing.assert_close(samples[0], read[found])
    assert len(set(found)) == 6
    other = collect(model, net_graph, [(inputs, targets)], None, {"maps"}, map_images=6, seed=4)["stem"][1].maps
    assert not torch.equal(other, samples[0])


@pytest.mark.parametrize("held", [3, 2])
def test_the_sample_of_maps_is_fair(held, monkeypatch):
    monkeypatch.setattr("criteria.streaming.MAP_BYTES", 4 * held)
    model = nn.Sequential(nn.Identity(), nn.Conv2d(1, 1, 1))
    net_graph = graph(group("g", 1, [], [member("1", 1)]))
    inputs = torch.arange(10.0).view(10, 1, 1, 1)
    counts = torch.zeros(10)
    for seed in range(400):
        (view,) = collect(model, net_graph, [(inputs, inputs)], None, {"maps"}, map_images=3, seed=seed)["g"]
        counts[view.maps.flatten().long()] += 1
    assert counts.sum() == 400 * held
    assert (counts - 40 * held).abs().max() < 5 * 9.2  # 400 draws with chance 0.3: deviation 9.2, and 8 with 0.2


def test_maps_are_of_fewer_images_where_they_are_large(monkeypatch):
    model, net_graph = conv_net()
    inputs, targets = images(20)
    whole = collect(model, net_graph, [(inputs, targets)], None, {"maps"}, map_images=8)["stem"][1].maps
    for room, held in ((8, 8), (5, 5), (1, 1), (0, 1)):
        monkeypatch.setattr("criteria.streaming.MAP_BYTES", whole[0].nbytes * room + 1)
        samples = []
        for size in (20, 7, 1):
            batches = zip(inputs.split(size), targets.split(size), strict=True)
            samples.append(collect(model, net_graph, batches, None, {"maps"}, map_images=8)["stem"][1].maps)
        assert len(samples[0]) == held
        torch.testing.assert_close(samples[1], samples[0])
        torch.testing.assert_close(samples[2], samples[0])
        found = [n for n, kept in enumerate(whole) if any(torch.equal(kept, sample) for sample in samples[0])]
        assert torch.equal(whole[found], samples[0])
    few = collect(model, net_graph, [images(3)], None, {"maps"}, map_images=32)["stem"][1].maps
    assert len(few) == 1  # also where few slots of many are in use


def test_the_maps_of_all_layers_take_no_more_room_than_there_is(monkeypatch):
    monkeypatch.setattr("criteria.streaming.MAP_BYTES", 1000)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 5, 1), nn.Conv2d(5, 1, 1))
    net_graph = graph(
        group("a", 3, [member("0", 3)], [member("1", 3)]),
        group("b", 2, [], [member("2", [0, 1, -1, -1, -1])]),
        group("c", 3, [], [member("2", [-1, -1, 0, 1, 2])]),
    )
    inputs = torch.randn(20, 2, 4, 4)
    views = collect(model, net_graph, [(inputs, inputs)], None, {"maps"})
    maps = [views[name][-1].maps for name in "abc"]
    assert [tuple(held.shape) for held in maps] == [(1, 3, 4, 4), (1, 2, 4, 4), (1, 3, 4, 4)]  # 512 bytes an image
    with torch.no_grad():
        read = [model[:1](inputs), *model[:2](inputs).split((2, 3), 1)]
    found = [[n for n in range(20) if torch.equal(whole[n], held[0])] for whole, held in zip(read, maps, strict=True)]
    assert found[0] == found[1] == found[2] != []


def test_maps_are_let_go_of_when_they_are_taken():
    maps = Maps(4, seed=0)
    for slot in (2, 0):
        maps.put("g", "conv", slot, torch.full((1, 2, 2), float(slot)))
    assert maps.take("g", "conv")[:, 0, 0, 0].tolist() == [0, 2]
    assert maps.take("g", "conv") is None


# --- every kind of layer -------------------------------------------------------------------------------------------


LAYERS = {
    "conv1d": (nn.Conv1d(2, 4, 3, bias=False), (2, 5)),
    "conv2d": (nn.Conv2d(2, 4, 3, bias=False), (2, 5, 4)),
    "conv3d": (nn.Conv3d(2, 4, 2, bias=False), (2, 3, 3, 4)),
    "grouped": (nn.Conv2d(4, 4, 3, groups=2, bias=False), (4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 5, 5)),
    "transposed1d": (nn.ConvTranspose1d(3, 4, 3, bias=False), (3, 5)),
    "transposed2d": (nn.ConvTranspose2d(3, 4, 3, stride=2, bias=False), (3, 3, 3)),
    "transposed_grouped": (nn.ConvTranspose2d(6, 4, 2, groups=2, bias=False), (6, 3, 3)),
    "transposed_depthwise": (nn.ConvTranspose3d(4, 4, 2, groups=4, bias=False), (4, 2, 2, 2)),
    "linear": (nn.Linear(6, 4, bias=False), (6,)),
    "linear_on_tokens": (nn.Linear(6, 4, bias=False), (3, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("inplace", [False, True])
def test_filters_and_gates_of_a_layer_belong_to_the_same_channel(kind, inplace):
    """A linear layer's output scales with its filter as with its gate, so that dL/dz = Σ_w w dL/dw."""
    layer, shape = LAYERS[kind]
    torch.manual_seed(1)
    layer.reset_parameters()  # it was made when this file was imported, with the random numbers of that moment
    model = nn.Sequential(layer, nn.ReLU(inplace=inplace))
    net_graph = graph(group("g", 4, [member("0", [2, 0, 3, 1])]))
    inputs = torch.randn(6, *shape)
    targets = torch.randn_like(layer(inputs))
    views = collect(model, net_graph, [(inputs, targets)], lambda y, t: (y - t).square().mean(), FIRST_ORDER)
    view = producer(views, "g")
    slope = (view.weight * view.weight_gradient).sum(1)
    assert (slope.abs() > 1e-4).all()
    torch.testing.assert_close(view.gate_gradient_squared, slope.square(), rtol=1e-4, atol=1e-9)

    def without(position):  # the layer's own word on which filter makes which output
        silent = layer.weight.detach().clone()
        rows = silent if not getattr(layer, "transposed", False) else silent.transpose(0, 1)
        if getattr(layer, "transposed", False) and layer.groups > 1:
            per = 4 // layer.groups
            ins = layer.in_channels // layer.groups
            rows[position % per, position // per * ins : (position // per + 1) * ins] = 0
        else:
            rows[position] = 0
        return layer.weight.detach().square().sum() - silent.square().sum()

    energy = torch.stack([without(position) for position in (1, 3, 0, 2)])  # positions of channels 0, 1, 2, 3
    torch.testing.assert_close(view.weight.square().sum(1), energy)


@pytest.mark.parametrize("kind", LAYERS)
def test_consumers_read_their_input_axis(kind):
    layer, shape = LAYERS[kind]
    axis = -1 if isinstance(layer, nn.Linear) else 1
    inputs = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0)).relu()
    size = inputs.shape[axis]
    order = np.random.default_rng(0).permutation(size)
    net_graph = graph(group("g", size, [], [member("0", order)]))
    (view,) = collect(nn.Sequential(layer), net_graph, [(inputs, inputs)], None, {"activation", "maps"})["g"]
    read = inputs.movedim(axis, 1)[:, np.argsort(order)]
    torch.testing.assert_close(view.activation_mean, read.reshape(6, size, -1).mean((0, 2)))
    torch.testing.assert_close(view.activation_nonzero, (read != 0).float().reshape(6, size, -1).mean((0, 2)))
    if axis == 1 and read.ndim >= 4:
        torch.testing.assert_close(view.maps, read.flatten(2, -2))
    else:
        assert "maps" not in view.present


def test_a_producer_with_several_positions_per_channel():
    torch.manual_seed(0)
    first = nn.Linear(3, 8, bias=False)
    model = nn.Sequential(first, nn.Unflatten(1, (2, 2, 2)), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1))
    net_graph = graph(group("g", 2, [member("0", np.repeat([0, 1], 4))], [member("3", 2)]))
    inputs, targets = torch.randn(5, 3), torch.randn(5, 2, 2, 2)
    view = producer(collect(model, net_graph, [(inputs, targets)], F.mse_loss, FIRST_ORDER), "g")
    torch.testing.assert_close(view.weight, model[0].weight.detach().view(2, 12))
    slope = (view.weight * view.weight_gradient).sum(1)
    torch.testing.assert_close(view.gate_gradient_squared, slope.square(), rtol=1e-4, atol=1e-9)


def test_a_layer_that_carries_a_part_of_a_group_and_a_part_of_another():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 1, bias=False), nn.Conv2d(5, 1, 1))
    wide, narrow = [-1, 2, -1, 0, -1], [1, -1, 0, -1, 2]
    net_graph = graph(
        group("wide", 4, [member("0", wide)], [member("1", wide)]),
        group("narrow", 3, [member("0", narrow)], [member("1", narrow)]),
    )
    inputs = torch.randn(4, 1, 3, 3)
    views = collect(model, net_graph, [(inputs, torch.randn(4, 1, 3, 3))], F.mse_loss, FIRST_ORDER)
    part, full = producer(views, "wide"), producer(views, "narrow")
    assert part.channels.tolist() == [0, 2]
    assert (part.rows, part.size) == (2, 4)
    assert full.channels is None
    weight = model[0].weight.detach().flatten(1)
    assert torch.equal(part.weight, weight[[3, 1]])
    assert torch.equal(full.weight, weight[[2, 0, 4]])
    for view in (part, full):
        slope = (view.weight * view.weight_gradient).sum(1)
        torch.testing.assert_close(view.gate_gradient_squared, slope.square(), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(views["narrow"][1].activation_mean, model[0](inputs).detach().mean((0, 2, 3))[[2, 0, 4]])


def test_channels_with_unequal_numbers_of_positions_are_refused():
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(CriterionError, match=r"equally many positions of '0', got \[2, 1\]"):
        collect(model, graph(group("g", 2, [member("0", [0, 0, 1])])), [], None, {"weight"})


def test_bfloat16_networks_give_float32_statistics():
    model, net_graph = conv_net()
    inputs, targets = images()
    wide = collect(model, net_graph, [(inputs, targets)], F.cross_entropy, ALL)
    narrow = collect(model.bfloat16(), net_graph, [(inputs.bfloat16(), targets)], F.cross_entropy, ALL)
    for name in ("activation_mean", "activation_nonzero", "maps"):  # 8 bits of mantissa through four layers
        rough, fine = getattr(narrow["stem"][1], name), getattr(wide["stem"][1], name)
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough, fine, rtol=0.05, atol=0.05)
    for name in producer(narrow, "conv").present - {"flow_gradient"}:  # a product over layers, kept in float64
        assert getattr(producer(narrow, "conv"), name).dtype == torch.float32
    for name in ("weight_gradient", "gate_gradient_squared"):  # through seven layers and back
        rough, fine = getattr(producer(narrow, "conv"), name), getattr(producer(wide, "conv"), name)
        assert (rough - fine).norm() < 0.1 * fine.norm()


class Detour(nn.Module):
    """Its layer ``lost`` never reaches the loss, its layer ``unused`` is never called."""

    def __init__(self):
        super().__init__()
        self.lost, self.unused, self.used = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

    def forward(self, x):
        return self.used(x) + self.lost(x).detach()


def test_layers_that_the_loss_does_not_depend_on_have_gradient_zero():
    model = Detour()
    net_graph = graph(*(group(name, 2, [member(name, 2)]) for name in ("lost", "unused", "used")))
    inputs = torch.ones(3, 1, 2, 2)
    views = collect(model, net_graph, [(inputs, inputs)], lambda y, t: y.square().mean(), ALL)
    for name in ("lost", "unused"):
        view = producer(views, name)
        for statistic in view.present - {"weight"}:
            assert not getattr(view, statistic).any()
        assert len(view.present) == 9
    assert producer(views, "used").gate_gradient_squared.all()
    constant = collect(model, net_graph, [(inputs, inputs)], lambda y, t: torch.tensor(1.0), ALL)
    assert not producer(constant, "used").weight_gradient.any()


# --- how it is measured --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1,) * 12, (5, 7), (4, 4, 4)])
def test_means_do_not_depend_on_the_split_in_batches(sizes):
    model, net_graph = conv_net()
    inputs, targets = images()
    whole = collect(model, net_graph, [(inputs, targets)], F.cross_entropy, FIRST_ORDER)
    batches = zip(inputs.split(sizes), targets.split(sizes), strict=True)
    parts = collect(model, net_graph, batches, F.cross_entropy, FIRST_ORDER)
    for part, full in zip(parts["stem"], whole["stem"], strict=True):
        for name in part.present - PER_BATCH:
            torch.testing.assert_close(getattr(part, name), getattr(full, name), rtol=1e-4, atol=1e-6)


def test_statistics_are_the_same_whatever_else_is_collected():
    model, net_graph = conv_net()
    everything = collect(model, net_graph, [images()], F.cross_entropy, ALL)
    for need in ALL:
        alone = collect(model, net_graph, [images()], F.cross_entropy, {need})
        for group_name, views in alone.items():
            for view, full in zip(views, everything[group_name], strict=True):
                for name in view.present:
                    torch.testing.assert_close(getattr(view, name), getattr(full, name), rtol=1e-5, atol=1e-8)


def test_a_weight_takes_no_data():
    def batches():
        raise AssertionError("batches were touched")
        yield

    model, net_graph = conv_net()
    views = collect(model, net_graph, batches(), None, {"weight", "batchnorm"})
    assert producer(views, "conv").present == {"weight"}
    assert producer(views, "stem").present == {"weight", "gamma", "beta"}
    assert views["stem"][1].present == set()


class Witness(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append((torch.is_grad_enabled(), self.training))
        return x


def test_activations_take_no_gradient_and_no_loss():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), Witness(), nn.Conv2d(3, 1, 1))
    net_graph = graph(group("g", 3, [member("0", 3)], [member("2", 3)]))
    collect(model, net_graph, [images()], None, {"activation", "maps"})
    assert model[1].seen == [(False, False)]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_inside_of_a_context_without(context):
    model, net_graph = conv_net()
    batches = [images()]
    expected = collect(model, net_graph, batches, F.cross_entropy, ALL)
    with context():
        found = collect(model, net_graph, batches, F.cross_entropy, ALL)
    assert torch.equal(producer(found, "stem").weight_gradient, producer(expected, "stem").weight_gradient)


def test_the_same_seed_gives_the_same_bits():
    model, net_graph = conv_net()
    first, again, other = (
        collect(model, net_graph, [images()] * 2, F.cross_entropy, ALL - {"activation", "maps"}, seed=seed)["stem"][0]
        for seed in (0, 0, 1)
    )
    for name in first.present:
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.hessian_diagonal, other.hessian_diagonal)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def test_networks_that_draw_random_numbers_are_seeded():
    model, net_graph = conv_net()
    model.pool = Noise()
    model.head = nn.Linear(3 * 6 * 6, 5)
    net_graph = graph(net_graph.groups[0])
    torch.manual_seed(1)
    first = collect(model, net_graph, [images()], F.cross_entropy, {"activation"}, seed=5)["stem"][1]
    again = collect(model, net_graph, [images()], F.cross_entropy, {"activation"}, seed=5)["stem"][1]
    torch.manual_seed(2)
    later = collect(model, net_graph, [images()], F.cross_entropy, {"activation"}, seed=5)["stem"][1]
    other = collect(model, net_graph, [images()], F.cross_entropy, {"activation"}, seed=6)["stem"][1]
    assert torch.equal(first.activation_mean, again.activation_mean)
    assert torch.equal(first.activation_mean, later.activation_mean)
    assert not torch.equal(first.activation_mean, other.activation_mean)


def test_a_shuffling_loader_does_not_move_the_random_state():
    model, net_graph = conv_net()
    data = torch.utils.data.TensorDataset(*images(20))
    loader = torch.utils.data.DataLoader(data, batch_size=6, shuffle=True)
    before = torch.get_rng_state()
    done = []
    collect(model, net_graph, loader, F.cross_entropy, ALL, on_batch=done.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert done == [1, 2, 3, 4]


# --- what is left behind -------------------------------------------------------------------------------------------


class Moody(nn.Module):
    """Counts its calls in a buffer, draws random numbers, and raises at the third call."""

    def __init__(self, patience):
        super().__init__()
        self.patience = patience
        self.calls = 0
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        if self.calls > self.patience:
            raise RuntimeError("enough")
        self.count += 1
        self.last = x.detach().mean()
        return x + 0 * torch.rand(())


def touchy_net(patience):
    model, net_graph = conv_net()
    model.tanh = nn.Sequential(nn.Tanh(), Moody(patience))
    model.train()
    model.norm.eval()
    model.stem.bias.requires_grad_(False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    model.head.register_forward_hook(lambda module, args, output: None)
    return model, net_graph


@pytest.mark.parametrize(
    "needs", [*({need} for need in ("weight", "activation", "gate_gradient", "hessian_diagonal")), ALL]
)
@pytest.mark.parametrize("patience", [100, 2, 0])
def test_the_network_is_left_untouched(needs, patience):
    model, net_graph = touchy_net(patience)
    before = snapshot(model)
    batches = [images(4, seed) for seed in range(4)]
    if patience < 4 and needs != {"weight"}:
        with pytest.raises(RuntimeError, match="enough"):
            collect(model, net_graph, batches, F.cross_entropy, needs)
    else:
        collect(model, net_graph, batches, F.cross_entropy, needs)
    assert_same(before, snapshot(model))


def bad_loader():
    yield images()
    raise OSError("disk")


def bad_progress(done):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (OSError, {"batches": bad_loader()}),
        (KeyboardInterrupt, {"on_batch": bad_progress}),
        (CriterionError, {"loss": lambda y, t: y}),
        (CriterionError, {"loss": lambda y, t: y.sum() * math.nan}),
        (RuntimeError, {"batches": [(torch.zeros(2, 3, 6, 6), torch.zeros(2))]}),
        (AttributeError, {"graph": graph(group("g", 4, [member("stem", 4, "norm"), member("missing", 4)]))}),
    ],
)
def test_the_network_is_left_untouched_when_others_fail(error, change):
    model, net_graph = touchy_net(100)
    before = snapshot(model)
    arguments = {"graph": net_graph, "batches": [images()], "loss": F.cross_entropy, "needs": ALL} | change
    with pytest.raises(error):
        collect(model, **arguments)
    assert_same(before, snapshot(model))


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"needs": {"weights"}}, "needs must be among weight, batchnorm, .*, got weights"),
        ({"batches": []}, "batches must hold at least one batch, got none"),
        ({"map_images": 0}, "map_images must be at least 1, got 0"),
        ({"loss": lambda y, t: y.sum() * math.inf}, "loss must be a finite scalar, got (-?inf|nan)"),
        ({"loss": lambda y, t: F.cross_entropy(y, t, reduction="none")}, "loss must be a finite scalar, got tensor"),
    ],
)
def test_wrong_arguments(change, message):
    model, net_graph = conv_net()
    arguments = {"batches": [images()], "loss": F.cross_entropy, "needs": ALL} | change
    with pytest.raises(ValueError, match=message) as caught:
        collect(model, net_graph, **arguments)
    assert isinstance(caught.value, CriterionError)


def test_a_computed_weight_has_no_gradient():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 1)))
    net_graph = graph(group("g", 2, [member("0", 2)]))
    batch = [(torch.ones(3, 1, 2, 2), torch.ones(3, 2, 2, 2))]
    assert producer(collect(model, net_graph, batch, half_squared_error, {"weight"}), "g").weight.shape == (2, 1)
    with pytest.raises(CriterionError, match="the weight of '0' must be a parameter"):
        collect(model, net_graph, batch, F.mse_loss, {"weight_gradient"})


def test_a_module_of_several_names_is_one_and_stays_what_it_was():
    torch.manual_seed(0)
    act, norm = nn.PReLU(4), nn.BatchNorm2d(4)
    layers = (nn.Conv2d(2, 4, 1), norm, act, nn.Conv2d(4, 4, 1), norm, act, nn.Flatten(), nn.Linear(64, 3))
    model = nn.Sequential(*layers).eval()
    batches = [(torch.randn(5, 2, 4, 4), torch.arange(5) % 3) for _ in range(2)]
    graph = ChannelGraph.build(model, batches[0][0])
    before = [(id(tensor), tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    names = ["taylor_fo", "taylor_so", "synflow", "loss_ablation", "cap"]
    table = score(model, graph, batches, F.cross_entropy, names)
    assert table.criteria == tuple(names)
    now = [*model.parameters(), *model.buffers()]
    assert [id(tensor) for tensor in now] == [which for which, _ in before]
    assert all(torch.equal(tensor, value) for tensor, (_, value) in zip(now, before, strict=True))
    assert model[4] is norm
    assert isinstance(act.weight, nn.Parameter)


def test_gradients_that_cannot_be_had_are_told_of():
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return checkpoint(nn.Sequential(*list(self)[1:]), self[0](x), use_reentrant=True)

    model = Checkpointed(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    batch = torch.randn(5, 2, 4, 4), torch.arange(5) % 3
    graph = ChannelGraph.build(model, batch[0])
    with pytest.raises(CriterionError, match=r"must have gradients by torch.autograd.grad, got: .*\.grad\(\)"):
        score(model, graph, [batch], F.cross_entropy, ["taylor_fo"])
