"""Scores as tables for anyone: a CSV of one line per channel, or the same columns as arrays of an NPZ."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blend.blended.criterion import BlendedCriterion
from blend.blended.document import write_whole
from criteria.scores import ScoreTable

SUFFIXES = (".csv", ".npz")


def write_scores(path: Path, criterion: BlendedCriterion, table: ScoreTable) -> None:
    """Writes the scores of every channel, whole or not at all.

    Columns: ``group``, ``channel`` (from 0 in each group), ``layers`` (that carry the channel, separated by spaces),
    ``blend`` (comparable across groups; higher means keep), and one for each criterion (comparable inside a group only;
    empty in the CSV, NaN in the NPZ, where a criterion does not apply).

    Args:
        path: Where; its suffix, ``.csv`` or ``.npz``, says how.
        criterion: The blend.
        table: Scores of the single criteria in the same groups.

    Raises:
        InputError: If it cannot be written.
    """
    columns = _columns(criterion, table)
    write_whole(path, _csv(columns) if path.suffix.lower() == ".csv" else _npz(columns))


def _columns(criterion: BlendedCriterion, table: ScoreTable) -> dict[str, NDArray[Any]]:
    groups = criterion.groups
    sizes = [group.size for group in groups]
    columns: dict[str, NDArray[Any]] = {
        "group": np.repeat([group.name for group in groups], sizes),
        "channel": np.concatenate([np.arange(size) for size in sizes]),
        "layers": np.repeat([" ".join(group.layers) for group in groups], sizes),
        "blend": np.concatenate([group.scores for group in groups]),
    }
    for name in table.criteria:
        parts = [table.get(name, group.name) for group in groups]
        missing = [np.full(size, np.nan) for size in sizes]
        columns[name] = np.concatenate([m if p is None else p for p, m in zip(parts, missing, strict=True)])
    return columns


def _csv(columns: Mapping[str, NDArray[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*(column.tolist() for column in columns.values()), strict=True):
        writer.writerow("" if value != value else value for value in row)
    return text.getvalue().encode()


def _npz(columns: Mapping[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **columns)
    return file.getvalue()
