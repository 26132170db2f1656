"""Compensation, held against numpy's least squares on layers small enough to write down all that they read."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blend.compensation.consumer_inputs import readings, rejoined, statistics_only, with_statistics
from blend.compensation.correction import Compensation, absorbed_means, compensation, ridge_solution
from blend.compensation.sequential import sequential
from blend.errors import InputError
from blend.pruned.step import Calibration, compensated, recalibrated
from blend.pruning import PrunedNetwork, recalibrate
from criteria import ChannelGraph


def head(layer, outputs=3, **kwargs):
    """A consumer and what comes after it, behind a first layer of four or six channels."""
    channels = layer.in_channels if not isinstance(layer, nn.Linear) else 4
    first = nn.Conv2d(2, channels, 3, padding=1)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(outputs, 2)]
    return nn.Sequential(first, nn.ReLU(), layer, *pool).double().eval()


def images(count=40, side=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, side, side, generator=generator, dtype=torch.float64)


def set_up(layer, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = head(layer, **kwargs)
    graph = ChannelGraph.build(model, images(2), ignore=["2"])
    return model, graph, images()


def removing(graph, *channels):
    keep = np.ones(len(graph), dtype=bool)
    keep[list(channels)] = False
    return keep


def read_by(model, inputs, layer=2):
    with torch.no_grad():
        return model[:layer](inputs)


def ridge_regression(x, y, weights, ridge):
    """Corrected weights and bias by numpy's lstsq: rows of the penalty below the centred observations."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred, left = x - mean_x, (y - mean_y) - (x - mean_x) @ weights.T
    penalty = ridge * centred.var(0).mean()
    rows = np.vstack([centred / np.sqrt(len(x)), np.sqrt(penalty) * np.eye(x.shape[1])])
    wanted = np.vstack([left / np.sqrt(len(x)), np.zeros((x.shape[1], y.shape[1]))])
    corrected = weights + np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    return corrected, mean_y - corrected @ mean_x


@pytest.mark.parametrize("ridge", [0.01, 0.3, 0.0])
def test_1x1_convolution_is_lstsq(ridge):
    model, graph, inputs = set_up(nn.Conv2d(4, 3, 1))
    keep = removing(graph, 1)
    x = read_by(model, inputs).movedim(1, -1).reshape(-1, 4).numpy()
    weights = model[2].weight.detach().flatten(1).numpy()
    y = x @ weights.T + model[2].bias.detach().numpy()
    expected, bias = ridge_regression(x[:, keep], y, weights[:, keep], ridge)
    for grade in ("channel", "patch"):
        correct, notes = compensation(model, graph, inputs.split(8), grade, ridge=ridge)
        found = correct(keep).tensors
        assert notes == []
        assert set(found) == {"2.weight", "2.bias"}
        np.testing.assert_allclose(found["2.weight"].flatten(1)[:, keep], expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found["2.bias"], bias, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"padding": 1},
        {"stride": 2},
        {"dilation": 2, "padding": 2},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 1, "bias": False},
    ],
)
def test_patches_are_lstsq_over_all_that_an_output_reads(settings):
    model, graph, inputs = set_up(nn.Conv2d(4, 3, 3, **settings))
    keep, layer = removing(graph, 0, 2), model[2]
    read = read_by(model, inputs)
    mode = {"zeros": "constant"}.get(layer.padding_mode, layer.padding_mode)
    padded = F.pad(read, layer._reversed_padding_repeated_twice, mode=mode)
    x = F.unfold(padded, 3, dilation=layer.dilation, stride=layer.stride).movedim(1, -1).reshape(-1, 36).numpy()
    with torch.no_grad():
        y = layer(read).movedim(1, -1).reshape(-1, 3).numpy()
    kept = np.repeat(keep[:4], 9)
    weights = layer.weight.detach().flatten(1).numpy()
    expected, bias = ridge_regression(x[:, kept], y, weights[:, kept], 0.01)
    correct, _ = compensation(model, graph, inputs.split(16), "patch")
    found = correct(keep).tensors
    np.testing.assert_allclose(found["2.weight"].flatten(1)[:, kept], expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found["2.bias"], bias, rtol=1e-8, atol=1e-10)
    again, _ = sequential(model, graph, keep, inputs.split(16))  # nothing comes before: the same
    np.testing.assert_allclose(again.tensors["2.weight"].flatten(1)[:, kept], expected, rtol=1e-8, atol=1e-10)


def test_two_channels_by_hand():
    """x = (a, b), cov = [[2, 1], [1, 4]], y = 3 a + 5 b: without b, D = 5 · 1 / (2 + 0.01 · 2)."""
    change, unique = ridge_solution(torch.tensor([[2.0]]), torch.tensor([[5.0]]), 0.01)
    assert unique
    assert float(change) == pytest.approx(5 / 2.02)


def error(model, graph, keep, inputs, corrected):
    """Of the consumer's outputs, on average."""
    with torch.no_grad():
        pruned = PrunedNetwork(model, graph).prune(keep, corrected)
        return float((pruned[:3](inputs) - model[:3](inputs)).square().mean())


class Same(nn.Conv2d):
    """Pads in a forward of its own, so that what its settings say is no patch of what it reads."""

    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


CONSUMERS = {
    "own forward": lambda: Same(6, 3, 3, stride=2),
    "conv": lambda: nn.Conv2d(6, 3, 3, padding=1),
    "strided": lambda: nn.Conv2d(6, 3, 3, stride=2, bias=False),
    "dilated": lambda: nn.Conv2d(6, 3, 3, dilation=2),
    "grouped": lambda: nn.Conv2d(6, 3, 3, groups=3),
    "transposed": lambda: nn.ConvTranspose2d(6, 3, 3, stride=2),
    "grouped transposed": lambda: nn.ConvTranspose2d(6, 3, 2, groups=3, bias=False),
}


@pytest.mark.parametrize("kind", CONSUMERS)
def test_every_kind_of_consumer_errs_less_with_than_without(kind):
    model, graph, inputs = set_up(CONSUMERS[kind]())
    keep = removing(graph, *({"grouped": [0], "grouped transposed": [1]}.get(kind, [0, 3, 4])))
    errors = [error(model, graph, keep, inputs, {})]
    for grade in ("channel", "patch"):
        correct, notes = compensation(model, graph, inputs.split(16), grade)
        by_channel = "transposed" in kind or kind == "own forward"
        assert len(notes) == (by_channel and grade == "patch")
        errors.append(error(model, graph, keep, inputs, correct(keep).tensors))
    errors.append(error(model, graph, keep, inputs, sequential(model, graph, keep, inputs.split(16))[0].tensors))
    assert errors[1] < errors[0]
    assert errors[2] <= errors[1] * (1 + 1e-9)
    assert errors[3] <= errors[2] * (1 + 1e-6)


class OneNormForTwo(nn.Module):
    """Two branches by one BatchNorm, which they pass one after the other."""

    def __init__(self):
        super().__init__()
        self.first, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1, bias=False)
        self.b, self.norm, self.last = nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 1)

    def forward(self, x):
        return self.last(self.norm(self.a(self.first(x).relu())).relu() + self.norm(self.b(x)).relu())


def test_a_norm_that_is_passed_twice_does_not_mislead_what_comes_after():
    torch.manual_seed(0)
    model, inputs = OneNormForTwo().eval(), torch.randn(64, 3, 8, 8)
    recalibrate(model, [inputs])
    graph = ChannelGraph.build(model, inputs[:4])
    keep = np.concatenate([np.arange(group.size) >= group.size // 4 for group in graph.groups])
    what, errors = (model, graph, keep, Calibration(inputs, 64, 64)), {}
    for grade in ("none", "patch", "sequential"):
        smaller = recalibrated(*what) if grade == "none" else recalibrated(*what, compensated(*what, grade))
        with torch.no_grad():
            errors[grade] = float((smaller(inputs) - model(inputs)).square().mean())
    assert errors["sequential"] < 1.5 * errors["patch"] < 0.5 * errors["none"]


def test_flattened_maps():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3))]
    model = nn.Sequential(*layers).double().eval()
    graph, inputs = ChannelGraph.build(model, images(2)), images()
    keep = removing(graph, 1, 4)
    errors = [error(model, graph, keep, inputs, {})]
    for grade, variables in (("channel", 5), ("patch", 20)):
        found, _ = readings(model, graph, grade)
        assert [one.variables for one in found] == [variables]
        correct, _ = compensation(model, graph, [inputs], grade)
        errors.append(error(model, graph, keep, inputs, correct(keep).tensors))
    assert errors[2] < errors[1] < errors[0]


def duplicated():
    """Channel 3 is channel 0 once more."""
    model, graph, inputs = set_up(nn.Conv2d(4, 3, 3, padding=1))
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = model[0].weight[0], model[0].bias[0]
    return model, graph, inputs, removing(graph, 3)


@pytest.mark.parametrize("grade", ["channel", "patch", "sequential"])
def test_a_duplicate_is_recovered_exactly(grade):
    model, graph, inputs, keep = duplicated()
    if grade == "sequential":
        corrected, _ = sequential(model, graph, keep, [inputs], ridge=1e-9)
    else:
        correct, _ = compensation(model, graph, [inputs], grade, ridge=1e-9)
        corrected = correct(keep)
    with torch.no_grad():
        difference = PrunedNetwork(model, graph).prune(keep, corrected.tensors)(inputs) - model(inputs)
    assert difference.abs().max() <= 1e-4
    assert corrected.singular == ()


def test_singular_statistics_are_reported_and_solved():
    model, graph, inputs, _ = duplicated()
    keep = removing(graph, 1)
    correct, _ = compensation(model, graph, [inputs], "patch", ridge=0.0)
    corrected = correct(keep)
    assert corrected.singular == ("2",)
    assert all(tensor.isfinite().all() for tensor in corrected.tensors.values())
    assert error(model, graph, keep, inputs, corrected.tensors) < error(model, graph, keep, inputs, {})


def test_dead_channels_teach_nothing():
    model, graph, inputs = set_up(nn.Conv2d(4, 3, 1))
    with torch.no_grad():
        model[0].weight[:3], model[0].bias[:3] = 0, -1.0
    keep = removing(graph, 3)
    corrected = compensation(model, graph, [inputs], "channel")[0](keep)
    assert corrected.singular == ("2",)
    torch.testing.assert_close(corrected.tensors["2.weight"], model[2].weight.detach())
    lost = (model[2].weight[:, 3].flatten() * read_by(model, inputs)[:, 3].mean()).detach()
    torch.testing.assert_close(corrected.tensors["2.bias"], model[2].bias.detach() + lost)


def test_added_biases_come_and_go():
    model, graph, inputs = set_up(nn.Conv2d(4, 3, 1, bias=False))
    network, keep = PrunedNetwork(model, graph), removing(graph, 1)
    correct, _ = compensation(model, graph, [inputs], "channel")
    assert network.prune(keep, correct(keep).tensors)[2].bias.shape == (3,)
    assert network.extract(keep, correct(keep).tensors)[2].bias.requires_grad
    assert network.prune(keep)[2].bias is None
    torch.testing.assert_close(network.shell[2].weight, model[2].weight[:, keep], rtol=0, atol=0)


def test_corrected_biases_do_not_stay():
    model, graph, inputs = set_up(nn.Conv2d(4, 3, 1))
    network, keep = PrunedNetwork(model, graph), removing(graph, 1)
    network.prune(keep, compensation(model, graph, [inputs], "channel")[0](keep).tensors)
    with torch.no_grad():
        assert torch.equal(network.prune(np.ones_like(keep))(inputs), model(inputs))


def test_batchnorm_takes_the_mean_in_place_of_a_bias():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)).double().eval()
    graph = ChannelGraph.build(model, images(2))
    assert absorbed_means(graph) == {"2"}
    keep = removing(graph, 1, 5)
    correct, _ = compensation(model, graph, [images()], "patch", absorbed=absorbed_means(graph))
    assert set(correct(keep).tensors) == {"2.weight", "7.weight", "7.bias"}
    again, _ = sequential(model, graph, keep, [images()], absorbed_means(graph))
    assert set(again.tensors) == set(correct(keep).tensors)


def test_depthwise_layers_have_nothing_to_correct():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 3, 1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    graph = ChannelGraph.build(model, torch.randn(2, 2, 8, 8), ignore=["3"])
    assert [one.layer for one in readings(model, graph, "patch")[0]] == ["3"]


def test_what_is_too_wide_is_left_alone_by_name(monkeypatch):
    model, graph, _ = set_up(nn.Conv2d(4, 3, 3))
    monkeypatch.setattr("blend.compensation.consumer_inputs.WIDEST", 20)
    found, notes = readings(model, graph, "patch")
    assert found == []
    assert notes == ["'2' is not compensated: it reads 36 variables, more than 20"]
    assert len(readings(model, graph, "channel")[0]) == 1


def test_too_much_memory_is_refused(monkeypatch):
    model, graph, _ = set_up(nn.Conv2d(4, 3, 3))
    monkeypatch.setattr("blend.compensation.consumer_inputs.LARGEST", 8 * 36**2 - 1)
    with pytest.raises(InputError, match="compensate must be 'channel' for this network, got 'patch'"):
        readings(model, graph, "patch")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 3, 3))
    graph = ChannelGraph.build(model, torch.randn(1, 3, 8, 8))
    with pytest.raises(InputError, match="got 'sequential', whose statistics take"):
        readings(model, graph, "sequential")
    monkeypatch.setattr("blend.compensation.consumer_inputs.LARGEST", 8 * 36**2)
    assert len(readings(model, graph, "sequential")[0]) == 2  # one after the other
    with pytest.raises(InputError, match="got 'patch', whose statistics take"):
        readings(model, graph, "patch")


def test_infinite_statistics_are_refused():
    model, graph, inputs = set_up(nn.Conv2d(4, 3, 3))
    inputs[0] = torch.inf
    with pytest.raises(InputError, match="what '2' reads must be finite"):
        compensation(model, graph, [inputs], "channel")


def test_statistics_survive_being_stored_and_the_batches():
    model, graph, inputs = set_up(nn.Conv2d(4, 3, 3))
    keep = removing(graph, 2)
    known = with_statistics(model, readings(model, graph, "patch")[0], inputs.split(7))
    again = rejoined([(one, torch.from_numpy(array)) for one, array in statistics_only(known)])
    first, second = Compensation(model, known)(keep).tensors, Compensation(model, again)(keep).tensors
    assert all(torch.equal(first[name], second[name]) for name in first)
    whole = compensation(model, graph, [inputs], "patch")[0](keep).tensors
    torch.testing.assert_close(whole["2.weight"], first["2.weight"], rtol=1e-8, atol=1e-10)
