import subprocess
import sys

import torch

from criteria import GroupStats, control

SCRIPT = "from criteria import GroupStats, control; print(control.random(GroupStats('g', 'conv', 3, seed=7)).tolist())"


def test_random_is_fixed_by_seed_group_and_layer():
    base = control.random(GroupStats("g", "conv", 5, seed=7))
    assert torch.equal(base, control.random(GroupStats("g", "conv", 5, seed=7)))
    for group, layer, seed in (("g", "conv", 8), ("h", "conv", 7), ("g", "fc", 7)):
        assert not torch.equal(base, control.random(GroupStats(group, layer, 5, seed=seed)))
    assert base.min() >= 0
    assert base.max() < 1


def test_random_is_the_same_in_another_process():
    output = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    assert output.strip() == str(control.random(GroupStats("g", "conv", 3, seed=7)).tolist())


def test_random_is_uniform():
    values = control.random(GroupStats("g", "conv", 10_000))
    # The mean of n uniform numbers has deviation sqrt(1/12 / n) = 0.0029.
    assert abs(values.mean() - 0.5) < 5 * 0.0029
    assert torch.histc(values.float(), 4, 0, 1).min() > 2300  # 2500 expected, deviation 43
