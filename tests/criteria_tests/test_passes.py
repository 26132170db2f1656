from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from criteria import (
    CRITERIA,
    ChannelGraph,
    CriterionError,
    CriterionValueError,
    GroupStats,
    Network,
    PassCriterion,
    Registry,
    register_pass,
    score,
    score_table,
)
from criteria.passes import sampled
from criteria.stats import collect

from .test_criteria import Net
from .tiny_networks import assert_same, conv_net, images, snapshot

PASSES = [criterion for criterion in CRITERIA if isinstance(criterion, PassCriterion)]
EVERY = pytest.mark.parametrize("criterion", PASSES, ids=lambda criterion: criterion.name)


def correct(outputs, targets):
    return (outputs.argmax(1) == targets).float()


def of(function, **settings):
    """A criterion that is in a registry of its own."""
    own = Registry()
    arguments = {"family": "test", "reference": "none", "lacking": "needs a miracle"} | settings
    register_pass("own", registry=own, **arguments)(function)
    return own.get("own")


def by_hand(*values):
    return of(lambda network: dict(zip(["stem", "conv"], map(torch.tensor, values), strict=False)))


# --- every criterion -----------------------------------------------------------------------------------------------


@EVERY
def test_the_network_is_untouched_and_scores_are_the_same_again(criterion):
    model, net_graph = conv_net()
    model.train()
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = snapshot(model)
    tables = [
        score(model, net_graph, [images(), images(seed=2)], F.cross_entropy, [criterion], metric=correct, seed=seed)
        for seed in (5, 5, 6)
    ]
    assert_same(before, snapshot(model))
    for one in net_graph.groups:
        first, again, other = (table.get(criterion.name, one.name) for table in tables)
        if first is not None:
            assert first.shape == (one.size,)
            np.testing.assert_array_equal(again, first)
            if criterion.family == "learned":
                assert not np.array_equal(other, first)


class Raises(nn.Module):
    """Raises when it is called for the third time."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.register_buffer("called", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.called += 1
        if self.calls == 3:
            raise RuntimeError("not again")
        return x


@EVERY
def test_the_network_is_untouched_when_its_forward_raises(criterion):
    model, net_graph = conv_net()
    model.tanh = Raises()
    model.train()
    before = snapshot(model)
    with pytest.raises((RuntimeError, CriterionError), match="not again"):
        score(model, net_graph, [images()] * 4, F.cross_entropy, [criterion], metric=correct)
    assert_same(before, snapshot(model))


@EVERY
def test_progress_is_reported_to_the_end(criterion):
    model, net_graph = conv_net()
    steps = []
    batches = [images(), images(seed=2)]
    score(
        model, net_graph, iter(batches), F.cross_entropy, ["taylor_fo", criterion], metric=correct,
        on_step=lambda *step: steps.append(step),
    )  # fmt: skip
    assert steps[:2] == [("statistics", 1, 2), ("statistics", 2, 2)]
    total = steps[-1][2]
    assert steps[2:] == [(criterion.name, done, total) for done in range(1, total + 1)]


@EVERY
def test_bfloat16_and_inference_mode(criterion):
    model, net_graph = conv_net()
    model.bfloat16()
    inputs, targets = images()
    batches = [(inputs.bfloat16(), targets)]
    with torch.inference_mode():
        table = score(model, net_graph, batches, F.cross_entropy, [criterion], metric=correct)
    assert all(np.isfinite(table.get(criterion.name, name)).all() for name in table.groups if table.usable(name))


@EVERY
def test_statistics_alone_are_not_enough(criterion):
    with pytest.raises(CriterionError, match=f"'{criterion.name}' takes passes of its own.*use criteria.score"):
        criterion(GroupStats("g", "conv", 3))
    model, net_graph = conv_net()
    with pytest.raises(CriterionError, match=f"'{criterion.name}' takes passes of its own"):
        score_table(collect(model, net_graph, [], None, ()), [criterion])


def test_which_are_expensive():
    assert [criterion.name for criterion in PASSES if not criterion.expensive] == ["cap", "thinet"]
    assert not CRITERIA.get("l1").expensive


# --- score ---------------------------------------------------------------------------------------------------------


def test_one_sweep_serves_all_statistics_and_the_order_stays():
    model, net_graph = conv_net()
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    names = ["cap", "taylor_fo", "thinet", "apoz", "l1"]
    table = score(model, net_graph, [images(), images(seed=2)], F.cross_entropy, names)
    assert table.criteria == tuple(names)
    assert len(calls) == 2 + 2 + 2
    alone = collect(model, net_graph, [images(), images(seed=2)], F.cross_entropy, {"gate_gradient", "activation"})
    expected = score_table(alone, ["taylor_fo", "apoz", "l1"])
    for name in expected.criteria:
        np.testing.assert_array_equal(table.get(name, "stem"), expected.get(name, "stem"))


def test_statistics_need_no_list_of_batches():
    model, net_graph = conv_net()
    steps = []
    on_step = lambda *step: steps.append(step)  # noqa: E731
    score(model, net_graph, iter([images()]), F.cross_entropy, ["taylor_fo"], on_step=on_step)
    assert steps == [("statistics", 1, 0)]


def test_scores_by_hand_and_notes():
    model, net_graph = conv_net()
    table = score(model, net_graph, [images()], F.cross_entropy, [by_hand([1.0, 2.0, 3.0, 4.0]), "l1"])
    assert table.get("own", "stem").tolist() == [1, 2, 3, 4]
    assert table.get("own", "conv") is None
    assert [(n.criterion, n.group, n.reason) for n in table.notes] == [
        ("own", "conv", "criterion 'own' needs a miracle")
    ]
    table = score(model, net_graph, [images()], None, [by_hand([1.0, 1.0, 1.0, 1.0], [1.0, float("nan"), 2.0])])
    assert [note.reason for note in table.notes] == [
        "degenerate: all 4 scores are 1", "degenerate: 1 of 3 scores are not finite",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda network: {}, r"'own' needs a miracle \(nor does it to any other group\)"),
        (lambda network: {"stem": torch.ones(3)}, r"must return a tensor of shape \(4,\) for 'stem', got \(3,\)"),
        (lambda network: {"stem": [1, 2, 3, 4]}, r"must return a tensor of shape \(4,\) for 'stem', got list"),
        (lambda network: {"head": torch.ones(3)}, "'own' must score the graph's groups, got 'head'"),
    ],
)
def test_a_wrong_result_is_refused(function, message):
    model, net_graph = conv_net()
    with pytest.raises(CriterionError, match=message):
        score(model, net_graph, [images()], F.cross_entropy, [of(function)])


def test_a_criterion_that_applies_to_no_group_may_have_a_note_in_each():
    model, net_graph = conv_net()
    table = score(model, net_graph, [images()], None, ["l1", of(lambda network: {})], strict=False)
    assert table.criteria == ("l1", "own")
    assert [(note.group, note.reason) for note in table.notes] == [
        (group, "criterion 'own' needs a miracle") for group in ("stem", "conv")
    ]
    with pytest.raises(CriterionError, match="must score the graph's groups"):
        score(model, net_graph, [images()], None, [of(lambda network: {"head": torch.ones(3)})], strict=False)


def test_no_batch_and_bad_losses_are_refused():
    model, net_graph = conv_net()
    with pytest.raises(CriterionValueError, match="at least one batch, got none"):
        score(model, net_graph, [], F.cross_entropy, ["cap"])
    with pytest.raises(CriterionValueError, match="loss must be a finite scalar, got nan"):
        score(model, net_graph, [images()], lambda *_: torch.tensor(float("nan")), ["loss_ablation"])


def test_a_name_is_given_once():
    with pytest.raises(CriterionValueError, match="must be unique, got 'l1'"):
        register_pass("l1", family="f", reference="r", lacking="l")(lambda network: {})


def test_outputs_are_the_networks_and_write_nothing():
    model, net_graph = conv_net()
    model.tanh = Raises()
    inputs, _ = images()
    network = Network(model.eval(), net_graph, [images()], F.cross_entropy)
    outputs = network.outputs(inputs)
    assert not outputs.requires_grad
    assert model.tanh.called == 0
    torch.testing.assert_close(outputs, model(inputs))


def test_parameters_reach_the_function():
    model, net_graph = conv_net()
    network = Network(model.eval(), net_graph, [images()], F.cross_entropy)
    with pytest.raises(ValueError, match="ridge must be above 0, got -1"):
        replace(CRITERIA.get("cap"), configured={"ridge": -1.0}).scores(network)


# --- sampled -------------------------------------------------------------------------------------------------------


def test_a_sample_is_the_same_however_the_examples_are_split():
    inputs, targets = torch.arange(40.0), torch.arange(40)
    samples = []
    for sizes in ([40], [7, 30, 3], [1] * 40):
        found = list(sampled(list(zip(inputs.split(sizes), targets.split(sizes), strict=True)), 9, seed=1))
        samples.append(torch.cat([x for x, _ in found]).tolist())
        assert samples[-1] == torch.cat([y for _, y in found]).tolist()
    assert samples[0] == samples[1] == samples[2] == sorted(set(samples[0]))
    assert len(samples[0]) == 9
    assert len(torch.cat([x for x, _ in sampled([(inputs, targets)], 99, seed=1)])) == 40


# --- coupled layers ------------------------------------------------------------------------------------------------


@EVERY
def test_residuals_depthwise_layers_and_concatenations_are_scored(criterion):
    torch.manual_seed(0)
    model = Net()
    net_graph = ChannelGraph.build(model, torch.zeros(1, 3, 8, 8))
    batch = (torch.randn(24, 3, 8, 8), torch.arange(24) % 10)
    table = score(model, net_graph, [batch], lambda out, y: F.cross_entropy(8 * out, y), [criterion], metric=correct)
    for one in net_graph.groups:
        scores = table.get(criterion.name, one.name)
        if scores is None:  # few images give an accuracy few values
            assert criterion.name == "accuracy_ablation"
        else:
            assert scores.shape == (one.size,)
            assert np.isfinite(scores).all()


KINDS = {
    "1d": (nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 3, 3)), (2, 9)),
    "3d": (nn.Sequential(nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 3, 2)), (2, 5, 5, 5)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(2, 6, 2), nn.ReLU(), nn.ConvTranspose2d(6, 3, 3)), (2, 4, 4)),
    "perceptron": (nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), (5,)),
    "tokens": (nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3)), (7, 5)),
    "channels last": (
        nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3)).to(memory_format=torch.channels_last),
        (2, 6, 6),
    ),
}


@EVERY
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_layers_are_scored(criterion, kind):
    model, shape = KINDS[kind]
    net_graph = ChannelGraph.build(model, torch.zeros(1, *shape))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(16, *shape, generator=generator)
    inputs = inputs.to(memory_format=torch.channels_last) if kind == "channels last" else inputs
    batches = [(inputs, torch.zeros(16))]
    table = score(
        model, net_graph, batches, lambda out, _: out.square().mean(), [criterion],
        metric=lambda out, _: -out.flatten(1).square().mean(1),
    )  # fmt: skip
    scores = table.get(criterion.name, "0")
    assert scores is not None, table.notes
    assert scores.shape == (6,)
    if criterion.name in ("cap", "thinet"):
        network = Network(model.eval(), net_graph, batches, F.cross_entropy)
        assert sorted(criterion.function(network, patches=True)["0"].tolist()) == [1, 2, 3, 4, 5, 6]


def test_claims_are_declared_and_checked_at_registration():
    assert of(lambda network: {}).claims == frozenset()
    assert of(lambda network: {}, claims=["distinct"]).claims == {"distinct"}
    with pytest.raises(CriterionValueError, match=r"claims of 'own' must be among permutation, .*, got perfect"):
        of(lambda network: {}, claims={"distinct", "perfect"})
