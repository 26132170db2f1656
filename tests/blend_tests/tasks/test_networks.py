import pytest
import torch
import torch_pruning as tp
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from blend.errors import InputError
from blend.tasks.networks import NETWORKS, build_network

DEPTH = {"resnet20": 20, "resnet32": 32, "resnet56": 56, "resnet110": 110, "vgg16_bn": 14, "mobilenetv2": 53}


def small(name, **arguments):
    width = 4 if name.startswith("resnet") else 0.125
    return build_network(name, **{"in_channels": 1, "classes": 5, "width": width} | arguments).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_have_one_column_per_class(name):
    for stem_stride, side in ((1, 16), (2, 32)):
        network = small(name, in_channels=3, stem_stride=stem_stride)
        with torch.no_grad():
            assert network(torch.randn(2, 3, side, side)).shape == (2, 5)


@pytest.mark.parametrize("name", NETWORKS)
def test_depth_is_as_published(name):
    on_the_path = [
        module
        for layer, module in small(name).named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and "shortcut" not in layer
    ]
    assert len(on_the_path) == DEPTH[name]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "resnet110"])
def test_every_convolution_can_be_pruned(name):
    network = small(name, width=16 if name.startswith("resnet") else 0.25)
    example = torch.randn(2, 1, 16, 16)
    graph = tp.DependencyGraph().build_dependency(network, example)
    for layer, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            before = module.out_channels
            group = graph.get_pruning_group(module, tp.prune_conv_out_channels, idxs=[before - 1])
            assert graph.check_pruning_group(group), layer
            group.prune()
            assert module.out_channels == before - 1, layer
    assert network(example).shape == (2, 5)


@pytest.mark.parametrize(("stem_stride", "macs"), [(1, 40.8e6), (2, 10.2e6)])
def test_resnet20_costs_what_it_should(stem_stride, macs):
    network = build_network("resnet20", in_channels=3, classes=10, stem_stride=stem_stride).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.randn(1, 3, 32, 32))
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=0.02)


def test_resnet20_has_the_published_number_of_parameters():
    network = build_network("resnet20", in_channels=3, classes=10)
    count = sum(weight.numel() for name, weight in network.named_parameters() if "shortcut" not in name)
    assert count == 269_722  # 0.27 M in table 6 of the paper, which counts no projections


def test_width_scales_channels():
    assert build_network("resnet20", in_channels=3, classes=2, width=12).classifier.in_features == 48
    assert build_network("vgg16_bn", in_channels=3, classes=2, width=0.25).classifier.in_features == 128
    assert build_network("mobilenetv2", in_channels=3, classes=2, width=0.5).classifier.in_features == 640


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet21", {}, "network must be one of resnet20, .* got 'resnet21'; did you mean .*'resnet20'"),
        ("resnet20", {"width": 4.5}, "width of a resnet must be a whole number of channels >= 1, got 4.5"),
        ("resnet20", {"width": 0}, "width of a resnet .* got 0"),
        ("vgg16_bn", {"width": 0.0}, "width of vgg16_bn is a multiplier and must be > 0, got 0"),
        ("mobilenetv2", {"width": float("nan")}, "width of mobilenetv2 .* got nan"),
        ("resnet20", {"stem_stride": 0}, "stem_stride must be >= 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(name, arguments, message):
    with pytest.raises(InputError, match=message):
        build_network(name, in_channels=3, classes=10, **arguments)
