"""Scores of all criteria in all groups, and the normalisations that make them comparable."""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from criteria.errors import CriterionError, CriterionValueError, DoesNotApply
from criteria.registry import CRITERIA, Criterion
from criteria.views import GroupStats

Scores = NDArray[np.float64]
Combination = Literal["mean", "sum", "max", "first"]
Normalisation = Literal["rank", "minmax", "z"]

RESOLUTION = 4 * float(np.finfo(np.float32).eps)
"""Scores whose spread is smaller, relative to the largest, are constant: they come from float32 arithmetic."""


@dataclass(frozen=True)
class Note:
    """Why a criterion has no scores in a group."""

    criterion: str
    group: str
    reason: str


class ScoreTable:
    """Criterion × group → one score per channel; higher = keep.

    Args:
        criteria: names of the criteria, in the order asked for.
        groups: names of the groups, in the graph's order.
        scores: (criterion, group) → scores of shape (channels,).
        notes: why each pair that is absent from ``scores`` is absent.
    """

    def __init__(
        self,
        criteria: Sequence[str],
        groups: Sequence[str],
        scores: Mapping[tuple[str, str], Scores],
        notes: Sequence[Note] = (),
    ) -> None:
        """Store the parts."""
        self.criteria = tuple(criteria)
        self.groups = tuple(groups)
        self.notes = tuple(notes)
        self._scores = dict(scores)

    def get(self, criterion: str, group: str) -> Scores | None:
        """Scores of a criterion in a group; None where ``notes`` says why there are none.

        Raises:
            CriterionValueError: the table has no such criterion or group.
        """
        if criterion not in self.criteria:
            raise CriterionValueError(f"criterion must be among {', '.join(self.criteria)}, got {criterion!r}")
        if group not in self.groups:
            raise CriterionValueError(f"group must be among {', '.join(self.groups)}, got {group!r}")
        return self._scores.get((criterion, group))

    def usable(self, group: str) -> tuple[str, ...]:
        """Names of the criteria that have scores in a group, in the table's order."""
        return tuple(criterion for criterion in self.criteria if self.get(criterion, group) is not None)

    def matrix(self, group: str) -> Scores:
        """Scores in a group, of shape (usable criteria, channels)."""
        return np.stack([self._scores[criterion, group] for criterion in self.usable(group)])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists and dicts, ready for JSON."""
        return self._header() | {
            "scores": {g: {c: self._scores[c, g].tolist() for c in self.usable(g)} for g in self.groups},
        }

    def save(self, path: str | Path) -> None:
        """Write the table to an npz file of just this name; `load` gives back the same bits."""
        arrays = {_key(self, *pair): scores for pair, scores in self._scores.items()}
        with Path(path).open("wb") as file:
            np.savez(file, allow_pickle=False, header=np.array(json.dumps(self._header())), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "ScoreTable":
        """Read a table that `save` wrote; nothing in the file can run.

        Raises:
            CriterionError: It cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                table = cls(header["criteria"], header["groups"], {}, [Note(**note) for note in header["notes"]])
                pairs = ((criterion, group) for criterion in table.criteria for group in table.groups)
                table._scores = {pair: file[_key(table, *pair)] for pair in pairs if _key(table, *pair) in file}
        except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, BadZipFile, zlib.error) as error:
            raise CriterionError(f"the scores in '{path}' cannot be read: {error or type(error).__name__}") from error
        return table

    def _header(self) -> dict[str, Any]:
        notes = [asdict(note) for note in self.notes]
        return {"criteria": list(self.criteria), "groups": list(self.groups), "notes": notes}


def _key(table: ScoreTable, criterion: str, group: str) -> str:
    return f"{table.criteria.index(criterion)}-{table.groups.index(group)}"


def score_table(
    stats: Mapping[str, Sequence[GroupStats]],
    criteria: Iterable[str | Criterion],
    *,
    combine: Combination = "mean",
    strict: bool = True,
) -> ScoreTable:
    """Score every group by every criterion.

    Each view that holds what a criterion needs is scored; several views of a group are combined. Scores that are
    constant or not finite are degenerate: they are set aside with a note, as is a group without a fitting view.

    Args:
        stats: group → its views, as from `collect`.
        criteria: names, with parameters or without, or criteria themselves; the table has them by their names.
        combine: how several views make one score: ``mean`` (of the views' scores scaled to mean 1 in absolute value,
            times the mean of the views' means, so that the unit survives), ``sum``, ``max`` or ``first``; over the
            views that carry the channel. The scores of a single view stay as they are.
        strict: whether a criterion that fits no group is refused; if not, it has a note in each of them.

    Returns:
        The table.

    Raises:
        DoesNotApply: a criterion fits no group, and `strict`.
        CriterionError: a criterion returned scores of another shape.
        CriterionValueError: unknown criterion or combination, or a criterion twice.
    """
    if combine not in get_args(Combination):
        raise CriterionValueError(f"combine must be one of {', '.join(get_args(Combination))}, got {combine!r}")
    chosen = [CRITERIA.get(item) if isinstance(item, str) else item for item in criteria]
    names = distinct_names(chosen)
    scores: dict[tuple[str, str], Scores] = {}
    notes: list[Note] = []
    for criterion in chosen:
        reasons = [_reason_against(criterion, views) for views in stats.values()]
        if strict and stats and all(reasons):
            raise DoesNotApply(f"{reasons[0]} (nor does any other group have it)")
        for (group, views), reason in zip(stats.items(), reasons, strict=True):
            values = None if reason else _group_scores(criterion, views, combine)
            if values is not None and not (reason := degeneracy(values)):
                scores[criterion.name, group] = values
            else:
                notes.append(Note(criterion.name, group, str(reason)))
    return ScoreTable(names, list(stats), scores, notes)


def distinct_names(criteria: Sequence[Criterion]) -> list[str]:
    """The names of criteria, in their canonical form.

    Raises:
        CriterionValueError: one is there twice, maybe written in another way.
    """
    names = [criterion.name for criterion in criteria]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CriterionValueError(f"criteria must differ from one another, got {twice!r} twice")
    return names


def merged(tables: Sequence[ScoreTable]) -> ScoreTable:
    """One table of several that hold different criteria for the same groups."""
    pairs = [(table, criterion) for table in tables for criterion in table.criteria]
    scores = {(c, g): values for table, c in pairs for g in table.groups if (values := table.get(c, g)) is not None}
    notes = [note for table in tables for note in table.notes]
    return ScoreTable([criterion for _, criterion in pairs], tables[0].groups, scores, notes)


def _reason_against(criterion: Criterion, views: Sequence[GroupStats]) -> str | None:
    """Why none of a group's views can serve a criterion; None if one can."""
    reasons = [criterion.missing(view) for view in views if view.side == criterion.side]
    if not reasons:
        return f"criterion {criterion.name!r} needs a {criterion.side} of the group; there is none"
    return None if None in reasons else reasons[0]


def degeneracy(scores: Scores) -> str | None:
    """Why scores cannot be ranked; None if they can."""
    if not np.isfinite(scores).all():
        return f"degenerate: {np.count_nonzero(~np.isfinite(scores))} of {len(scores)} scores are not finite"
    if np.ptp(scores) <= RESOLUTION * np.abs(scores).max():
        return f"degenerate: all {len(scores)} scores are {scores[0] + 0:.6g}"  # + 0, which no zero is less than
    return None


def _group_scores(criterion: Criterion, views: Sequence[GroupStats], combine: Combination) -> Scores:
    """Scores of a group's channels; NaN for a channel that no fitting view carries."""
    fitting = [view for view in views if view.side == criterion.side and criterion.missing(view) is None]
    fitting = fitting[:1] if combine == "first" else fitting
    scores = np.zeros((len(fitting), fitting[0].size))
    carried = np.zeros(scores.shape, dtype=np.bool_)
    for row, view in enumerate(fitting):
        channels = slice(None) if view.channels is None else view.channels
        scores[row, channels] = criterion(view).detach().cpu().double().numpy()
        carried[row, channels] = True
    with np.errstate(invalid="ignore"):  # scores that are not finite are found out later
        combined = scores[0] if len(scores) == 1 else combined_scores(scores, carried, combine)
    return np.where(carried.any(0), combined, np.nan)


def combined_scores(scores: Scores, carried: NDArray[np.bool_], combine: Combination) -> Scores:
    """One row from several, of which each holds 0 for the channels it does not carry."""
    if combine == "sum":
        return np.asarray(scores.sum(0))
    if combine == "max":
        return np.asarray(np.where(carried, scores, -np.inf).max(0))
    means = np.abs(scores).sum(1, keepdims=True) / carried.sum(1, keepdims=True)
    scaled = scores / np.where(means == 0, 1, means)
    return np.asarray(scaled.sum(0) / np.maximum(carried.sum(0), 1) * means.mean())


def normalise(scores: NDArray[np.floating[Any]], method: Normalisation) -> Scores:
    """Put scores on a common scale; the order stays.

    Args:
        scores: shape (channels,), finite.
        method: ``rank``, (ordinal rank + ½) / n, of equal scores the one with the lower index is lower; ``minmax``,
            linear onto [0, 1]; ``z``, mean 0 and standard deviation 1.

    Returns:
        Normalised scores of shape (channels,).

    Raises:
        CriterionValueError: unknown method, scores that are not a finite vector, or constant ones where the method
            divides by their spread.
    """
    if method not in get_args(Normalisation):
        raise CriterionValueError(f"method must be one of {', '.join(get_args(Normalisation))}, got {method!r}")
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise CriterionValueError(f"scores must be a finite vector, got shape {values.shape}, {values}")
    if method == "rank":
        ranks = np.empty(len(values))
        ranks[np.argsort(values, kind="stable")] = np.arange(len(values)) + 0.5
        return ranks / len(values)
    low, high = values.min(), values.max()
    if low == high:
        raise CriterionValueError(f"scores must not be constant for method {method!r}, got {values}")
    if method == "minmax":
        return np.asarray((values - low) / (high - low))
    return np.asarray((values - values.mean()) / values.std())
