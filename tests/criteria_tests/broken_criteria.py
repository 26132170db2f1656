"""Seven criteria, each broken in one way that the conformance suite must find."""

import gc

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from criteria import Criterion

SEEN = []


def not_a_number(stats):
    """A division by zero where a filter points nowhere."""
    return stats.weight.sum(1) / (stats.weight.sum(1) - stats.weight.sum(1)[0])


def wrong_length(stats):
    """Sums over the wrong axis."""
    return stats.weight.abs().sum(0)


def ties(stats):
    """Only tells small from large."""
    norms = stats.weight.abs().sum(1)
    return 1 + (norms > norms.median()).double()


def sign_error(stats):
    """The L1 norm, lowest for what matters most."""
    return -stats.weight.abs().sum(1)


def leaking_state(stats):
    """Adds what it has seen before."""
    SEEN.append(float(stats.weight.abs().mean()))
    return stats.weight.abs().sum(1) + sum(SEEN)


def leftover_hook(stats):
    """Watches all modules and does not stop."""
    register_module_forward_hook(lambda module, args, output: None)
    return stats.weight.abs().sum(1)


def modified_grad(stats):
    """Leaves gradients on parameters."""
    for parameter in (thing for thing in gc.get_objects() if type(thing) is nn.Parameter):
        if parameter.grad is not None and parameter.dtype == torch.float64:
            parameter.grad.zero_()
    return stats.weight.abs().sum(1)


BROKEN = {
    not_a_number: ("finite", "plain, first: degenerate: "),
    wrong_length: ("shape", "must return a tensor of shape (7,) for 'first', got (18,)"),
    ties: ("ties", "different channels get 2 different scores"),
    sign_error: ("dead filter", "the dead one ranks 1 of 7 from above (a sign error?)"),
    leaking_state: ("no state", "the scores are others after another network was scored"),
    leftover_hook: ("untouched", "hooks are left afterwards"),
    modified_grad: ("untouched", ".grad is modified afterwards"),
}
"""Each with the check that has to fail and what it has to say."""


def criterion(function, needs=("weight",), **values):
    """A criterion of no registry."""
    claims = values.pop("claims", {"permutation", "batch-split", "alike", "distinct", "dead-last"})
    return Criterion(function.__name__, "test", frozenset(needs), "none", function, claims=frozenset(claims))
