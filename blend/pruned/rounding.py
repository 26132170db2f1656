"""Keep masks whose layers have round numbers of channels, which is what fast hardware wants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from blend.budget import Cost, Scores, check_reduction, without_first
from blend.errors import InputError
from criteria.graph import ChannelGraph, Keep

Block = NDArray[np.int64]
_NO_BLOCK: Block = np.empty(0, dtype=np.int64)


def rounded_keep_mask(
    graph: ChannelGraph,
    scores: Scores,
    reduction: float,
    cost: Cost,
    floor: Mapping[str, int],
    multiple: int,
) -> Keep:
    """Like :func:`blend.budget.keep_mask`, but every group that gives channels keeps a multiple of some number.

    Channels go in blocks, ranked by their mean score: first what is above a multiple, then so many at once. A group is
    left whole where no multiple lies between its floor and its size. The last blocks are given back while the
    reduction holds; it may overshoot by as much as a block is worth.

    Args:
        graph: The channel graph.
        scores: Per group, the scores of its channels, comparable across groups. A group that is missing stays whole.
        reduction: The share of cost to remove, in (0, 1).
        cost: What is counted.
        floor: Channels that stay in each group whatever their scores.
        multiple: Of what the numbers of channels shall be.

    Raises:
        InputError: A group has fewer channels than the multiple, or the reduction cannot be reached.
    """
    check_reduction(reduction)
    check_multiple(graph, scores, multiple)
    found = [block for group in graph.groups if group.name in scores for block in _blocks(
        np.asarray(scores[group.name]), graph.slices[group.name].start, floor[group.name], multiple
    )]  # fmt: skip
    blocks = [found[place][1] for place in np.argsort([score for score, _ in found], kind="stable")]
    ends = list(accumulate(map(len, blocks), initial=0))
    return without_first(graph, np.concatenate([_NO_BLOCK, *blocks]), ends, reduction, cost)


def check_multiple(graph: ChannelGraph, scores: Scores, multiple: int) -> None:
    """Refuses a multiple that some group cannot keep, or that is none.

    Raises:
        InputError: Naming the group.
    """
    if multiple < 1:
        raise InputError(f"round-to must be at least 1, got {multiple}")
    for group in graph.groups:
        if group.name in scores and group.size < multiple:
            raise InputError(
                f"round-to must be at most the number of channels of every layer that is pruned, got {multiple}: "
                f"'{group.name}' has {group.size}; leave it alone with --ignore '{group.name.partition('#')[0]}'"
            )


def _blocks(values: NDArray[np.float64], start: int, floor: int, multiple: int) -> Iterator[tuple[float, Block]]:
    """A group's blocks in the order of their removal, each with its mean score."""
    order = np.argsort(values, kind="stable")
    largest = (len(values) - 1) // multiple * multiple
    cuts = [0, *(len(values) - kept for kept in range(largest, 0, -multiple) if kept >= floor)]
    for first, last in pairwise(cuts):
        yield float(values[order[first:last]].mean()), start + order[first:last]
