"""The run folder: a run's whole truth, written by one process, read by any number.

Nothing here knows of networks, so that looking at runs is quick.
"""

from blend.runs.directory import all_runs, find_run, open_run, run_folder
from blend.runs.folder import (
    CONFIG,
    CONTROL,
    DATABASE,
    EXPORT,
    FIGURE,
    FINAL,
    LOCK,
    POLISH,
    SCORES,
    SEARCH,
    STOP,
    WORK,
    NameTaken,
    Run,
    check_free,
    export_at,
    try_making,
)

__all__ = [
    "CONFIG",
    "CONTROL",
    "DATABASE",
    "EXPORT",
    "FIGURE",
    "FINAL",
    "LOCK",
    "POLISH",
    "SCORES",
    "SEARCH",
    "STOP",
    "WORK",
    "NameTaken",
    "Run",
    "all_runs",
    "check_free",
    "export_at",
    "find_run",
    "open_run",
    "run_folder",
    "try_making",
]
