import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blend.evaluation import Judge, Settings, judge
from blend.pruning.chain import portions
from blend.pruning.inference import InferenceNetwork
from blend.task import Split, accuracy
from criteria import ChannelGraph

from ..small_networks import graph_of, images, random_keep


def test_portions_are_as_equal_as_can_be():
    for count in range(1, 200):
        for size in (1, 2, 3, 7, 16, 64):
            parts = portions(torch.arange(count), size)
            assert torch.cat(parts).tolist() == list(range(count))
            assert max(map(len, parts)) <= min(size, min(map(len, parts)) + 1)
            assert len(parts) == -(-count // size)
    assert portions(torch.arange(0), 64) == ()


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2"])
def test_statistics_hardly_depend_on_how_many_images_go_through_at_once(name):
    model, graph = graph_of(name)
    inputs = images(200, seed=2).to(memory_format=torch.channels_last)
    found = []
    for size in (64, 128, 256):
        network = InferenceNetwork(model, graph, images(8))
        network.prune(random_keep(graph, 1), portions(inputs, size))
        found.append(network.statistics())
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-4, atol=1e-5)


@pytest.fixture(params=[None, torch.bfloat16], ids=["fp32", "bf16"])
def ours(request):
    """A judge, its candidate, and a split of six batches and a half."""
    model, graph = graph_of("resnet20")
    settings = Settings(batch_size=32, recalibration_images=96, precision=request.param)
    targets = torch.randint(0, 5, (210,), generator=torch.Generator().manual_seed(1))
    split = Split(images(210, seed=1), targets, "held-out")
    return Judge(model, graph, F.cross_entropy, accuracy, images(96, seed=2), settings), random_keep(graph, 1), split


def passes_of(judged, monkeypatch):
    """Images of each pass of the held-out data."""
    sizes, ready = [], judged._ready
    monkeypatch.setattr(judged, "_ready", lambda inputs: sizes.append(len(inputs)) or ready(inputs))
    return sizes


def test_fewer_are_joined_at_first_when_racing(ours, monkeypatch):
    judged, keep, split = ours
    chunks = judged.judge(keep, split)["chunks"]
    sizes = passes_of(judged, monkeypatch)
    judged.judge(keep, split)
    assert sizes == [128, 82]
    sizes.clear()
    assert judged.judge(keep, split, [chunk - 1 for chunk in chunks])["chunks"] == pytest.approx(chunks)
    assert sizes == [64, 64, 64, 18]
    sizes.clear()
    assert judged.judge(keep, split, [chunk + 1 for chunk in chunks])["share"] == 128 / 210
    assert sizes == [64, 64]


@pytest.mark.parametrize(("fit", "joined"), [(4.9, 4), (3.9, 3), (1.0, 1), (0.1, 1)])
def test_large_maps_are_not_joined(ours, monkeypatch, fit, joined):
    judged, keep, split = ours
    monkeypatch.setattr(judge, "MAX_JOINED_BYTES", fit * 32 * judged.network.bytes_per_image)
    again = Judge(graph_of("resnet20")[0], judged.graph, F.cross_entropy, accuracy, images(96), judged.settings)
    assert judged.joined == 4
    assert again.joined == joined
    sizes = passes_of(again, monkeypatch)
    again.judge(keep, split)
    assert sizes[0] == 32 * joined


def test_maps_of_unknown_size_are_not_joined():
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 256, 5)).eval()
    graph = ChannelGraph.build(model, images(2))
    assert Judge(model, graph, F.cross_entropy, accuracy, images(32), Settings()).joined == 1
