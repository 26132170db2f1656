"""What torch keeps for a thread is each pass's own, and the caller's is left alone."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import nn

from blend.compensation.sequential import sequential
from blend.pruning.halting import halt, halting_passes, may_halt
from blend.pruning.inference import InferenceNetwork
from criteria import ChannelGraph

from ..small_networks import images

MODES = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "uncached": lambda: torch.autocast("cpu", torch.float16, cache_enabled=False),
    "gradients": torch.enable_grad,
    "inference": torch.inference_mode,
}


def modes():
    return (
        torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_cache_enabled(),
        *[(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")],
    )  # fmt: skip


class Halting(nn.Module):
    """Halts before, in and after a mode, and tells of what it finds there."""

    def __init__(self, mode):
        super().__init__()
        self.mode = mode

    def forward(self, x):
        halt(modes())
        with MODES[self.mode]():
            halt(modes())
            told = modes()
        halt(modes())
        return told, modes()


@pytest.fixture
def _left_alone():
    before = modes()
    yield
    with ExitStack() as stack:  # so that a failure here does not become one of the next test
        for device in ("cpu", "cuda"):
            stack.callback(torch.set_autocast_enabled, device, False)
        assert modes() == before


@pytest.mark.usefixtures("_left_alone")
@pytest.mark.parametrize("mode", MODES)
def test_every_pass_has_modes_of_its_own(mode):
    with torch.no_grad():
        outside = modes()
        with MODES[mode]():
            inside = modes()
        assert inside != outside
        with halting_passes(Halting(mode), images(3).split(1)) as passes:
            seen = []
            for value in (torch.ones(1), None, None, None):
                for one in passes:
                    seen.append(one.go_on(value))
                    assert modes() == outside
        assert seen == [outside] * 3 + [inside] * 3 + [outside] * 3 + [(inside, outside)] * 3
        assert all(one.ended for one in passes)


@pytest.mark.usefixtures("_left_alone")
@pytest.mark.parametrize("mode", MODES)
def test_what_is_given_up_leaves_nothing_on(mode):
    outside = modes()
    with halting_passes(Halting(mode), images(3).split(1)) as (first, second, never):
        for one in (first, second, first, second):
            one.go_on(None)
    assert modes() == outside
    assert first.ended
    assert second.ended
    assert not never.ended
    assert not may_halt()
    assert torch.autocast_increment_nesting() == 1
    assert torch.autocast_decrement_nesting() == 0


class Cast(nn.Module):
    """Computes in a mode that its forward switches on."""

    def __init__(self, mode):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.head, self.mode = nn.Conv2d(6, 6, 3), nn.Linear(6, 4), mode

    def forward(self, x):
        with MODES[self.mode]():
            x = self.second(self.norm(self.first(x)).relu()).relu()
        return self.head(x.float().mean((2, 3)))


@pytest.mark.usefixtures("_left_alone")
@pytest.mark.parametrize("mode", ["autocast", "gradients", "inference"])
def test_networks_that_set_a_mode_leave_none(mode):
    torch.manual_seed(0)
    model, inputs = Cast(mode).eval(), images(12)
    graph, outside = ChannelGraph.build(model, inputs[:2]), modes()
    keep = np.ones(len(graph), dtype=bool)
    keep[::3] = False
    with torch.no_grad():
        InferenceNetwork(model, graph, inputs[:8]).prune(keep, inputs.split(4))
    assert modes() == outside
    corrected, _ = sequential(model, graph, keep, inputs.split(4), recalibrated=True)
    assert modes() == outside
    assert corrected.tensors
