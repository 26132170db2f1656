"""Ranks of what is left, counted as those of the whole group, by hand; and who can still be ranked."""

import numpy as np
import pytest

from blend.blended import BlendedGroup, Spokesman
from blend.blended.remaining import heard, of_whole
from criteria import ScoreTable


def test_ranks_are_of_the_whole_group():
    ranks = (np.arange(10) + 0.5) / 10
    left = (np.arange(6) + 0.5) / 6
    assert of_whole(ranks + 0.3, 0.3, 10) == pytest.approx(ranks + 0.3)
    assert of_whole(left + 0.3, 0.3, 10) == pytest.approx(ranks[4:] + 0.3)


def test_a_group_that_a_criterion_cannot_rank_is_left_alone(capsys):
    both = (Spokesman(criterion="l1", factor=0.5), Spokesman(criterion="l2", factor=0.5))
    groups = [
        BlendedGroup(name=name, size=2, layers=(name,), clusters=(), candidates=both, offset=0.0, scores=(0.25, 0.75))
        for name in ("a", "b")
    ]
    known = {("l1", "a"): np.arange(2.0), ("l2", "a"): np.arange(2.0), ("l1", "b"): np.arange(2.0)}
    assert list(heard(groups, ScoreTable(["l1", "l2"], ["a", "b"], known, []))) == groups[:1]
    assert capsys.readouterr().err == "note: 'b' gives nothing at this step: l2 cannot rank what is left of it\n"
