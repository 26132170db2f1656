"""Whether a run folder is whole, who works on it, and what to do with it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from blend.doctor.environment import Finding, Inapplicable, attempt, room
from blend.runs import CONTROL, EXPORT, FINAL, POLISH, SCORES, SEARCH, STOP, WORK, Run, export_at


def examine_run(folder: Path) -> Iterator[Finding]:
    """Look at a run folder without changing it.

    Args:
        folder: The run's folder.
    """
    area = f"run {folder.name}"
    opened = attempt(area, "folder", lambda: _opened(folder))
    yield replace(opened, reason=opened.reason.partition("; blend doctor ")[0])  # which is this
    if opened.outcome == "fail":
        yield Finding(area, "what to do", "pass", "restore the folder from a backup, or search again")
        return
    run = Run(folder)
    with run.database.snapshot():  # of a search that goes on
        found = [
            attempt(area, "database", lambda: _sound(run)),
            attempt(area, "history", lambda: _continuous(run)),
            attempt(area, "scores", lambda: _loadable(run)),
            attempt(area, "export", lambda: _consistent(run)),
            attempt(area, "writer", lambda: _writer(run)),
            attempt(area, "leftovers", lambda: _leftovers(run)),
        ]
    yield from found
    disk = attempt(area, "disk", lambda: _writable(run))
    yield disk
    broken = {finding.name for finding in found if finding.outcome == "fail"}
    yield Finding(area, "what to do", "pass", _advice(run, broken, disk.outcome == "fail"))


def _opened(folder: Path) -> str:
    run = Run(folder)
    return f"status {run.status}, task {run.config.title}, schema {run.database.version}"


def _sound(run: Run) -> str:
    complaints = [text for (text,) in run.database.query("PRAGMA integrity_check")]
    if complaints != ["ok"]:
        raise RuntimeError("; ".join(complaints[:3]))
    for (key,) in run.database.query("SELECT key FROM documents"):
        run.get(key)
    [(mode,)] = run.database.query("PRAGMA journal_mode")
    return f"integrity check passed, journal mode {mode}"


def _continuous(run: Run) -> str:
    """Nothing missing between two evaluations, and the strategies' states where their histories end."""
    evaluations = run.evaluations()
    for expected, evaluation in enumerate(evaluations):
        if evaluation.number != expected:
            raise RuntimeError(f"evaluation {expected} is missing: number {evaluation.number} follows")
        if not math.isfinite(evaluation.fitness):
            raise RuntimeError(f"evaluation {expected} has fitness {evaluation.fitness}")
    for phase in (SEARCH, POLISH, CONTROL):
        generations = 1 + max((e.generation for e in evaluations if e.phase == phase), default=-1)
        state = run.get(f"{phase}-state") or {"generation": 0}
        if state["generation"] != generations:
            raise RuntimeError(
                f"the {phase} is saved at generation {state['generation']}, its history ends at {generations}"
            )
    failed = [evaluation for evaluation in evaluations if evaluation.error is not None]
    about = f"; the first: {failed[0].error}" if failed else ""
    return f"{len(evaluations)} evaluations without a gap, {len(failed)} of them failed{about}"


def _loadable(run: Run) -> str:
    from criteria import ScoreTable  # a library that takes long to import

    if run.get("identity") is None:
        raise Inapplicable("not kept yet")
    table = ScoreTable.load(run.folder / SCORES)
    return f"by {len(table.criteria)} criteria, in {len(table.groups)} groups"


def _consistent(run: Run) -> str:
    if run.status != "finished":
        raise Inapplicable("written when the run is finished")
    points = run.get("front", [])
    _check_export(run, EXPORT, run.config.reduction, run.get("result"))
    for point in points:
        _check_export(run, export_at(point["reduction"]), point["reduction"], point)
    front = f", and so are those of the front at {len(points)} reductions" if points else ""
    return f"{EXPORT} is that of the best candidate, with the result of the database{front}"


def _check_export(run: Run, name: str, reduction: float, result: dict[str, Any]) -> None:
    export = _exported(run, name)
    is_front = run.config.reductions is not None
    best = run.best(FINAL[SEARCH], FINAL[POLISH], reduction=reduction if is_front else 0.0)
    if best is None or best.fitness != export["metrics"]["best"]["fitness"]:
        raise RuntimeError(f"{name} does not hold the best candidate of the history")
    requested = best.genome[-1] if is_front and best.genome else reduction
    for key, wanted in {"seed": run.config.seed, "reduction": requested, "metrics": result}.items():
        if export[key] != wanted:
            raise RuntimeError(f"{name} has another {key} than the database")


def _exported(run: Run, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads((run.folder / name).read_text()))
    except (OSError, ValueError) as error:
        raise RuntimeError(f"{name} cannot be read: {error}") from error


def _lost(run: Run) -> bool:
    """Whether an exported file is not there or no document, and not merely another one than it should be."""
    try:
        for name in (EXPORT, *(export_at(point["reduction"]) for point in run.get("front", []))):
            _exported(run, name)
    except RuntimeError:
        return True
    return False


def _writer(run: Run) -> str:
    if run.is_locked():
        return f"process {run.writer() or '?'} is at work on it"
    return f"none; the last one was process {run.writer()}" if run.writer() else "none so far"


def _leftovers(run: Run) -> str:
    left = [name for name in (WORK, STOP) if (run.folder / name).exists()]
    left += [path.name for path in run.folder.glob(".*.draft")]
    left += [path.name for path in run.folder.parent.glob(f".{run.folder.name}.*.draft")]
    if run.is_locked() or not left:
        return "none"
    return f"{', '.join(left)}, of a process that was killed; harmless, and resume clears what is in the folder"


def _writable(run: Run) -> str:
    if run.status == "finished":
        raise Inapplicable("nothing is written any more")
    if not os.access(run.folder, os.W_OK):
        raise RuntimeError(f"{run.folder} must be a folder that can be written to")
    return room(run.folder)


def _advice(run: Run, broken: Collection[str], stuck: bool) -> str:
    match run.status:
        case "finished" if broken == {"export"} and _lost(run):
            away = f"remove {run.folder / EXPORT}; " if (run.folder / EXPORT).exists() else ""
            return f"{away}all that is exported is written again by: blend resume {run.folder}"
        case "finished" if broken == {"scores"}:
            return "the exported file is whole; the table of scores by every criterion is not"
        case _ if broken:
            return "do not resume; restore the folder from a backup, or search again with the same seed"
        case "running" if stuck:
            return f"make room on its disk, or it will end at its next commit; go on then: blend resume {run.folder}"
        case _ if stuck:
            return f"it is whole, but its disk takes nothing; when that is mended: blend resume {run.folder}"
        case "running":
            return f"wait, or stop it with: blend stop {run.folder}"
        case "finished":
            return f"nothing; see it with: blend show {run.folder}"
        case "failed":
            return f"it failed ({run.get('error')}); when that is mended: blend resume {run.folder}"
        case _:
            return f"go on with: blend resume {run.folder}"
