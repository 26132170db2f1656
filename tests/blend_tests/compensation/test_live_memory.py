"""What is alive at once, held against what can be counted by hand: maps of 4 channels of 8 x 8 are 1024 bytes."""

import pytest
import torch
from torch import nn

from blend.compensation.live_memory import live_bytes

MAP = 4 * 8 * 8 * 4


class Residual(nn.Module):
    """Holds what comes in while two more maps are made; in the end there are four: both ends, and twice between."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        kept = x + 1
        return kept + self.conv(self.conv(kept)).relu()


@pytest.mark.parametrize(
    ("model", "channels", "expected"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3, padding=1)), 1, MAP),
        (nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()), 1, 2 * MAP),
        (nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True)), 1, MAP),
        (nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *[nn.ReLU() for _ in range(5)]), 1, 2 * MAP),
        (nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 2)), 1, MAP + 8),
        (nn.Flatten(), 4, 0),
        (Residual(), 4, 3 * MAP),
    ],
)  # fmt: skip
def test_what_is_needed_no_more_does_not_count(model, channels, expected):
    assert live_bytes(model, torch.randn(1, channels, 8, 8)) == expected
    assert live_bytes(model, torch.randn(3, channels, 8, 8)) == 3 * expected


def test_the_network_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).train()
    live_bytes(model, torch.randn(1, 1, 8, 8))
    assert model.training
    assert model[1].num_batches_tracked == 0
