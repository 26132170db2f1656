import math

import pytest
import torch
import torch.nn.functional as F

from blend.evaluation import Judge, Settings, judge
from blend.pruning.inference import InferenceNetwork, portions
from blend.task import Split, accuracy

from ..small_networks import graph_of, images, random_keep


@pytest.mark.parametrize("joined", judge.JOINED)
def test_joined_batches_are_made_of_those_that_are_not(joined):
    for count in range(1, 200):
        for size in (1, 2, 3, 7, 16, 64):
            numbers = torch.arange(count)
            apart = portions(numbers, size)
            cut = [
                part for batch in portions(numbers, size, joined) for part in batch.tensor_split(-(-len(batch) // size))
            ]
            assert [part.tolist() for part in cut] == [part.tolist() for part in apart]
            assert len(portions(numbers, size, joined)) == math.ceil(len(apart) / joined)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2"])
def test_statistics_are_the_same_bits(name, precision):
    model, graph = graph_of(name)
    inputs = images(200, seed=2).to(precision or torch.float32, memory_format=torch.channels_last)
    found = []
    for joined in judge.JOINED:
        network = InferenceNetwork(model, graph, images(8), precision)
        network.prune(random_keep(graph, 1), portions(inputs, 64, joined), part=64)
        found.append(network.statistics())
    assert all(torch.equal(one[name], found[0][name]) for one in found[1:] for name in found[0])


@pytest.fixture(params=[None, torch.bfloat16], ids=["fp32", "bf16"])
def ours(request):
    """A judge, its candidate, and a split of six batches and a half."""
    model, graph = graph_of("resnet20")
    settings = Settings(batch_size=32, recalibration_images=96, precision=request.param)
    targets = torch.randint(0, 5, (210,), generator=torch.Generator().manual_seed(1))
    split = Split(images(210, seed=1), targets, "held-out")
    return Judge(model, graph, F.cross_entropy, accuracy, images(96, seed=2), settings), random_keep(graph, 1), split


@pytest.mark.parametrize("joined", judge.JOINED[1:])
@pytest.mark.parametrize("lead", [-5.0, 0.02, 5.0])
def test_answers_are_the_same_bits_also_when_racing(ours, joined, lead):
    judged, keep, split = ours
    chunks = judged.judge(keep, split)["chunks"]
    rival = [chunk + lead * (-1) ** (lead < 1 and number % 2) for number, chunk in enumerate(chunks)]
    assert judged.judge(keep, split, joined=joined) == judged.judge(keep, split)
    assert judged.judge(keep, split, rival, joined) == judged.judge(keep, split, rival)


def passes_of(judged, monkeypatch):
    """Images of each pass of the held-out data."""
    sizes, ready = [], judged._ready
    monkeypatch.setattr(judged, "_ready", lambda inputs: sizes.append(len(inputs)) or ready(inputs))
    return sizes


def test_fewer_are_joined_at_first_when_racing(ours, monkeypatch):
    judged, keep, split = ours
    chunks = judged.judge(keep, split)["chunks"]
    sizes = passes_of(judged, monkeypatch)
    judged.judge(keep, split, joined=4)
    assert sizes == [128, 82]
    sizes.clear()
    judged.judge(keep, split, [chunk - 1 for chunk in chunks], joined=4)
    assert sizes == [64, 64, 64, 18]
    sizes.clear()
    assert judged.judge(keep, split, [chunk + 1 for chunk in chunks], joined=4)["share"] == 96 / 210
    assert sizes == [64, 64]


class Clock:
    """Passes of so many images take so long."""

    def __init__(self, monkeypatch, judged, seconds, alike=True):
        self.now = 0.0

        def answer(keep, split, rival=(), joined=1):
            self.now += seconds[joined]
            return {"loss": 1.0 if alike else float(joined)}

        monkeypatch.setattr(judged, "judge", answer)
        monkeypatch.setattr(judge.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 0.8, 4: 0.6}, 4), ({1: 1.0, 2: 0.61, 4: 0.6}, 2), ({1: 1.0, 2: 1.2, 4: 0.98}, 1),
        ({1: 1.0, 2: 1.0, 4: 1.0}, 1),
    ],
)  # fmt: skip
def test_the_fewest_that_take_hardly_longer_than_the_fastest(ours, monkeypatch, seconds, best):
    judged, keep, split = ours
    Clock(monkeypatch, judged, seconds)
    joined, found = judged.fastest(keep, split)
    assert joined == best
    assert found == pytest.approx(seconds)


def test_other_bits_are_not_taken_for_less_time(ours, monkeypatch):
    judged, keep, split = ours
    Clock(monkeypatch, judged, {1: 1.0, 2: 0.5, 4: 0.3}, alike=False)
    assert judged.fastest(keep, split)[0] == 1


def test_large_maps_are_not_joined(ours, monkeypatch):
    judged, keep, split = ours
    assert list(judged.fastest(keep, split)[1]) == [1, 2, 4]
    monkeypatch.setattr(judge, "MAX_JOINED_BYTES", 3 * 32 * judged.network.bytes_per_image)
    assert list(judged.fastest(keep, split)[1]) == [1, 2]
    monkeypatch.setattr(judge, "MAX_JOINED_BYTES", 1)
    assert list(judged.fastest(keep, split)[1]) == [1]
