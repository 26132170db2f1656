"""The network y = 2 w1·x - w2·x, w1 = (1, 2), w2 = (3, -1) at x = (1, 0), (0, 1) has residuals -1 and 3. Hence

dL/dw1 = mean of residual · 2 x  = (-1, 3)        w g = (-1, 6)
dL/dw2 = mean of residual · -x   = (½, -3/2)      w g = (3/2, 3/2)
dL_n/dz = residual · v_i · w_i·x: (-2, 3) at the first example, (12, 3) at the second, (5, 3) on the average
d²L/dw² = v_i² mean of x² = (2, 2) and (½, ½)
"""

import pytest
import torch
from torch import nn

from criteria import CRITERIA, collect

from .tiny_networks import graph, group, half_squared_error, member, two_examples, two_linear


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
