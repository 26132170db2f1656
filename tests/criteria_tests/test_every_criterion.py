"""What every criterion of the registry promises that reads statistics."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from criteria import CRITERIA, NEEDS, CriterionError, GroupStats, PassCriterion, collect, score_table

from .tiny_networks import conv_net, images

READING = [criterion for criterion in CRITERIA if not isinstance(criterion, PassCriterion)]
EVERY = pytest.mark.parametrize("criterion", READING, ids=lambda criterion: criterion.name)
FILTERS = ("weight", "weight_gradient", "weight_gradient_magnitude", "hessian_diagonal", "hessian_gradient")
SHAPES = dict.fromkeys((*FILTERS, "flow_gradient"), (6, 9)) | {"maps": (5, 6, 4, 4), "image_means": (6, 40)}
SHAPES |= dict.fromkeys(("gamma", "beta"), (6, 2))
STATISTICS = [name for need in NEEDS.values() for name in need.fields]

# Degree of homogeneity: statistics of one kind times 3 make scores times 3 to this power.
DEGREES = {
    "l1": ("weight", 1),
    "l2": ("weight", 1),
    "lamp": ("weight", 0),
    "fpgm": ("weight", 1),
    "fermat": ("weight", 1),
    "cosine": ("weight", 0),
    "whc": ("weight", 2),
    "bn_scale": ("gamma", 1),
    "bn_taylor": ("gate_gradient_squared", 1),
    "mean_activation": ("activation_mean", 1),
    "apoz": ("activation_mean", 0),
    "hrank": ("maps", 0),
    "chip": ("maps", 1),
    "entropy": ("image_means", 0),
    "discriminant": ("between_class_variance", 1),
    "taylor_l1": ("weight_gradient", 1),
    "taylor_l2": ("weight_gradient", 2),
    "taylor_fo": ("gate_gradient_squared", 1),
    "fisher": ("example_gate_gradient_squared", 1),
    "taylor_so": ("gate_change_squared", 1),
    "taylor_output": ("activation_gradient_magnitude", 0),
    "obd": ("weight", 2),
    "snip": ("weight", 1),
    "grasp": ("weight", 1),
    "synflow": ("flow_gradient", 1),
    "random": ("weight", 0),
}


def view(side, change=lambda name, value: value):
    generator = torch.Generator().manual_seed(0)
    held = {name: torch.randn(SHAPES.get(name, (6,)), generator=generator) for name in STATISTICS}
    held["maps"][:, :3].relu_()
    return GroupStats("g", "conv", 6, side=side, **{name: change(name, value) for name, value in held.items()})


@EVERY
def test_scores_are_one_finite_number_per_channel_and_deterministic(criterion):
    scores = criterion(view(criterion.side))
    assert scores.shape == (6,)
    assert scores.isfinite().all()
    assert torch.equal(scores, criterion(view(criterion.side)))


@EVERY
def test_permuting_channels_permutes_scores(criterion):
    if criterion.name == "random":
        pytest.skip("random scores belong to positions")
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = view(criterion.side, lambda name, value: value[:, order] if name == "maps" else value[order])
    torch.testing.assert_close(criterion(permuted), criterion(view(criterion.side))[order], rtol=1e-5, atol=1e-6)


@EVERY
def test_scores_scale_with_the_statistics(criterion):
    scaled, degree = DEGREES[criterion.name]
    tripled = view(criterion.side, lambda name, value: 3 * value if name == scaled else value)
    expected = 3**degree * criterion(view(criterion.side))
    torch.testing.assert_close(criterion(tripled), expected, rtol=1e-5, atol=1e-6)


@EVERY
def test_needs_are_all_that_is_read(criterion):
    fields = {name for need in criterion.needs for name in NEEDS[need].fields}
    enough = view(criterion.side, lambda name, value: value if name in fields else None)
    torch.testing.assert_close(criterion(enough), criterion(view(criterion.side)))


@EVERY
def test_every_missing_need_is_named(criterion):
    for need in criterion.needs:
        lacking = view(criterion.side, lambda name, value, need=need: None if name in NEEDS[need].fields else value)
        with pytest.raises(CriterionError, match=f"^criterion '{criterion.name}' needs {NEEDS[need].what} 'conv'; "):
            criterion(lacking)


@EVERY
def test_statistics_are_not_changed(criterion):
    stats, untouched = view(criterion.side), view(criterion.side)
    criterion(stats)
    for name in STATISTICS:
        assert torch.equal(getattr(stats, name), getattr(untouched, name))


@EVERY
def test_permuting_a_network_permutes_its_scores(criterion):
    if criterion.name in ("random", "obd", "taylor_so"):
        pytest.skip("random numbers and probes belong to positions")
    order = torch.tensor([2, 0, 3, 1])
    model, net_graph = conv_net()
    permuted, _ = conv_net()
    with torch.no_grad():
        for tensor in (*permuted.stem.parameters(), *permuted.norm.state_dict().values()):
            if tensor.ndim:
                tensor.copy_(tensor[order])
        permuted.conv.weight.copy_(permuted.conv.weight[:, order])
        inputs, _ = images()
        torch.testing.assert_close(permuted.eval()(inputs), model.eval()(inputs))
    tables = [
        score_table(collect(net, net_graph, [images(), images(seed=2)], F.cross_entropy, criterion.needs), [criterion])
        for net in (model, permuted)
    ]
    before, after = (table.get(criterion.name, "stem") for table in tables)
    np.testing.assert_allclose(after, before[order.numpy()], rtol=1e-4, atol=1e-6)


def test_the_table_of_degrees_covers_the_registry():
    assert set(DEGREES) == {criterion.name for criterion in READING}
    assert {field.name for field in dataclasses.fields(GroupStats)} >= set(SHAPES)
