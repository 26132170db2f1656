import dataclasses
import pickle

import numpy as np
import pytest
import torch

from criteria import NEEDS, CriterionError, GroupStats

STATISTICS = [name for need in NEEDS.values() for name in need.fields]


def test_a_view_holds_what_it_was_given():
    stats = GroupStats("g", "conv", 2, weight=torch.ones(2, 3))
    assert stats.present == {"weight"}
    assert stats.weight.shape == (2, 3)
    assert stats.missing(frozenset({"weight"})) is None
    assert repr(stats) == "GroupStats('g', 'conv', producer, 2 of 2 channels: weight)"


@pytest.mark.parametrize("name", STATISTICS)
def test_reading_what_is_absent_is_an_error(name):
    stats = GroupStats("g", "stem.conv", 2)
    with pytest.raises(CriterionError, match=f"'{name}' needs .* 'stem.conv'; "):
        getattr(stats, name)


def test_every_statistic_is_of_one_need():
    assert len(STATISTICS) == len(set(STATISTICS))
    assert set(STATISTICS) <= {field.name for field in dataclasses.fields(GroupStats)}


def test_views_are_frozen_and_can_be_pickled():
    stats = GroupStats("g", "conv", 3, channels=np.array([0, 2]), weight=torch.ones(2, 3))
    again = pickle.loads(pickle.dumps(stats))
    assert torch.equal(again.weight, stats.weight)
    assert again.rows == 2
    assert again.present == {"weight"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.weight = None


def test_replacing_a_part():
    stats = GroupStats("g", "conv", 2, gamma=torch.ones(2, 1), beta=torch.ones(2, 1))
    assert stats.missing(frozenset({"batchnorm"})) is None
    without = GroupStats("g", "conv", 2, gamma=torch.ones(2, 1))
    assert without.missing(frozenset({"batchnorm"})) == "needs BatchNorm after 'conv'; there is none"
