"""The network y = 2 w1·x - w2·x, w1 = (1, 2), w2 = (3, -1) at x = (1, 0), (0, 1) has residuals -1 and 3. Hence

dL/dw1 = mean of residual · 2 x  = (-1, 3)        w g = (-1, 6)
dL/dw2 = mean of residual · -x   = (½, -3/2)      w g = (3/2, 3/2)
dL_n/dz = residual · v_i · w_i·x: (-2, 3) at the first example, (12, 3) at the second, (5, 3) on the average
d²L/dw² = v_i² mean of x² = (2, 2) and (½, ½)
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from criteria import CRITERIA, CriterionError, collect

from .tiny_networks import conv_net, graph, group, half_squared_error, images, member, two_examples, two_linear


def score(name, batches):
    model, net_graph = two_linear()
    criterion = CRITERIA.get(name)
    return criterion(collect(model, net_graph, batches, half_squared_error, criterion.needs)["first"][0])


def singly():
    inputs, targets = two_examples()
    return [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])]


@pytest.mark.parametrize(
    ("name", "together", "one_by_one"),
    [
        ("taylor_l1", [7, 3], [7, 3]),
        ("taylor_l2", [37, 4.5], [37, 4.5]),
        ("taylor_fo", [25, 9], [74, 9]),
        ("fisher", [37, 4.5], [37, 4.5]),
    ],
)
def test_by_hand(name, together, one_by_one):
    assert score(name, [two_examples()]).tolist() == pytest.approx(together)
    assert score(name, singly()).tolist() == pytest.approx(one_by_one)


def test_batches_count_by_their_examples():
    inputs, targets = two_examples()
    twice_the_first = torch.cat([inputs[:1], inputs[:1]]), torch.cat([targets[:1], targets[:1]])
    uneven = [twice_the_first, (inputs[1:], targets[1:])]
    # g = (2 · (-2, 0) + (0, 6)) / 3 of w1, hence w g = (-4/3, 4); squared gates (4, 9) twice and (144, 9) once.
    assert score("taylor_l1", uneven)[0] == pytest.approx(16 / 3)
    assert score("taylor_fo", uneven).tolist() == pytest.approx([(4 * 2 + 144) / 3, 9])
    assert score("fisher", uneven).tolist() == pytest.approx([(4 * 2 + 144) / 6, 4.5])


def test_obd_is_exact_after_one_probe_where_the_hessian_is_diagonal():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
    views = collect(
        model,
        graph(group("g", 2, [member("0", 2)])),
        [(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 2))],
        half_squared_error,
        {"hessian_diagonal"},
    )
    assert views["g"][0].hessian_diagonal.tolist() == [[2, 0.5], [2, 0.5]]  # mean of x²: 4/2 and 1/2
    assert CRITERIA.get("obd")(views["g"][0]).tolist() == [2, 9.25]


def test_obd_by_hand_over_many_probes():
    # H couples only w1j with w2j, by v1 v2 mean x² = -1, so that an entry's estimate has deviation 1 / sqrt(probes),
    # and the scores ½ Σ w² H_ww = (5, 2.5) have ½ sqrt(1 + 16) / 20 = 0.1 and ½ sqrt(81 + 1) / 20 = 0.23.
    scores = score("obd", [two_examples()] * 400)
    assert scores[0] == pytest.approx(5, abs=5 * 0.103)
    assert scores[1] == pytest.approx(2.5, abs=5 * 0.227)
    assert not torch.equal(scores, score("obd", [two_examples()] * 4))


def separable():
    """One tanh unit a channel, each with its own target: the Hessian is diagonal, one probe of it is exact."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Tanh()).double()
    batch = torch.randn(5, 1).double(), torch.randn(5, 3).double()
    return model, graph(group("g", 3, [member("0", 3)])), batch


def second_difference(value, at, step=1e-4):
    return (value(at + step) - 2 * value(at) + value(at - step)) / step**2


def test_second_derivatives_are_finite_differences():
    model, net_graph, (inputs, targets) = separable()
    needs = {"hessian_diagonal:probes=1", "gate_curvature:probes=1"}
    (view,) = collect(model, net_graph, [(inputs, targets)], half_squared_error, needs)["g"]
    weight = model[0].weight.detach()[:, 0]

    def loss(weights, gates):
        return half_squared_error(torch.tanh(gates * (inputs * weights)), targets).item()

    one = torch.ones(3, dtype=torch.float64)
    of_weight, change = [], []
    for channel in range(3):
        unit = torch.eye(3, dtype=torch.float64)[channel]
        of_weight.append(second_difference(lambda v, e=unit: loss(weight + v * e, one), 0.0))
        bend = second_difference(lambda v, e=unit: loss(weight, one + v * e), 0.0)
        slope = (loss(weight, one + 1e-6 * unit) - loss(weight, one - 1e-6 * unit)) / 2e-6
        change.append((bend / 2 - slope) ** 2)
    # Off by step² = 1e-8 times the fourth derivative, and by rounding, 1e-16 / step² = 1e-8.
    obd, taylor_so = CRITERIA.get("obd:probes=1")(view), CRITERIA.get("taylor_so:probes=1")(view)
    np.testing.assert_allclose(obd, weight.square().numpy() * of_weight / 2, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(taylor_so, change, rtol=1e-5, atol=1e-7)


def test_taylor_so_is_autograds_on_explicit_gates():
    model, net_graph = conv_net()
    model.double().eval()
    inputs, targets = images(dtype=torch.float64)
    probes = 300

    def example_loss(gates, n):
        x = model.norm(model.stem(inputs[n : n + 1])) * gates[:4, None, None]
        x = model.conv(model.pool(x.relu())) * gates[4:, None, None]
        return F.cross_entropy(model.head(x.tanh().flatten(1)), targets[n : n + 1])

    ones = torch.ones(7, dtype=torch.float64)
    slopes = sum(torch.autograd.functional.jacobian(lambda z, n=n: example_loss(z, n), ones) for n in range(12)) / 12
    hessians = [torch.autograd.functional.hessian(lambda z, n=n: example_loss(z, n), ones) / 12 for n in range(12)]
    diagonal = sum(hessians).diagonal()
    others = sum(h.square().sum(1) - h.diagonal().square() for h in hessians)
    deviation = (others / probes).sqrt()  # of Σ_n v_n (H_n v_n) over probes with signs for each example
    criterion = CRITERIA.get(f"taylor_so:probes={probes}")
    views = collect(model, net_graph, [(inputs, targets)], F.cross_entropy, criterion.needs)
    found = torch.cat([criterion(views["stem"][0]), criterion(views["conv"][0])]).sqrt()
    exact = (diagonal / 2 - slopes).abs()
    assert ((found - exact).abs() <= 5 * deviation / 2).all()
    assert (deviation / 2 < 0.1 * exact.max()).all()
    assert (exact - slopes.abs()).abs().max() > 5 * deviation.max()  # that is, first order alone would not do


def test_taylor_so_by_hand_is_squared_per_batch():
    # A gate on the output y itself, L = ½ (z y - t)²: L_z = y (y - t), L_zz = y². With y = (1, 2), t = (0, 4):
    # L_z = 1 and -4, L_zz = 1 and 4; -L_z + ½ L_zz = -½ and 6, -(-3/2) + 5/4 = 11/4 of both.
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.ones_(model[0].weight)
    net_graph = graph(group("g", 1, [member("0", 1)]))
    inputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    criterion = CRITERIA.get("taylor_so:probes=1")
    for size, expected in ((2, (11 / 4) ** 2), (1, (0.25 + 36) / 2)):
        batches = list(zip(inputs.split(size), targets.split(size), strict=True))
        (view,) = collect(model, net_graph, batches, half_squared_error, criterion.needs)["g"]
        assert criterion(view).tolist() == pytest.approx([expected])


class Fork(nn.Module):
    """One activation with two readers."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 2, bias=False)

    def forward(self, x):
        self.read = self.stem(x).relu()
        return self.one(self.read).mean((2, 3)) + self.two(self.read).square().mean((2, 3))


def test_taylor_output_is_the_formula_whoever_else_reads():
    torch.manual_seed(0)
    model = Fork()
    net_graph = graph(group("stem", 4, [member("stem", 4)], [member("one", 4), member("two", 4)]))
    inputs, targets = images(10)
    F.cross_entropy(model(inputs), targets, reduction="sum").backward(inputs=[model.read.retain_grad() or model.read])
    expected = (model.read * model.read.grad).mean((2, 3)).abs().mean(0).detach()
    for size in (10, 3):
        batches = list(zip(inputs.split(size), targets.split(size), strict=True))
        views = collect(model, net_graph, batches, F.cross_entropy, CRITERIA.get("taylor_output").needs)["stem"]
        for view in views[1:]:
            torch.testing.assert_close(view.activation_gradient_magnitude, expected, rtol=1e-4, atol=1e-8)
            scores = CRITERIA.get("taylor_output")(view)
            torch.testing.assert_close(scores, (expected / expected.norm()).double(), rtol=1e-4, atol=1e-8)


def test_taylor_output_by_hand():
    # What second reads is a = w·x: (1, 3) and (2, -1); g = r v is (-2, 1) and (6, -3): |a g| = (2, 3) and (12, 3).
    scores = score_of_consumer("taylor_output", [two_examples()])
    assert scores.tolist() == pytest.approx(np.array([7, 3]) / np.hypot(7, 3))
    assert score_of_consumer("taylor_output", singly()).tolist() == pytest.approx(scores.tolist())


def score_of_consumer(name, batches):
    model, net_graph = two_linear()
    criterion = CRITERIA.get(name)
    return criterion(collect(model, net_graph, batches, half_squared_error, criterion.needs)["first"][1])


class ChangesInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.side = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        a = self.stem(x)
        b = self.side(a.sigmoid() * 1).detach()
        read = a * 1
        self.side(read)
        read.add_(b)
        return read.mean((2, 3))


def test_what_is_changed_in_place_after_it_was_read_is_refused():
    net_graph = graph(group("stem", 4, [member("stem", 4)], [member("side", 4)]))
    with pytest.raises(CriterionError, match="what 'side' reads must not be changed in place to have a gradient"):
        collect(ChangesInPlace(), net_graph, [images()], lambda y, t: y.square().mean(), {"activation_gradient"})


def test_more_probes_are_a_better_estimate():
    """Sixteen times as many probes: a sixteenth of the squared error, less than a quarter for all that chance does."""
    model, net_graph = conv_net(8)
    batches = [images(12, seed) for seed in range(2)]

    def scores(probes, seed):
        criterion = CRITERIA.get(f"obd:probes={probes}")
        return criterion(collect(model, net_graph, batches, F.cross_entropy, criterion.needs, seed=seed)["stem"][0])

    truth = scores(500, 99)
    few, many = (sum((scores(probes, seed) - truth).square().sum() for seed in range(6)) for probes in (1, 16))
    assert many < few / 4


def test_estimates_of_different_probes_come_from_one_sweep():
    model, net_graph = conv_net()
    specifications = ["obd", "obd:probes=2", "obd:probes=9", "taylor_so:probes=3", "taylor_so"]
    criteria = [CRITERIA.get(specification) for specification in specifications]
    needs = frozenset().union(*(criterion.needs for criterion in criteria))
    together = collect(model, net_graph, [images(), images(seed=2)], F.cross_entropy, needs)["stem"][0]
    for criterion in criteria:
        alone = collect(model, net_graph, [images(), images(seed=2)], F.cross_entropy, criterion.needs)["stem"][0]
        torch.testing.assert_close(criterion(together), criterion(alone), rtol=1e-5, atol=1e-9)
        assert alone.present < together.present or criterion.configured
    assert len({tuple(criterion(together).tolist()) for criterion in criteria}) == 5
