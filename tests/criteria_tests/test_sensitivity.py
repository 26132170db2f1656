import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from criteria import CRITERIA, CriterionError, collect

from .tiny_networks import assert_same, conv_net, graph, group, half_squared_error, images, member, snapshot, two_linear


def score(name, model, net_graph, batches, loss=half_squared_error):
    criterion = CRITERIA.get(name)
    views = next(iter(collect(model, net_graph, batches, loss, criterion.needs).values()))
    return criterion(views[0])


# --- snip ----------------------------------------------------------------------------------------------------------


def test_snip_by_hand_takes_the_absolute_value_per_batch():
    # y = -1 at x = (1, 0); residuals -1 and 3 make g_w1 = (-2, 0) and (6, 0), g_w2 = (1, 0) and (-3, 0).
    model, net_graph = two_linear()
    inputs, targets = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0], [-4.0]])
    singly = list(zip(inputs.split(1), targets.split(1), strict=True))
    assert score("snip", model, net_graph, singly).tolist() == pytest.approx([1 * (2 + 6) / 2, 3 * (1 + 3) / 2])
    assert score("snip", model, net_graph, [(inputs, targets)]).tolist() == pytest.approx([2, 3])
    assert score("taylor_l1", model, net_graph, singly).tolist() == pytest.approx([2, 3])


# --- grasp ---------------------------------------------------------------------------------------------------------


def test_grasp_by_hand():
    # L = ½ mean |W x|², x = (2, 0) and (0, 1): H = diag(2, ½) for each row w of W, g = H w, -w·Hg = -(4 w_1² + ¼ w_2²).
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
    net_graph = graph(group("g", 2, [member("0", 2)]))
    inputs, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 2)
    assert score("grasp", model, net_graph, [(inputs, targets)]).tolist() == pytest.approx([-5, -36.25])
    assert score("grasp:flipped=true", model, net_graph, [(inputs, targets)]).tolist() == pytest.approx([5, 36.25])
    # H is diag(4, 0) and diag(0, 1) in turn: -w·Hg = -(16 w_1² + w_2²) / 2.
    singly = list(zip(inputs.split(1), targets.split(1), strict=True))
    assert score("grasp", model, net_graph, singly).tolist() == pytest.approx([-10, -72.5])


def test_grasp_is_a_finite_difference_of_the_gradient():
    model, net_graph = conv_net()
    model.double().eval()
    inputs, targets = images(dtype=torch.float64)
    views = collect(model, net_graph, [(inputs, targets)], F.cross_entropy, CRITERIA.get("grasp").needs)
    names = ("stem.weight", "conv.weight")
    weights = {name: model.get_parameter(name).detach() for name in names}

    def gradients(moved):
        leaves = {name: weight.clone().requires_grad_() for name, weight in moved.items()}
        loss = F.cross_entropy(torch.func.functional_call(model, leaves, inputs), targets)
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    along, step = gradients(weights), 1e-5
    ahead = gradients({name: weights[name] + step * along[name] for name in names})
    behind = gradients({name: weights[name] - step * along[name] for name in names})
    for name, view in (("stem.weight", views["stem"][0]), ("conv.weight", views["conv"][0])):
        product = (ahead[name] - behind[name]) / (2 * step)
        # Off by step² times the fourth derivative, and by rounding, 1e-16 / step = 1e-11.
        np.testing.assert_allclose(view.hessian_gradient, product.flatten(1), rtol=1e-5, atol=1e-8)
        expected = -(weights[name] * product).flatten(1).sum(1)
        np.testing.assert_allclose(CRITERIA.get("grasp")(view), expected, rtol=1e-5, atol=1e-8)


# --- synflow -------------------------------------------------------------------------------------------------------


def flow_net(norm=True):
    """|V| |W| 1 = (2, 1) · (|1| + |-2|, |3| + |1|) = 2 · 3 + 1 · 4, whatever BatchNorm and bias are."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2) if norm else nn.Identity(), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 1.0]]))
        model[3].weight.copy_(torch.tensor([[2.0, -1.0]]))
        if norm:
            for tensor in (*model[1].parameters(), model[1].running_mean):
                tensor.copy_(torch.tensor([-3.0, 7.0]))
    return model, graph(group("g", 2, [member("0", 2)], [member("3", 2)]))


@pytest.mark.parametrize("norm", [True, False])
def test_synflow_by_hand(norm):
    model, net_graph = flow_net(norm)
    scores = score("synflow", model, net_graph, [(torch.full((3, 2), math.nan), torch.zeros(3))], None)
    assert scores.tolist() == [6, 4]
    assert scores.dtype == torch.float64


class Calls(nn.Module):
    """A function as a module, for networks that call it in their forward."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "saturating",
    [nn.Sigmoid(), nn.Hardsigmoid(), nn.Tanh(), nn.Hardtanh(inplace=True), nn.ReLU6(), nn.ReLU6(inplace=True),
     nn.Softsign(), Calls(torch.sigmoid), Calls(torch.Tensor.sigmoid_), Calls(lambda x: x.tanh()), Calls(F.hardtanh_)],
)  # fmt: skip
def test_synflow_passes_on_where_a_function_saturates(saturating):
    model, net_graph = flow_net()
    model[2] = saturating
    model[0].weight.data *= 1e9
    scores = score("synflow", model, net_graph, [(torch.zeros(3, 2), torch.zeros(3))], None)
    assert scores.tolist() == [6e9, 4e9]


@pytest.mark.parametrize("norm", [nn.LayerNorm(2), nn.RMSNorm(2), nn.GroupNorm(1, 2)])
def test_synflow_passes_on_where_a_layer_normalises(norm):
    model, net_graph = flow_net()
    model[1] = norm
    scores = score("synflow", model, net_graph, [(torch.zeros(3, 2), torch.zeros(3))], None)
    assert scores.tolist() == [6, 4]


class Excited(nn.Module):
    """Squeeze-and-excitation of a convolution's channels."""

    def __init__(self, gate, product):
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(2, 2, 1), nn.Linear(2, 1), nn.Linear(1, 2)
        self.gate, self.product = gate, product
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 1.0]]).view(2, 2, 1, 1))
            self.squeeze.weight.fill_(1)
            self.excite.weight.copy_(torch.tensor([[1.0], [2.0]]))

    def forward(self, x):
        x = self.conv(x)
        return self.product(x, self.gate(self.excite(self.squeeze(x.mean((2, 3))).relu())))


GATES = {"sigmoid": nn.Sigmoid(), "hardsigmoid": nn.Hardsigmoid(), "relu6": lambda x: F.relu6(x + 0) / 6}
PRODUCTS = {
    "right": lambda x, gate: x * gate[:, :, None, None],
    "left": lambda x, gate: torch.mul(gate.view(*gate.shape, 1, 1), x),
    "expanded": lambda x, gate: F.relu6(x) * gate.unflatten(1, (2, 1, 1)).expand_as(x),
    "in place": lambda x, gate: x.mul_(gate[:, :, None, None]),
}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("product", PRODUCTS)
def test_synflow_by_hand_of_a_gate(gate, product):
    """The convolution makes (3, 4) of ones, the gate (7, 14), over its largest (1/2, 1): R = 3/2 + 4."""
    model = Excited(GATES[gate], PRODUCTS[product])
    net_graph = graph(*(group(name, size, [member(name, size)]) for name, size in (("conv", 2), ("excite", 2))))
    batch = torch.zeros(3, 2, 1, 1), torch.zeros(3)
    views = collect(model, net_graph, [batch], None, {"flow_gradient"})
    of_gate = CRITERIA.get("synflow")(views["excite"][0])
    assert of_gate.tolist() == pytest.approx([3 / 2, 4])
    of_conv = CRITERIA.get("synflow")(views["conv"][0])  # gated, and 3 and 4 of the 7 that the gate is had from
    assert of_conv.tolist() == pytest.approx([3 / 2 + 3 / 7 * 5.5, 4 + 4 / 7 * 5.5])


@pytest.mark.parametrize("swish", [F.silu, lambda x: x * torch.sigmoid(x), lambda x: x.mul_(x.sigmoid())])
def test_synflow_is_linear_in_what_gates_itself(swish):
    """The first layer makes (3, 4) of ones, and R = 2 · 3 + 1 · 4, but for what SiLU takes of that."""
    model, net_graph = flow_net()
    model[2] = Calls(swish)
    scores = score("synflow", model, net_graph, [(torch.zeros(3, 2), torch.zeros(3))], None)
    assert scores.tolist() == pytest.approx([6, 4], rel=0.1)


def test_synflow_needs_a_network_in_double_precision():
    model, net_graph = flow_net()
    model[2] = Calls(lambda x: x @ torch.eye(2))
    with pytest.raises(CriterionError, match="needs a network that runs in double precision: expected m1 and m2"):
        score("synflow", model, net_graph, [(torch.zeros(3, 2), torch.zeros(3))], None)


def test_synflow_survives_many_gates():
    torch.manual_seed(0)
    model = nn.Sequential(*(Excited(nn.Sigmoid(), PRODUCTS["right"]) for _ in range(20)))
    net_graph = graph(group("g", 2, [member("0.conv", 2)]))
    scores = score("synflow", model, net_graph, [(torch.zeros(1, 2, 4, 4), torch.zeros(1))], None)
    assert scores.isfinite().all()
    assert (scores > 0).all()


@pytest.mark.parametrize("scale", [lambda x: 2 * x, lambda x: x * torch.full((2,), 2.0), lambda x: x.mul_(2)])
def test_synflow_of_what_is_scaled_where_a_function_saturates(scale):
    model, net_graph = flow_net()
    model[2] = Calls(lambda x: scale(F.relu6(x)))
    scores = score("synflow", model, net_graph, [(torch.zeros(3, 2), torch.zeros(3))], None)
    assert scores.tolist() == [12, 8]


def test_synflow_takes_one_batch_and_no_loss():
    def batches():
        yield torch.zeros(3, 2), torch.zeros(3)
        raise AssertionError("a second batch was touched")

    model, net_graph = flow_net()
    before = snapshot(model)
    assert score("synflow", model, net_graph, batches(), None).tolist() == [6, 4]
    assert_same(before, snapshot(model))


def test_synflow_of_a_network_is_conserved():
    """Flow in = flow out: every layer's scores sum up to R (Tanaka et al., theorem 1), pooling and tanh aside."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.GroupNorm(2, 6),
        nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip
    layers = {"0": 6, "3": 6, "6": 4, "9": 5}
    net_graph = graph(*(group(name, size, [member(name, size)]) for name, size in layers.items()))
    views = collect(model, net_graph, [(torch.zeros(2, 3, 6, 6), torch.zeros(2))], None, {"flow_gradient"})
    sums = [CRITERIA.get("synflow")(views[name][0]).sum().item() for name in layers]
    assert sums == pytest.approx([sums[0]] * 4)


def test_synflow_survives_many_layers():
    layers = [nn.Linear(64, 64, bias=False) for _ in range(60)]
    for layer in layers:
        nn.init.ones_(layer.weight)
    net_graph = graph(group("g", 64, [member("0", 64)]))
    scores = score("synflow", nn.Sequential(*layers), net_graph, [(torch.zeros(1, 64), torch.zeros(1))], None)
    assert scores.tolist() == pytest.approx([64.0**60] * 64)  # far beyond float32


def test_synflow_needs_numbers_to_flow():
    model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 2))
    batch = torch.zeros(3, dtype=torch.long), torch.zeros(3)
    with pytest.raises(CriterionError, match="synaptic flow needs inputs of floating point, got"):
        score("synflow", model, graph(group("g", 2, [member("1", 2)])), [batch], None)


def test_synflow_does_not_move_what_the_sweep_draws():
    model, net_graph = conv_net()
    model.tanh = nn.Sequential(nn.Tanh(), Noise())
    batches = [images()]
    alone = collect(model, net_graph, batches, F.cross_entropy, {"activation"})["conv"][1]
    both = collect(model, net_graph, batches, F.cross_entropy, {"activation", "flow_gradient"})["conv"][1]
    assert torch.equal(alone.activation_mean, both.activation_mean)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)
