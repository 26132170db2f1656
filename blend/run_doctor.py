"""Whether a run folder is whole, who works on it, and what to do with it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from blend.database import FINAL
from blend.environment import Finding, Inapplicable, attempt
from blend.runs import EXPORT, STOP, WORK, Run


def examine_run(folder: Path) -> Iterator[Finding]:
    """Look at a run folder without changing it.

    Args:
        folder: The run's folder.
    """
    area = f"run {folder.name}"
    opened = attempt(area, "folder", lambda: _opened(folder))
    yield opened
    if opened.outcome == "fail":
        yield Finding(area, "what to do", "pass", "restore the folder from a backup, or search again")
        return
    run = Run(folder)
    found = [
        attempt(area, "database", lambda: _sound(run)),
        attempt(area, "history", lambda: _continuous(run)),
        attempt(area, "export", lambda: _consistent(run)),
        attempt(area, "writer", lambda: _writer(run)),
        attempt(area, "leftovers", lambda: _leftovers(run)),
    ]
    yield from found
    broken = any(finding.outcome == "fail" for finding in found)
    yield Finding(area, "what to do", "pass", _advice(run, broken))


def _opened(folder: Path) -> str:
    run = Run(folder)
    return f"status {run.status}, task {run.config.title}, schema {run.database.version}"


def _sound(run: Run) -> str:
    complaints = [text for (text,) in run.database.query("PRAGMA integrity_check")]
    if complaints != ["ok"]:
        raise RuntimeError("; ".join(complaints[:3]))
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
    for phase in ("search", "random"):
        generations = 1 + max((e.generation for e in evaluations if e.phase == phase), default=-1)
        state = run.get(f"{phase}-state") or {"generation": 0}
        if state["generation"] != generations:
            raise RuntimeError(
                f"the {phase} is saved at generation {state['generation']}, its history ends at {generations}"
            )
    failed = [evaluation for evaluation in evaluations if evaluation.error is not None]
    about = f"; the first: {failed[0].error}" if failed else ""
    return f"{len(evaluations)} evaluations without a gap, {len(failed)} of them failed{about}"


def _consistent(run: Run) -> str:
    if run.status != "finished":
        raise Inapplicable("written when the run is finished")
    export = json.loads((run.folder / EXPORT).read_text())
    config = run.config
    for key, wanted in {"seed": config.seed, "reduction": config.reduction, "metrics": run.get("result")}.items():
        if export[key] != wanted:
            raise RuntimeError(f"{EXPORT} has another {key} than the database")
    best = run.best(FINAL["search"])
    if best is None or best.fitness != export["metrics"]["best"]["fitness"]:
        raise RuntimeError(f"{EXPORT} does not hold the best candidate of the history")
    return f"{EXPORT} is that of the best candidate, with the result of the database"


def _writer(run: Run) -> str:
    if run.is_locked():
        return f"process {run.writer() or '?'} is at work on it"
    return f"none; the last one was process {run.writer()}" if run.writer() else "none so far"


def _leftovers(run: Run) -> str:
    left = [name for name in (WORK, STOP) if (run.folder / name).exists()]
    left += [path.name for path in run.folder.parent.glob(f".{run.folder.name}.*.draft")]
    if run.is_locked() or not left:
        return "none"
    return f"{', '.join(left)}, of a process that was killed; harmless, and resume clears what is in the folder"


def _advice(run: Run, broken: bool) -> str:
    match run.status:
        case _ if broken:
            return "do not resume; restore the folder from a backup, or search again with the same seed"
        case "running":
            return f"wait, or stop it with: blend stop {run.folder}"
        case "finished":
            return f"nothing; see it with: blend show {run.folder}"
        case "failed":
            return f"it failed ({run.get('error')}); when that is mended: blend resume {run.folder}"
        case _:
            return f"go on with: blend resume {run.folder}"
