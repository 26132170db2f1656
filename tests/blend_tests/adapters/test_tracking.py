"""Channels that another pruner renumbers, by hand; and what it prunes otherwise than it is tied."""

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import nn

from blend.adapters.torch_pruning import BlendedImportance
from blend.adapters.tracking import Survivors
from blend.errors import InputError
from criteria import ChannelGraph

from .blends import blend_for


class Joined(nn.Module):
    """Two layers that a grouped convolution ties, which Torch-Pruning does not see."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, groups=4, padding=1)
        self.last, self.head = nn.Conv2d(16, 12, 3), nn.Linear(12, 4)

    def forward(self, x):
        first = self.a(x).relu()
        joined = self.grouped(torch.cat([first, self.b(first).relu()], 1))
        return self.head(self.last(joined).relu().mean((2, 3)))


@pytest.fixture
def joined():
    torch.manual_seed(0)
    model, example = Joined().eval(), torch.randn(4, 3, 8, 8)
    return model, example, ChannelGraph.build(model, example)


def numbers(survivors, layer):
    return {group: channels.tolist() for group, channels in survivors.channels(layer)}


def test_positions_are_followed_as_they_are_numbered_at_that_moment(joined):
    survivors = Survivors(joined[2])
    assert numbers(survivors, "last") == {"last": list(range(12))}
    survivors.remove("last", True, [0, 5])
    survivors.remove("last", True, [0, 9])
    assert numbers(survivors, "last") == {"last": [2, 3, 4, 6, 7, 8, 9, 10]}
    survivors.check_widths("last", 8, 16)
    with pytest.raises(InputError, match="the channels of layer 'last' cannot be followed"):
        survivors.check_widths("last", 8, 15)
    survivors.check_widths("head", 4, 8)
    assert survivors.channels("head") == []


def test_what_is_removed_layer_by_layer_is_not_counted_twice(joined):
    _, _, graph = joined
    assert [member.layer for member in graph.groups[0].producers] == ["a", "b"]
    survivors = Survivors(graph)
    survivors.remove("b", True, [1, 3, 5, 7])
    with pytest.raises(InputError, match="channels of layer 'a' cannot be followed: those of 'a', 'b' belong together"):
        survivors.remove("a", True, [1, 3, 5, 7])
    with pytest.raises(InputError, match="channels of layer 'a' cannot be followed"):
        survivors.check_widths("a", 8, 3)
    survivors.check_widths("b", 4, 4)


def test_a_pruner_that_takes_apart_what_is_tied_is_noticed(joined):
    model, example, graph = joined
    importance = BlendedImportance(blend_for(model, graph), model, example)
    host = tp.pruner.BasePruner(
        model, example, importance, pruning_ratio=0.5, global_pruning=True, ignored_layers=[model.head]
    )
    host.step()
    with pytest.raises(InputError, match="belong together in the blend, and the pruner removes them apart"):
        importance.check(host, 0.5)


class Concatenating(nn.Module):
    """A layer that reads two groups and the images between them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
        self.both, self.head = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.head(self.both(torch.cat([self.a(x), x, self.b(x)], 1)))


def test_the_inputs_of_a_layer_may_be_of_several_groups():
    survivors = Survivors(ChannelGraph.build(Concatenating().eval(), torch.randn(2, 3, 4, 4)))
    survivors.check_widths("both", 6, 12)
    survivors.remove("a", True, [1, 2])
    survivors.check_widths("both", 6, 10)
    survivors.remove("both", False, [0, 5, 9])
    assert {name: np.flatnonzero(alive).tolist() for name, alive in survivors.alive.items()} == {
        "a": [3], "b": [1, 2, 3], "both": [0, 1, 2, 3, 4, 5],
    }  # fmt: skip
    survivors.check_widths("both", 6, 7)
    with pytest.raises(InputError, match="channels of layer 'both' cannot be followed: those of 'a', 'b', 'both' bel"):
        survivors.check_widths("both", 6, 8)
    with pytest.raises(InputError, match="a part of a channel of layer 'both'"):
        survivors.remove("both", False, [2])  # of the images


class Shuffled(nn.Module):
    """Four channels that become one go together, of which Torch-Pruning takes single ones when it prunes again."""

    def __init__(self):
        super().__init__()
        self.up, self.tail, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.tail(nn.functional.pixel_shuffle(self.up(x), 2).relu()).relu().mean((2, 3)))


def test_inputs_that_a_pruner_has_lost_count_of_are_noticed():
    torch.manual_seed(0)
    model, example = Shuffled().eval(), torch.randn(4, 3, 8, 8)
    importance = BlendedImportance(blend_for(model, ChannelGraph.build(model, example)), model, example)
    options = {"pruning_ratio": 0.5, "global_pruning": True, "ignored_layers": [model.head], "iterative_steps": 4}
    host = tp.pruner.BasePruner(model, example, importance, **options)

    def prune():
        for _ in range(4):
            host.step()
        importance.check(host, 0.5)

    with pytest.raises(InputError, match=r"would remove others of the inputs or outputs of layer 'tail'"):
        prune()


def test_a_part_of_a_channel_is_no_channel(joined):
    survivors = Survivors(joined[2])
    with pytest.raises(InputError, match="a part of a channel of layer 'a' was pruned: some of its positions stay"):
        survivors.remove("a", True, [1])
    assert np.all(survivors.alive["a"])
    with pytest.raises(InputError, match="layer 'head' was pruned, whose channels the blend does not know"):
        survivors.remove("head", True, [0])
