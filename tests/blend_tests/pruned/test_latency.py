"""The latency model on made-up measurements, and its measuring by a made-up clock."""

import json
import time

import numpy as np
import pytest
import torch
from torch import nn

from blend.budget import CostModel, floors, keep_mask, uniform
from blend.cli import run
from blend.errors import InputError
from blend.pruned import latency, layer_timing
from blend.pruned.latency import BLOCKS, LatencyModel, LayerLatency, Passes, RestLatency, fitted, weight_axes
from blend.pruned.layer_timing import checked_by_a_network, drawn_widths, timed_passes
from blend.pruned.rounding import rounded_keep_mask
from blend.pruned.saved import PruningRecord
from blend.pruned.unfinished import Unfinished
from criteria import ChannelGraph

from ..adapters.blends import blend_for
from ..small_networks import graph_of, random_keep, random_scores, tiny, tiny_images
from ..task_file import small
from .test_smaller import TASK

TUNABLE = TASK.replace(":small", ":tunable")
TINY = ChannelGraph.build(tiny(), tiny_images())


def planted(graph, seed=0, blocks=BLOCKS):
    """Some latency of a graph's layers."""
    rng = np.random.default_rng(seed)
    layers = tuple(
        LayerLatency(name, int(rng.choice(blocks)), *(rng.uniform(0, 1e-4, 3) * [1, 1, axes[1] >= 0]),
                     float(rng.uniform(0, 1e-5) * (axes[1] >= 0)))
        for name, axes in weight_axes(graph).items()
    )  # fmt: skip
    return LatencyModel(graph, layers, RestLatency(1e-4, 1e-9, 0.0), 4)


def passes_of(graph, model, masks, batch_size, noise=0.0, seed=0):
    """What passes would take by a model, each number with noise of its own."""
    rng = np.random.default_rng(seed)
    alone = {layer.layer: LatencyModel(graph, (layer,), RestLatency(0, 0, 0), 4) for layer in model.layers}

    def seconds(of):
        return np.array([of(mask) for mask in masks]) * batch_size * (1 + noise * rng.normal(size=len(masks)))

    return Passes(tuple(masks), {name: seconds(layer) for name, layer in alone.items()}, seconds(model))


def test_a_layer_is_what_its_formula_says():
    """4 channels out of the stem, rounded up to 8, and 3 of the second conv, which reads them: 8 · 8."""
    layer = LayerLatency("conv", 8, constant=100.0, first=10.0, second=1.0, both=0.1)
    model = LatencyModel(TINY, (layer,), RestLatency(constant=1000.0, activation=0.5, fresh=0.0), 4)
    values = 16 * (4 + 3)  # both convs put out maps of 4 x 4; no channel of the head is in the graph
    assert model.full == pytest.approx(100 + 10 * 8 + 8 + 0.1 * 64 + 1000 + 0.5 * values)
    fewer = np.array([True, False, False, False, True, True, True])
    assert model(fewer) == pytest.approx(model.full - 0.5 * 16 * 3)  # 1 rounded up is still 8
    assert model.reduction(fewer) == pytest.approx(24 / model.full)


def test_tensors_that_are_not_reused_cost_more(monkeypatch):
    monkeypatch.setattr(latency, "MAX_REUSED_BYTES", 16 * 3 * 4)
    model = LatencyModel(TINY, (), RestLatency(0.0, 0.0, 1.0), value_bytes=4)
    assert model.full == 16 * 4  # the stem's maps alone are above three channels' bytes
    assert model(np.array([True, True, True, False, True, True, True])) == 0


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "vgg16_bn"])
def test_fit_finds_what_was_planted(name):
    _, graph = graph_of(name)
    truth = planted(graph, blocks=(1,))
    masks = drawn_widths(graph, 30, np.random.default_rng(1))
    found = fitted(graph, passes_of(graph, truth, masks, 8), 8)
    for seed in range(5):
        keep = random_keep(graph, seed)
        assert found(keep) == pytest.approx(truth(keep), rel=1e-6)
    assert found.full == pytest.approx(truth.full, rel=1e-6)


def test_fit_finds_the_block():
    """Layers of 64 and 48 channels, whose kernels work on 16 at once."""
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 48, 3), nn.ReLU(), nn.Conv2d(48, 5, 1)).eval()
    graph = ChannelGraph.build(model, torch.randn(1, 3, 8, 8))
    truth = planted(graph, blocks=(16,))
    found = fitted(graph, passes_of(graph, truth, drawn_widths(graph, 20, np.random.default_rng(0)), 8), 8)
    assert {layer.layer: layer.block for layer in found.layers} == {"0": 16, "2": 16, "4": 16}
    keep = random_keep(graph, 0)
    assert found(keep) == pytest.approx(truth(keep), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_removing_a_channel_never_costs_more(seed):
    """Also where what was measured is hardly more than noise."""
    _, graph = graph_of("resnet20")
    masks = drawn_widths(graph, 8, np.random.default_rng(seed))
    model = fitted(graph, passes_of(graph, planted(graph, seed), masks, 8, noise=0.8, seed=seed), 8)
    rng, keep = np.random.default_rng(seed), np.ones(len(graph), dtype=bool)
    for channel in rng.permutation(len(graph)):
        before = model(keep)
        keep[channel] = False
        assert model(keep) <= before


def test_masks_reach_the_reduction_and_give_back_what_is_free():
    _, graph = graph_of("vgg16_bn")
    model = LatencyModel(graph, planted(graph, blocks=(8,)).layers, RestLatency(1e-4, 0.0, 0.0), 4)
    scores, floor = random_scores(graph), floors(graph)
    for reduction in (0.2, 0.5):
        keep = keep_mask(graph, scores, reduction, model, floor)
        assert model.reduction(keep) >= reduction
        for group, part in graph.split(keep):
            if not part.all():
                more = keep.copy()
                more[graph.slices[group.name].start + np.flatnonzero(~part)[0]] = True
                assert model.reduction(more) < reduction
            assert part.all() or part.sum() % 8 == 0
    rounded = rounded_keep_mask(graph, scores, 0.3, model, floor, 4)
    assert model.reduction(rounded) >= 0.3
    with pytest.raises(InputError, match=r"reduction 0\.99 of latency cannot be reached"):
        keep_mask(graph, scores, 0.99, model, floor)


def test_widths_are_of_all_kinds():
    _, graph = graph_of("resnet20")
    masks = drawn_widths(graph, 12, np.random.default_rng(0))
    assert masks[0].all()
    for group in graph.groups:
        shares = [mask[graph.slices[group.name]].mean() for mask in masks[1:]]
        assert 0 < min(shares) < 0.5 < max(shares) <= 1


class Clock:
    """Counts the multiplications of the convs below."""

    now = 0.0


class TimedConv(nn.Conv2d):
    def forward(self, inputs):
        Clock.now += self.weight.numel()
        return super().forward(inputs)


class TimedNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = TimedConv(1, 6, 3), TimedConv(6, 6, 3), TimedConv(6, 2, 1)

    def forward(self, x):
        Clock.now += 7
        return self.c(self.b(self.b(self.a(x))))


def test_layers_are_timed_inside_the_network():
    model, inputs = TimedNetwork().eval(), torch.randn(2, 1, 8, 8)
    graph = ChannelGraph.build(model, inputs)
    passes = timed_passes(model, graph, inputs, clock=lambda: Clock.now)
    kept = [int(mask.sum()) for mask in passes.masks]
    assert len(set(kept)) > 2
    assert passes.layers["a"].tolist() == [9 * n for n in kept]
    assert passes.layers["b"].tolist() == [2 * 9 * n * n for n in kept]
    assert passes.layers["c"].tolist() == [2 * n for n in kept]
    assert passes.totals.tolist() == [9 * n + 18 * n * n + 2 * n + 7 for n in kept]
    found = fitted(graph, passes, 2)
    for mask in passes.masks:
        assert found(mask) * 2 == pytest.approx(9 * mask.sum() + 18 * mask.sum() ** 2 + 2 * mask.sum() + 7)

class Scaled(nn.Module):
    """A block, and a network of it, that scale the channels of what is inside by parameters of their own."""

    def __init__(self, *layers, channels):
        super().__init__()
        self.layers, self.scale = nn.Sequential(*layers), nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return self.layers(x) * self.scale


def test_the_seconds_of_layers_are_not_those_of_what_is_around_them_too():
    block = Scaled(TimedConv(3, 8, 3), nn.ReLU(), channels=8)
    model = Scaled(block, TimedConv(8, 8, 3), nn.ReLU(), channels=8).eval()
    inputs = torch.randn(2, 3, 8, 8)
    passes = timed_passes(model, ChannelGraph.build(model, inputs), inputs, clock=lambda: Clock.now)
    assert set(passes.layers) == {"layers.0.layers.0", "layers.1"}
    assert passes.totals == pytest.approx(sum(passes.layers.values()))


@pytest.mark.parametrize("reduction", [0.3, 0.5])
def test_a_pruned_network_corrects_the_model(reduction):
    """A model that takes too much to depend on no width promises too little."""
    model, inputs = TimedNetwork().eval(), torch.randn(2, 1, 8, 8)
    graph = ChannelGraph.build(model, inputs)
    taken = LayerLatency("b", 1, 0, 0, 0, both=9), LayerLatency("a", 1, 0, 5, 0, 0), LayerLatency("c", 1, 0, 1, 0, 0)
    wrong = LatencyModel(graph, taken, RestLatency(50, 0, 0), 4)
    right = checked_by_a_network(wrong, model, inputs, reduction, clock=lambda: Clock.now)
    assert right.full == wrong.full
    equal = {group.name: np.arange(group.size) for group in graph.groups}
    keep = keep_mask(graph, equal, reduction, wrong, floors(graph, 0.0))

    def seconds(n):
        return 9 * n + 18 * n * n + 2 * n + 7

    measured = 1 - seconds(int(keep.sum())) / seconds(6)
    assert right.reduction(keep) == pytest.approx(measured)
    assert right.reduction(keep) != pytest.approx(wrong.reduction(keep), rel=0.01)
    assert right.reduction(np.ones(6, dtype=bool)) == 0
    assert right(keep) == pytest.approx(right.full * (1 - measured))


def test_a_model_within_the_noise_of_its_check_is_left_alone(monkeypatch):
    model, inputs = TimedNetwork().eval(), torch.randn(2, 1, 8, 8)
    graph = ChannelGraph.build(model, inputs)
    cost = planted(graph, blocks=(1,))
    equal = uniform({group.name: np.arange(group.size) for group in graph.groups})
    keep = keep_mask(graph, equal, 0.3, cost, floors(graph, 0.0))
    ratio = 1 - cost.reduction(keep)

    def measured(*around):
        turns = np.array([[1.0, value] for value in around])
        monkeypatch.setattr(layer_timing, "seconds_in_turns", lambda *_: turns)
        return 1 - checked_by_a_network(cost, model, inputs, 0.3).reduction(keep)

    assert measured(ratio - 0.1, ratio + 0.05, ratio + 0.1) == pytest.approx(ratio)
    assert measured(ratio + 0.01, 0.98, 0.99) == pytest.approx(ratio + 0.01)
    assert measured(0.01, 0.02, ratio - 0.01) == pytest.approx(ratio - 0.01)


def test_a_check_corrects_only_so_far():
    model, keep = planted(TINY), np.array([True, False, False, False, True, False, False])
    predicted = model.reduction(keep)
    assert model.corrected(keep, 1.1 * predicted).reduction(keep) == pytest.approx(1.1 * predicted)
    assert model.corrected(keep, 0.9 * predicted).reduction(keep) == pytest.approx(0.9 * predicted)
    assert model.corrected(keep, -0.1).reduction(keep) == pytest.approx(predicted / 1.25)
    assert model.corrected(keep, 3.0).reduction(keep) == pytest.approx(predicted * 1.25)
    assert model.corrected(np.ones(7, dtype=bool), 0.5) is model


def test_a_network_that_fails_is_left_without_hooks(monkeypatch):
    model, inputs = TimedNetwork().eval(), torch.randn(2, 1, 8, 8)
    graph = ChannelGraph.build(model, inputs)
    shells = []
    real = layer_timing.PrunedNetwork
    monkeypatch.setattr(layer_timing, "PrunedNetwork", lambda *a: shells.append(real(*a)) or shells[-1])
    monkeypatch.setattr(TimedNetwork, "forward", lambda self, x: self.c(self.a(x), None))
    with pytest.raises(TypeError):
        timed_passes(model, graph, inputs)
    assert not [m for m in shells[0].shell.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.fixture
def made_up(monkeypatch):
    """Latency without a clock."""

    def passes(model, graph, inputs, seed):
        masks = drawn_widths(graph, 14, np.random.default_rng(seed))
        return passes_of(graph, planted(graph, 3), masks, len(inputs), noise=0.02)

    monkeypatch.setattr("blend.pruned.choice.timed_passes", passes)
    monkeypatch.setattr("blend.pruned.choice.checked_by_a_network", lambda cost, *_: cost)


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("by", ["l1", "file"])
def test_command_prunes_by_latency(capsys, tmp_path, by):
    """By a criterion's name, and by a file whose own cost is MACs."""
    out = tmp_path / "out"
    if by == "file":
        task = small()
        by = str(tmp_path / "it.blend.json")
        blend_for(task.model, ChannelGraph.build(task.model, task.example_input), reduction=0.5).save(by)
    arguments = ["--out", str(out), "--cost", "latency", "--reduction", "0.3", "--batch-size", "16", "--json"]
    assert run(["prune", by, TASK, *arguments]) == 0
    told, err = capsys.readouterr()
    pruning = json.loads(told)["pruning"]
    assert pruning["cost"] == "latency"
    assert 0.3 <= pruning["achieved"] < 0.5
    timing = PruningRecord.load(out).pruning["timing"]
    assert timing["batch_size"] == 16
    assert timing["predicted"]["ratio"] == pytest.approx(1 - pruning["achieved"])
    assert timing["predicted"]["seconds"] == pytest.approx(
        timing["predicted"]["unpruned_seconds"] * timing["predicted"]["ratio"]
    )
    assert timing["measured"]["seconds"] > 0
    assert {layer["layer"] for layer in timing["model"]["layers"]} >= {"features.0", "features.3", "head"}
    assert f"latency at batch 16: predicted {timing['predicted']['ratio']:.3f} of the unpruned one's, measured" in err
    assert [timed["batch_size"] for timed in json.loads(told)["stages"][1]["latency"]] == [1, 16]


def test_a_model_is_read_as_it_was_recorded():
    _, graph = graph_of("resnet20")
    model = planted(graph).corrected(random_keep(graph, 1), 0.3)
    read = LatencyModel.recorded(graph, json.loads(json.dumps(model.record())))
    assert read.record() == model.record()
    for seed in range(5):
        assert read(random_keep(graph, seed)) == model(random_keep(graph, seed))


@pytest.mark.parametrize("saves", [1, 2])
def test_a_resumed_command_keeps_the_latency_its_mask_was_made_by(capsys, tmp_path, monkeypatch, saves):
    """Each process finds the machine otherwise."""
    fits, saved, save = [], [], Unfinished.save

    def passes(model, graph, inputs, seed):
        fits.append(planted(graph, len(fits)))
        return passes_of(graph, fits[-1], drawn_widths(graph, 14, np.random.default_rng(seed)), len(inputs))

    def stopping(self, *state):
        save(self, *state)
        saved.append(state)
        if len(saved) == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr("blend.pruned.choice.timed_passes", passes)
    monkeypatch.setattr("blend.pruned.choice.checked_by_a_network", lambda cost, *_: cost)
    monkeypatch.setattr(Unfinished, "save", stopping)
    out = tmp_path / "out"
    asked = ["prune", "l1", TUNABLE, "--out", str(out), "--cost", "latency", "--reduction", "0.3", "--batch-size", "16",
             "--finetune", "2"]  # fmt: skip
    assert run(asked) == 130
    assert run(asked) == 0
    assert len(fits) == 2
    record, graph = PruningRecord.load(out), ChannelGraph.build(small().model, small().example_input)
    first = fitted(graph, passes_of(graph, fits[0], drawn_widths(graph, 14, np.random.default_rng(0)), 16), 16)
    assert record.pruning["timing"]["model"] == json.loads(json.dumps(first.record()))
    assert record.pruning["achieved"] >= 0.3
    assert record.pruning["achieved"] == pytest.approx(1 - record.pruning["timing"]["predicted"]["ratio"])


@pytest.mark.usefixtures("made_up")
def test_command_refuses_a_latency_that_cannot_be_reached(capsys, tmp_path):
    code = run(["prune", "l1", TASK, "--out", str(tmp_path / "out"), "--cost", "latency", "--reduction", "0.97"])
    assert code == 2
    assert "reduction 0.97 of latency cannot be reached: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["search"], ["compare"]])
def test_other_commands_say_who_can_measure(capsys, command):
    assert run([*command, TASK, "--cost", "latency"]) == 2
    assert "cost must be 'macs' or 'params' here, got 'latency'" in capsys.readouterr().err


@pytest.mark.slow
def test_real_measurements_find_the_larger_layer():
    """Seconds are real here, but 60 times apart."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 64, 5), nn.ReLU(), nn.Conv2d(64, 64, 5)).eval()
    inputs = torch.randn(32, 3, 32, 32)
    graph = ChannelGraph.build(model, inputs)
    began = time.perf_counter()
    passes = timed_passes(model, graph, inputs)
    assert passes.totals.sum() < time.perf_counter() - began
    assert passes.layers["4"][0] > 5 * passes.layers["0"][0]
    full, by_macs = fitted(graph, passes, 32), CostModel(graph)
    keep = np.concatenate([np.arange(8) < 8, np.arange(64) < 16])
    assert full.reduction(keep) == pytest.approx(by_macs.reduction(keep), abs=0.25)
