import numpy as np
import pytest
import torch
from torch import nn

from blend.pruned.timing import batch_of, conditions, median_interval, processor, seconds_in_turns


class Clock:
    """Stands still but for what networks take."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Taking(nn.Module):
    """Takes the given seconds in turn, and notes who runs in what mode."""

    def __init__(self, clock, seconds, log, name):
        super().__init__()
        self.clock, self.seconds, self.log, self.name = clock, list(seconds), log, name

    def forward(self, inputs):
        self.clock.now += self.seconds.pop(0)
        self.log.append((self.name, self.training, torch.is_grad_enabled(), torch.get_num_threads()))
        return inputs


def test_networks_take_turns_and_the_first_pass_does_not_count():
    clock, log = Clock(), []
    networks = [Taking(clock, [9, 1, 2], log, "a").train(), Taking(clock, [9, 4, 8], log, "b").eval()]
    threads = torch.get_num_threads()
    found = seconds_in_turns(networks, torch.zeros(2), 2, clock)
    assert found.tolist() == [[1, 4], [2, 8]]
    assert "".join(name for name, *_ in log) == "ab" + "ab" + "ba"
    assert {tuple(state) for _, *state in log} == {(False, False, 1)}
    assert (networks[0].training, networks[1].training) == (True, False)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("budget", "rounds"), [(0, 6), (16, 8), (17, 9), (float("inf"), 10)])
def test_no_round_begins_after_the_budget_but_for_an_interval(budget, rounds):
    """Two seconds a round, and the budget is looked at before it begins."""
    clock, log = Clock(), []
    networks = [Taking(clock, [1] * 11, log, name) for name in "ab"]
    found = seconds_in_turns(networks, torch.zeros(2), 10, clock, budget)
    assert found.tolist() == [[1, 1]] * rounds
    assert len(log) == 2 * (rounds + 1)
    assert median_interval(found[:, 0]) == (1, 1, 1)


def test_modes_are_restored_when_a_network_fails():
    network = Taking(Clock(), [], [], "a").train()
    with pytest.raises(IndexError):
        seconds_in_turns([network], torch.zeros(2), 1)
    assert network.training


@pytest.mark.parametrize(("number", "cut"), [(1, 0), (3, 0), (6, 0), (8, 0), (9, 1), (12, 2), (31, 9)])
def test_interval_of_the_median_by_order_statistics(number, cut):
    """The cuts are those of published tables of the sign test at 95 %, but below six, where there is none."""
    values = np.random.default_rng(number).permutation(number).astype(float)
    assert median_interval(values) == ((number - 1) / 2, cut, number - 1 - cut)


def test_interval_holds_the_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [median_interval(rng.exponential(size=15)) for _ in range(1000)]
    share = np.mean([low <= np.log(2) <= high for _, low, high in intervals])
    assert 0.94 < share < 0.99  # 0.965 in theory


def test_batches_begin_again():
    assert batch_of(torch.arange(3), 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert batch_of(torch.arange(3), 2).tolist() == [0, 1]


def test_conditions_name_the_processor():
    assert conditions() == {"threads": 1, "torch": torch.__version__, "cpu": processor()}
