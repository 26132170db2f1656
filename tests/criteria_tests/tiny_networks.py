"""Networks small enough to be solved by hand, and graphs of them written down by hand."""

import copy
from collections import OrderedDict

import numpy as np
import torch
from torch import nn

from criteria import ChannelGraph, ChannelGroup, Member


def half_squared_error(outputs, targets):
    return (outputs - targets).square().sum(1).mean() / 2


def member(layer, channels, norm=None):
    channels = np.arange(channels) if isinstance(channels, int) else np.array(channels)
    return Member(layer, channels, norm)


def group(name, size, producers, consumers=()):
    return ChannelGroup(name, size, tuple(producers), tuple(consumers))


def graph(*groups):
    return ChannelGraph(tuple(groups), axes=(), shapes={}, positions={}, parameters=frozenset())


def two_linear():
    """y = 2 w1·x - w2·x with w1 = (1, 2), w2 = (3, -1)."""
    model = nn.Sequential(OrderedDict(first=nn.Linear(2, 2, bias=False), second=nn.Linear(2, 1, bias=False)))
    with torch.no_grad():
        model.first.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
        model.second.weight.copy_(torch.tensor([[2.0, -1.0]]))
    return model, graph(group("first", 2, [member("first", 2)], [member("second", 2)]))


def two_examples():
    """Residuals y - t are -1 and 3."""
    return torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [2.0]])


def conv_net(channels=4, seed=0):
    """Conv, BatchNorm, in-place ReLU, pooling, conv, flatten, linear: two groups."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(2, channels, 3, padding=1),
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True),
            pool=nn.MaxPool2d(2),
            conv=nn.Conv2d(channels, 3, 3, padding=1, bias=False),
            tanh=nn.Tanh(),
            flatten=nn.Flatten(),
            head=nn.Linear(3 * 3 * 3, 5),
        )
    )
    with torch.no_grad():
        for tensor in (model.norm.weight, model.norm.bias, model.norm.running_mean):
            tensor.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    net_graph = graph(
        group("stem", channels, [member("stem", channels, "norm")], [member("conv", channels)]),
        group("conv", 3, [member("conv", 3)], [member("head", np.repeat(np.arange(3), 9))]),
    )
    return model, net_graph


def images(count=12, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 2, 6, 6, generator=generator).to(dtype)
    return inputs, torch.randint(0, 5, (count,), generator=generator)


def snapshot(model):
    """All that a sweep could leave changed."""
    hooks = [
        len(getattr(module, name))
        for module in model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    ]
    return {
        "state": copy.deepcopy(model.state_dict()),
        "identity": [id(tensor) for tensor in (*model.parameters(), *model.buffers())],
        "grad": [(id(p.grad), None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "mode": [module.training for module in model.modules()],
        "hooks": hooks,
        "random": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
    }


def assert_same(before, after):
    """Compare two snapshots bit for bit."""
    if isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, list | tuple):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_same(one, other)
    elif isinstance(before, torch.Tensor | np.ndarray):
        np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
    else:
        assert after == before
