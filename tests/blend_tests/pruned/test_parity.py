"""How near what was exported must come, by precision."""

import pytest
import torch
from torch import nn

from blend.errors import BlendError
from blend.pruned.parity import difference, tolerance


@pytest.mark.parametrize(
    ("dtype", "allowed"),
    [(torch.float64, 1e-4), (torch.float32, 1e-4), (torch.float16, 0.03), (torch.bfloat16, 0.1), (torch.int64, 1e-4)],
)
def test_a_precision_allows_what_it_can_tell_apart(dtype, allowed):
    assert tolerance(dtype) == allowed


@pytest.mark.parametrize(("dtype", "refused"), [(torch.float32, True), (torch.float16, False)])
def test_half_precision_may_be_rounded_otherwise(dtype, refused):
    """By four of the steps of a half between 1 and 2."""
    network, inputs, step = nn.Identity(), torch.ones(8, 3, dtype=dtype), 4 * 2**-10
    if refused:
        with pytest.raises(BlendError, match="exported to it computes something else: outputs differ by 0"):
            difference("it", lambda x: x + step, network, inputs)
    else:
        assert difference("it", lambda x: x + step, network, inputs) == step


def test_what_does_not_run_or_has_another_shape_is_refused():
    with pytest.raises(BlendError, match="the network cannot be exported to it: ZeroDivisionError"):
        difference("it", lambda x: 1 // 0, nn.Identity(), torch.ones(8, 3))
    with pytest.raises(BlendError, match="computes something else: outputs differ by inf"):
        difference("it", lambda x: x[:, :1], nn.Identity(), torch.ones(8, 3))
