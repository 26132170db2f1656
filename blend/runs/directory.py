"""The runs of a directory, by their names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from blend.errors import InputError, nearest
from blend.progress import say
from blend.runs.folder import CONFIG, DATABASE, LONGEST_NAME, Run


def run_folder(runs_dir: Path, name: str) -> Path:
    """Where a run of that name lies.

    Raises:
        InputError: If the name is not that of a plain, visible folder.
    """
    if not name or name[0] in ".-" or Path(name).name != name:
        raise InputError(f"name must be a plain folder name that begins with neither '.' nor '-', got '{name}'")
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise InputError(f"name must be of {LONGEST_NAME} bytes or fewer, got {len(os.fsencode(name))}")
    return runs_dir / name


def open_run(runs_dir: Path, name: str) -> Run:
    """Opens a run by its name under the runs directory, or by its path.

    Raises:
        InputError: If there is no such run, with the nearest names.
    """
    return Run(find_run(runs_dir, name))


def find_run(runs_dir: Path, name: str) -> Path:
    """The folder of a run, whole or not.

    Raises:
        InputError: If there is no such run, with the nearest names.
    """
    candidates = (runs_dir / name, Path(name))
    for folder in candidates:
        if any(os.path.isfile(folder / file) for file in (CONFIG, DATABASE)):  # Path's own raises where names are long
            return folder
    for folder in filter(os.path.isdir, candidates):
        raise InputError(f"'{folder}' is not a run folder: it has no {CONFIG} and no {DATABASE}")
    known = [folder.name for folder in _folders(runs_dir)]
    raise InputError(f"no run '{name}' in '{runs_dir}'{nearest(name, known)}")


def all_runs(runs_dir: Path) -> Iterator[Run]:
    """Every run under a directory, oldest first, each open until the next; what cannot be read is only told of."""
    for folder in _folders(runs_dir):
        try:
            run = Run(folder)
        except InputError as error:
            say(f"note: {error}")
            continue
        yield run
        run.close()


def _folders(runs_dir: Path) -> list[Path]:
    """Those of all runs, whole or not, oldest first."""
    files = [path for name in (DATABASE, CONFIG) for path in runs_dir.glob(f"[!.]*/{name}")]  # drafts are hidden
    times = {path.parent: path.stat().st_mtime for path in files}  # if it can be, of what is never changed
    return sorted(times, key=lambda folder: times[folder])
