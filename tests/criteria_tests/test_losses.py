import math

import pytest
import torch
import torch.nn.functional as F

from criteria import CRITERIA, collect, score_table
from criteria.losses import divergence, label_free, squared_norm, with_own_outputs

from .tiny_networks import assert_same, conv_net, images, snapshot

GRADIENT = [c for c in CRITERIA if c.family in ("gradient", "sensitivity") or c.name == "bn_taylor"]


def needs():
    return frozenset().union(*(criterion.needs for criterion in GRADIENT))


def batches(garbage):
    """Three batches whose labels are those of the data, or NaN of another shape."""
    for seed in range(3):
        inputs, targets = images(8, seed)
        yield inputs, torch.full((8, 3), math.nan) if garbage else targets


def test_squared_norm_by_hand():
    outputs = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert squared_norm(outputs, torch.full((1,), math.nan)).item() == 13
    assert squared_norm(outputs[:, :, None], outputs).item() == 13


def test_divergence_by_hand():
    ours, theirs = torch.tensor([[0.25, 0.75], [0.5, 0.5]]), torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    expected = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert divergence(ours.log(), theirs.log() + 7).item() == pytest.approx(expected)


def test_divergence_is_torchs():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    ours.requires_grad_()
    expected = F.kl_div(F.log_softmax(ours, 1), F.log_softmax(theirs, 1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(divergence(ours, theirs), expected)
    gradients = [torch.autograd.grad(loss, ours)[0] for loss in (divergence(ours, theirs), expected)]
    torch.testing.assert_close(*gradients)


def test_every_gradient_criterion_runs_without_labels():
    tables = []
    for garbage in (False, True):
        model, net_graph = conv_net()
        tables.append(score_table(collect(model, net_graph, batches(garbage), squared_norm, needs()), GRADIENT))
    with_labels, with_garbage = tables
    assert with_labels.usable("stem") == tuple(criterion.name for criterion in GRADIENT)
    for criterion in GRADIENT:
        before, after = with_labels.get(criterion.name, "stem"), with_garbage.get(criterion.name, "stem")
        assert before.tobytes() == after.tobytes()


def test_labels_do_matter_to_a_loss_that_looks_at_them():
    model, net_graph = conv_net()
    (inputs, targets) = images()
    one, other = (
        collect(model, net_graph, [(inputs, labels)], F.cross_entropy, {"gate_gradient"})["stem"][0]
        for labels in (targets, (targets + 1) % 5)
    )
    assert not torch.equal(one.gate_gradient_squared, other.gate_gradient_squared)


def test_at_the_network_itself_the_divergence_has_exactly_no_gradient_but_a_curvature():
    model, net_graph = conv_net()
    stats = collect(model, net_graph, with_own_outputs(model, batches(True)), divergence, needs())
    table = score_table(stats, GRADIENT)
    assert set(table.usable("stem")) == {"obd", "taylor_so", "synflow"}
    silent = {note.criterion for note in table.notes if note.group == "stem" and note.reason.endswith("scores are 0")}
    assert silent == {criterion.name for criterion in GRADIENT} - {"obd", "taylor_so", "synflow"}
    assert (table.get("obd", "stem") > 0).sum() >= 2


def test_a_changed_network_is_held_against_the_outputs_of_the_unpruned():
    unpruned, net_graph = conv_net()
    changed, _ = conv_net()
    with torch.no_grad():
        changed.conv.weight[0] = 0
    tables = [
        score_table(collect(changed, net_graph, with_own_outputs(unpruned, batches(g)), divergence, needs()), GRADIENT)
        for g in (False, True)
    ]
    assert set(tables[0].usable("stem")) == {criterion.name for criterion in GRADIENT}
    for name in tables[0].usable("stem"):
        assert tables[0].get(name, "stem").tobytes() == tables[1].get(name, "stem").tobytes()


def test_own_outputs_leave_the_network_as_it_is():
    model, _ = conv_net()
    model.train()
    model.norm.eval()
    before = snapshot(model)
    (inputs, outputs), *_ = with_own_outputs(model, batches(True))
    assert_same(before, snapshot(model))
    assert not outputs.requires_grad
    torch.testing.assert_close(outputs, model.eval()(inputs).detach())


@pytest.mark.parametrize(("name", "loss"), [("squared_norm", squared_norm), ("divergence", divergence)])
def test_a_loss_comes_with_what_it_compares_the_outputs_with(name, loss):
    model, _ = conv_net()
    found, pairs = label_free(name, model, batches(True))
    assert found is loss
    (inputs, targets), *others = list(pairs)
    assert len(others) == 2
    value = found(model.eval()(inputs), targets).item()
    assert value == pytest.approx(0, abs=1e-6) if name == "divergence" else value > 0


def test_a_loss_that_there_is_not():
    model, _ = conv_net()
    with pytest.raises(ValueError, match="loss must be one of squared_norm, divergence, got 'task'"):
        label_free("task", model, [])
