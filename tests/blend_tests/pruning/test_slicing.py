import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import nn

from blend.errors import InputError
from blend.pruning import PrunedNetwork, check_slicing, recalibrate, reproducibly
from criteria import ChannelGraph

from ..small_networks import SIDE, graph_of, images, random_keep, tiny, tiny_images

NETWORKS = ("resnet20", "mobilenetv2", "vgg16_bn")


def pruned_by_torch_pruning(model, graph, keep, inputs):
    """The same channels removed by the pruning library itself, group by group."""
    model = copy.deepcopy(model)
    for group, part in graph.split(keep):
        removed = np.flatnonzero(~part).tolist()
        if removed:
            dependencies = tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
            root = model.get_submodule(group.name)
            dependencies.get_pruning_group(root, tp.prune_conv_out_channels, removed).prune()
    return model


def outputs(model, inputs):
    with torch.no_grad():
        return model(inputs)


def bits(model):
    return {name: (tuple(t.shape), t.detach().contiguous().numpy().tobytes()) for name, t in model.state_dict().items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_pruning_gives_what_the_pruning_library_gives(name):
    model, graph = graph_of(name)
    keep = random_keep(graph, seed=1)
    inputs = images(2, SIDE[name])
    ours = PrunedNetwork(model, graph).prune(keep)
    theirs = pruned_by_torch_pruning(model, graph, keep, inputs)
    assert bits(ours) == bits(theirs)
    torch.testing.assert_close(outputs(ours, inputs), outputs(theirs, inputs), rtol=0, atol=0)
    for (_, one), (_, other) in zip(ours.named_modules(), theirs.named_modules(), strict=True):
        for key in ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features"):
            assert getattr(one, key, None) == getattr(other, key, None)


@pytest.mark.parametrize("name", NETWORKS)
def test_masking_and_slicing_agree(name):
    model, graph = graph_of(name)
    network, inputs = PrunedNetwork(model, graph), images(2, SIDE[name])
    for seed in range(3):
        keep = random_keep(graph, seed)
        masked = outputs(network.mask(keep), inputs)
        sliced = outputs(network.prune(keep), inputs)
        # Sums of up to some hundred float32 products in another order, through up to 53 layers.
        torch.testing.assert_close(sliced, masked, rtol=1e-4, atol=1e-5 * float(masked.abs().max()))
        assert not torch.allclose(sliced, outputs(model, inputs), rtol=1e-3)


def test_candidates_do_not_influence_one_another():
    model, graph = graph_of("resnet20")
    before = bits(model)
    network = PrunedNetwork(model, graph)
    a, b = random_keep(graph, 1), random_keep(graph, 2)
    first = bits(network.prune(a))
    recalibrate(network.shell, [images(8, seed=3)])
    assert bits(network.shell) != first
    recalibrate(network.prune(b), [images(8, seed=4)])
    recalibrate(network.prune(np.ones_like(a)), [images(8, seed=5)])
    network.mask(b)
    assert bits(network.prune(a)) == first
    assert bits(model) == before


def test_keeping_everything_is_the_original():
    model, graph = graph_of("mobilenetv2")
    network = PrunedNetwork(model, graph)
    network.prune(random_keep(graph, 1))
    whole = network.prune(np.ones(len(graph), dtype=bool))
    assert bits(whole) == bits(model)
    torch.testing.assert_close(outputs(whole, images(2)), outputs(model, images(2)), rtol=0, atol=0)


def test_statistics_of_layers_that_no_group_owns_are_restored_too():
    model = tiny()
    graph = ChannelGraph.build(model, tiny_images(), ignore=["stem"])
    assert not any(axis.tensor.startswith("norm") for axis in graph.axes)
    network = PrunedNetwork(model, graph)
    keep = np.array([True, False, True])
    before = bits(network.prune(keep))
    recalibrate(network.shell, [tiny_images(seed=1)])
    assert bits(network.shell) != before
    assert bits(network.prune(keep)) == before


def test_an_extracted_network_is_independent_and_trainable():
    model, graph = graph_of("mobilenetv2")
    network = PrunedNetwork(model, graph)
    keep = random_keep(graph, 1)
    extracted = network.extract(keep)
    before = bits(network.prune(keep))
    assert bits(extracted) == before
    assert all(parameter.requires_grad for parameter in extracted.parameters())
    optimiser = torch.optim.SGD(extracted.parameters(), lr=0.1)
    extracted.train()
    extracted(images(4)).square().sum().backward()
    optimiser.step()
    assert bits(extracted) != before
    assert bits(network.prune(keep)) == before
    assert bits(PrunedNetwork(model, graph).prune(keep)) == before


def test_depthwise_convolutions_follow_their_channels():
    model, graph = graph_of("mobilenetv2")
    keep = random_keep(graph, 1)
    pruned = PrunedNetwork(model, graph).prune(keep)
    group = next(
        g for g in graph.groups if len(g.producers) > 1 and model.get_submodule(g.producers[1].layer).groups > 1
    )
    deep = pruned.get_submodule(group.producers[1].layer)
    left = int(keep[graph.slices[group.name]].sum())
    assert 1 < left < group.size
    assert (deep.groups, deep.in_channels, deep.out_channels) == (left, left, left)
    assert model.get_submodule(group.producers[1].layer).groups == group.size


def test_a_depthwise_convolution_may_come_down_to_one_channel_and_back():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1)).eval()
    graph = ChannelGraph.build(model, images(2))
    network = PrunedNetwork(model, graph)
    one = network.prune(np.array([False, True, False, False]))
    assert outputs(one, images(2)).shape == (2, 2, 14, 14)
    assert one[1].groups == 1
    assert network.prune(np.ones(4, dtype=bool))[1].groups == 4
    torch.testing.assert_close(outputs(network.shell, images(2)), outputs(model, images(2)), rtol=0, atol=0)


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(8, affine=False), nn.InstanceNorm1d(8, affine=True, track_running_stats=True), nn.PReLU(8)],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_between_convolutions_are_sliced(layer):
    model = nn.Sequential(nn.Conv1d(3, 8, 3), layer, nn.ConvTranspose1d(8, 6, 3), nn.Conv1d(6, 2, 1)).eval()
    inputs = torch.randn(4, 3, 10)
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    graph = ChannelGraph.build(model, inputs)
    check_slicing(model, graph, inputs)
    pruned = PrunedNetwork(model, graph).prune(random_keep(graph, 1))
    left = int(random_keep(graph, 1)[:8].sum())
    assert {tensor.shape[0] for tensor in pruned[1].state_dict().values() if tensor.ndim} == {left}
    assert (pruned[2].in_channels, pruned[2].out_channels) == (left, int(random_keep(graph, 1)[8:].sum()))


def test_recalibration_is_the_average_of_batch_statistics():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1), nn.Dropout(0.5)).eval()
    nn.init.ones_(model[0].weight)
    first, second = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [4.0], [9.0]])
    recalibrate(model, iter([first, second]))
    # Means 2 and 5; variances with n - 1: 2 and 13. Their averages, each batch counting the same.
    assert model[1].running_mean.item() == 3.5
    assert model[1].running_var.item() == 7.5
    assert model[1].num_batches_tracked.item() == 2


def test_recalibration_leaves_all_else_as_it_is():
    model = tiny()
    model.norm.momentum = 0.3
    weights = {name: p.clone() for name, p in model.named_parameters()}
    expected = outputs(nn.Sequential(model.stem, copy.deepcopy(model.norm).train()), tiny_images())
    recalibrate(model, [tiny_images()])
    assert [module.training for module in model.modules()] == [False] * 9
    assert model.norm.momentum == 0.3
    assert all(torch.equal(p, weights[name]) and p.grad is None for name, p in model.named_parameters())
    assert torch.equal(outputs(model, tiny_images()), outputs(model, tiny_images()))  # no dropout
    normed = outputs(nn.Sequential(model.stem, model.norm), tiny_images())
    ratio = normed.std((0, 2, 3)) / expected.std((0, 2, 3))
    torch.testing.assert_close(ratio**2, torch.full((4,), 127 / 128))  # n - 1 of n = 8 · 16 values, as torch estimates


def test_recalibration_leaves_statistics_of_a_batchnorm_that_is_not_called():
    model = tiny()
    model.spare = nn.BatchNorm2d(4)
    model.spare.running_mean.fill_(2.0)
    body = [module for name, module in model.named_children() if name != "spare"]
    model.forward = lambda x: nn.Sequential(*body)(x) + model.spare.running_mean.sum()
    before = model.norm.running_mean.clone()
    recalibrate(model, [tiny_images()])
    assert model.spare.running_mean.tolist() == [2.0] * 4
    assert not torch.equal(model.norm.running_mean, before)


def test_recalibration_without_batches_changes_nothing():
    model = tiny()
    model.norm.running_mean.fill_(0.7)
    before = bits(model)
    recalibrate(model, [])
    assert bits(model) == before


def test_recalibration_tidies_up_when_the_network_raises():
    model = tiny()
    with pytest.raises(RuntimeError):
        recalibrate(model, [tiny_images(), torch.zeros(2, 5, 4, 4)])
    assert [module.training for module in model.modules()] == [False] * 9
    assert model.norm.momentum == 0.1


def test_recalibration_refuses_labels_and_leaves_the_statistics():
    model = tiny()
    before = bits(model)
    with pytest.raises(InputError, match="batches must be inputs alone, without labels, got a tuple as batch 0"):
        recalibrate(model, [(tiny_images(), torch.zeros(4))])
    assert bits(model) == before


def test_recalibration_of_a_network_without_batch_norm_runs_nothing():
    def batches():
        raise AssertionError("nobody needs these")
        yield

    recalibrate(nn.Linear(2, 2).eval(), batches())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_right_plan_passes_the_check(name):
    model, graph = graph_of(name)
    before = bits(model)
    check_slicing(model, graph, images(2, SIDE[name]))
    assert bits(model) == before


def test_a_wrong_plan_is_found_out_and_its_group_named():
    model = tiny()
    graph = ChannelGraph.build(model, tiny_images())
    for wrong, named in (("stem.weight", "stem"), ("norm.running_var", "stem"), ("conv.weight", "conv")):
        axes = []
        for axis in graph.axes:
            tampered = axis.tensor == wrong and axis.dim == 0
            axes.append(replace(axis, owner=np.roll(axis.owner, 1)) if tampered else axis)
        with torch.no_grad():
            model.norm.running_var.copy_(torch.tensor([0.1, 1.0, 10.0, 100.0]))
        with pytest.raises(InputError, match=f"pruning the channels of '{named}' gives another network .*--ignore"):
            check_slicing(model, replace(graph, axes=tuple(axes)), tiny_images())


def test_slices_that_do_not_fit_together_are_found_out():
    model = tiny()
    graph = ChannelGraph.build(model, tiny_images())
    lost = replace(graph, axes=tuple(axis for axis in graph.axes if axis.tensor != "norm.bias"))
    with pytest.raises(InputError, match=r"'stem' gives another network than masking them \(inf\)"):
        check_slicing(model, lost, tiny_images())


class Odd(nn.Module):
    def __init__(self, wiring):
        super().__init__()
        self.conv, self.wiring = nn.Conv2d(3, 4, 1), wiring
        self.head = nn.LazyConv2d(2, 1)

    def forward(self, x):
        return self.head(self.wiring(self, x))


@pytest.mark.parametrize(
    "wiring",
    [
        lambda net, x: net.conv(x) * net.conv(x).shape[1] ** -0.5,
        lambda net, x: net.conv(x).flatten(1).unflatten(1, (4, 16, 16)),
        lambda net, x: torch.mul(*net.conv(x).split(2, 1)).repeat(1, 2, 1, 1),
    ],
    ids=["scaled by their number", "a number written down", "sizes written down"],
)
def test_coupling_that_the_graph_cannot_know_is_found_out(wiring):
    torch.manual_seed(0)
    model = Odd(wiring).eval()
    model(images(2))
    graph = ChannelGraph.build(model, images(2))
    with pytest.raises(InputError, match="the coupling of this layer is not understood"):
        check_slicing(model, graph, images(2))


def test_outputs_may_be_infinite():
    class Masked(nn.Sequential):
        def forward(self, x):
            x = super().forward(x)
            return x.masked_fill(torch.arange(x.shape[1]).view(-1, 1, 1) == 0, -torch.inf)

    model = Masked(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    check_slicing(model, ChannelGraph.build(model, images(2)), images(2))


def test_a_network_that_insists_on_single_precision_is_checked_in_it():
    class Insists(nn.Sequential):
        def forward(self, x):
            assert x.dtype is torch.float32
            return super().forward(x)

    model = Insists(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    check_slicing(model, ChannelGraph.build(model, images(2)), images(2))


def test_one_thread_inside_and_the_old_number_afterwards():
    torch.set_num_threads(2)
    with reproducibly():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
