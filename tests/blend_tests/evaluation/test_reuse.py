"""Judging a candidate from where it differs from an earlier one: the same answer, to the last bit."""

import pytest
import torch
import torch.nn.functional as F

from blend.compensation.correction import gathered
from blend.evaluation import Judge, Settings
from blend.pruning.prefixes import PrefixCache
from blend.task import accuracy

from ..pruning.test_chain import masks
from ..small_networks import graph_of, images
from .test_evaluation import split

CALIBRATION = images(40, seed=2)


def judges(model, graph, cache, known=()):
    """In both precisions."""
    return [
        Judge(
            model, graph, F.cross_entropy, accuracy, CALIBRATION, Settings(batch_size=16, precision=precision), known,
            cache,
        )
        for precision in (None, torch.bfloat16)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("grade", "limit"), [("none", 2**28), ("none", 2**19), ("channel", 2**19), ("patch", 2**28)]
)
def test_answers_are_the_same_bits(grade, limit):
    model, graph = graph_of("resnet20")
    known, _ = gathered(model, graph, CALIBRATION, grade, 40, 16)
    cache, heldout = PrefixCache(limit), split(100)
    reusing, plain = judges(model, graph, cache, known), judges(model, graph, None, known)
    chunks = plain[0].judge(masks(graph)[0], heldout)["chunks"]
    rivals = [], [chunk + 2 for chunk in chunks], [chunk + 0.1 for chunk in chunks]
    for keep in masks(graph, 8):
        for rival in rivals:
            answers = [judge.judge(keep, heldout, rival) for judge in reusing]
            assert answers == [judge.judge(keep, heldout, rival) for judge in plain]
    assert cache.hits > 20
    assert cache.size <= limit
