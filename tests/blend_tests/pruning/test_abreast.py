import pytest
import torch
from torch import nn

from blend.pruning import abreast
from blend.pruning.inference import InferenceNetwork

from ..small_networks import graph_of, images, random_keep
from .test_fusion import run


def batch_of(count, channels, height, width, precision=torch.float32, seed=0):
    torch.manual_seed(seed)
    return torch.randn(count, channels, height, width, dtype=precision).to(memory_format=torch.channels_last)


def convolution(*arguments, precision=torch.float32, **options):
    torch.manual_seed(1)
    return nn.Conv2d(*arguments, **options).to(precision).to(memory_format=torch.channels_last)


class Watched:
    """Applies a convolution, adds a shortcut, and remembers the shapes that it was given."""

    def __init__(self, conv):
        self.conv, self.shapes = conv, []

    def __call__(self, inputs, shortcut=None):
        assert inputs.is_contiguous(memory_format=torch.channels_last)
        self.shapes.append(tuple(inputs.shape))
        outputs = self.conv(inputs)
        return outputs if shortcut is None else outputs + shortcut


@pytest.fixture(autouse=True)
def waiting_for_weights(monkeypatch):
    """Whatever this processor does."""
    monkeypatch.setattr(abreast, "_WAITS", True)


@pytest.fixture
def any_weights(monkeypatch):
    monkeypatch.setattr(abreast, "_CACHE", 0)


GEOMETRIES = [
    ({"kernel_size": 3, "padding": 1}, (4, 4), (1, 7, 4, 25)),
    ({"kernel_size": 3, "padding": 1}, (5, 2), (1, 7, 5, 15)),
    ({"kernel_size": 3, "padding": 1, "stride": 2}, (8, 7), (1, 7, 8, 40)),
    ({"kernel_size": 3, "padding": (0, 1), "stride": (1, 2)}, (6, 6), (1, 7, 6, 40)),
    ({"kernel_size": 3}, (6, 6), (1, 7, 6, 30)),
    ({"kernel_size": 5, "padding": 2}, (3, 3), (1, 7, 3, 25)),
    ({"kernel_size": 5, "padding": 1, "stride": 3}, (9, 9), (1, 7, 9, 60)),
    ({"kernel_size": 3, "padding": 2, "dilation": 2}, (4, 4), (1, 7, 4, 30)),
    ({"kernel_size": 1}, (4, 3), (1, 7, 4, 15)),
    ({"kernel_size": 1, "stride": 2}, (4, 4), (1, 7, 4, 20)),
    ({"kernel_size": 2, "padding": 1}, (3, 3), (1, 7, 3, 20)),
    ({"kernel_size": 1, "padding": 1}, (2, 2), (1, 7, 2, 20)),  # outputs wider than an image and its zeros
    ({"kernel_size": (1, 3), "padding": (0, 1)}, (1, 4), (1, 7, 1, 25)),
]


@pytest.mark.usefixtures("any_weights")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize(("options", "size", "side_by_side"), GEOMETRIES)
def test_each_image_gives_what_it_gives_alone(options, size, side_by_side, with_shortcut, precision):
    conv = Watched(convolution(7, 11, **options, precision=precision))
    inputs = batch_of(5, 7, *size, precision)
    with torch.no_grad():
        expected = conv.conv(inputs)
        shortcut = [batch_of(*expected.shape, precision, seed=2)] if with_shortcut else []
        outputs = abreast.convolved(conv.conv, conv, inputs, *shortcut)
    expected = expected + shortcut[0] if with_shortcut else expected
    assert conv.shapes == [side_by_side]
    tolerance = 1e-5 if precision is torch.float32 else 0.03
    torch.testing.assert_close(outputs, expected, rtol=tolerance, atol=tolerance)
    assert outputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("any_weights")
def test_one_image_does_not_touch_another():
    conv = convolution(7, 11, 3, padding=1)
    inputs = batch_of(5, 7, 4, 4)
    with torch.no_grad():
        expected = abreast.convolved(conv, conv, inputs)
        inputs[2] = 1e30
        outputs = abreast.convolved(conv, conv, inputs)
    others = [0, 1, 3, 4]
    assert torch.equal(outputs[others], expected[others])
    assert outputs[2].abs().max() > 1e28


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (batch_of(5, 8, 4, 4)[:1], {}),
        (batch_of(5, 8, 4, 5), {}),
        (batch_of(5, 8, 4, 1), {}),  # most of what would be read are zeros
        (batch_of(5, 8, 4, 4).contiguous(), {}),
        (batch_of(5, 8, 4, 4), {"groups": 2}),
    ],
)
@pytest.mark.usefixtures("any_weights")
def test_others_stay_as_they_are(inputs, options):
    conv = convolution(8, 16, 3, padding=1, **options)
    seen = []
    abreast.convolved(conv, lambda given: seen.append(given) or conv(given), inputs)
    assert seen[0] is inputs


@pytest.mark.parametrize(("channels", "images_of_a_call"), [(256, 5), (257, 1)])
def test_weights_below_two_megabytes_are_used_as_they_are(channels, images_of_a_call):
    conv = Watched(convolution(channels, 227, 3, padding=1))
    with torch.no_grad():
        abreast.convolved(conv.conv, conv, batch_of(5, channels, 4, 4))
    assert conv.shapes[0][0] == images_of_a_call


@pytest.mark.usefixtures("any_weights")
def test_a_processor_that_does_not_wait_takes_images_as_they_are(monkeypatch):
    monkeypatch.setattr(abreast, "_WAITS", False)
    conv, inputs, seen = convolution(7, 11, 3, padding=1), batch_of(5, 7, 4, 4), []
    abreast.convolved(conv, lambda given: seen.append(given) or conv(given), inputs)
    assert seen[0] is inputs


@pytest.mark.usefixtures("any_weights")
@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "vgg16_bn"])
def test_networks_give_the_same_outputs(name, monkeypatch):
    rows = []
    row = abreast._row
    monkeypatch.setattr(abreast, "_row", lambda *arguments: rows.append(arguments[0].shape) or row(*arguments))
    model, graph = graph_of(name)
    network = InferenceNetwork(model, graph, images(8))
    rows.clear()
    inputs = images(16, seed=1).contiguous(memory_format=torch.channels_last)
    outputs, plain = run(network, random_keep(graph, 1), inputs)
    assert rows
    torch.testing.assert_close(outputs, plain, rtol=1e-5, atol=1e-6)
