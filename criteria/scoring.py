"""Scoring a network by any criteria: one sweep for all that read statistics, and passes of their own for the rest."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from criteria.errors import CriterionValueError, DoesNotApply
from criteria.graph import ChannelGraph
from criteria.passes import Network, OnStep, PassCriterion
from criteria.registry import CRITERIA, Criterion
from criteria.scores import Combination, Note, Scores, ScoreTable, degeneracy, distinct_names, score_table
from criteria.stats import Loss, collect, undisturbed


@torch.inference_mode(mode=False)
def score(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
    criteria: Iterable[str | Criterion],
    *,
    metric: Loss | None = None,
    seed: int = 0,
    combine: Combination = "mean",
    on_step: OnStep | None = None,
    strict: bool = True,
) -> ScoreTable:
    """Score every channel group of a network by every criterion.

    Statistics are collected in a single sweep for all criteria that read them; each `PassCriterion` then goes over
    the batches as often as it needs. Nothing of the network differs afterwards, also when its forward raises.

    Args:
        model: the network.
        graph: its channel groups.
        batches: (inputs, targets), examples along the first axis; gone through once, and kept in memory if there is a
            criterion with passes of its own.
        loss: (outputs, targets) → mean loss over the batch, a scalar.
        criteria: names, or criteria themselves.
        metric: (outputs, targets) → one value per example; for criteria that ask for it.
        seed: of everything random.
        combine: as in `score_table`, of the views of the statistics.
        on_step: called after every batch or step with what is done (``statistics`` or a criterion's name), the number
            of steps done, and of steps in all (0 if not known).
        strict: whether a criterion that applies to no group is refused; if not, it has a note in each of them.

    Returns:
        The table, with a note for each pair of criterion and group that has no usable scores.

    Raises:
        DoesNotApply: a criterion applies to no group, and `strict`.
        CriterionError: a criterion returned something else than scores.
        CriterionValueError: a criterion that is unknown or there twice, a parameter out of range, no batch, a bad loss.
    """
    chosen = [CRITERIA.get(item) if isinstance(item, str) else item for item in criteria]
    names = distinct_names(chosen)
    passing = [criterion for criterion in chosen if isinstance(criterion, PassCriterion)]
    reading = [criterion for criterion in chosen if not isinstance(criterion, PassCriterion)]
    kept = batches if isinstance(batches, Sequence) or not passing else list(batches)
    report = on_step or _silent
    table = _statistical(model, graph, kept, loss, reading, seed, combine, report, strict)
    for criterion in passing:
        if not isinstance(kept, Sequence) or not kept:
            raise CriterionValueError("batches must hold at least one batch, got none")
        step = partial(report, criterion.name)
        with undisturbed(model, seed):
            try:
                found = criterion.scores(Network(model, graph, kept, loss, metric, seed, step))
            except DoesNotApply:
                if strict:
                    raise
                found = {}
        table = _extended(table, criterion, found)
    notes = sorted(table.notes, key=lambda note: names.index(note.criterion))
    return ScoreTable(names, table.groups, _scores(table, names), notes)


def _silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


def _statistical(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
    criteria: Sequence[Criterion],
    seed: int,
    combine: Combination,
    report: OnStep,
    strict: bool,
) -> ScoreTable:
    """The table of the criteria that read statistics."""
    needs = frozenset[str]().union(*(criterion.needs for criterion in criteria))
    total = len(batches) if isinstance(batches, Sequence) else 0
    stats = collect(
        model, graph, batches, loss, needs, seed=seed, on_batch=lambda done: report("statistics", done, total)
    )
    return score_table(stats, criteria, combine=combine, strict=strict)


def _extended(table: ScoreTable, criterion: PassCriterion, found: Mapping[str, Tensor]) -> ScoreTable:
    """The table with one more criterion."""
    scores, notes = _scores(table, table.criteria), list(table.notes)
    for group in table.groups:
        values = found[group].detach().cpu().double().numpy() if group in found else None
        reason = criterion.reason if values is None else degeneracy(values)
        if values is None or reason:
            notes.append(Note(criterion.name, group, str(reason)))
        else:
            scores[criterion.name, group] = values
    return ScoreTable([*table.criteria, criterion.name], table.groups, scores, notes)


def _scores(table: ScoreTable, criteria: Sequence[str]) -> dict[tuple[str, str], Scores]:
    """What the table holds, in this order of its criteria."""
    pairs = ((criterion, group) for criterion in criteria for group in table.groups)
    return {pair: scores for pair in pairs if (scores := table.get(*pair)) is not None}
