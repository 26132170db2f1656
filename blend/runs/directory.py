"""The runs of a directory, by their names."""

from __future__ import annotations

from pathlib import Path

from blend.errors import InputError, nearest
from blend.progress import say
from blend.runs.folder import CONFIG, DATABASE, Run


def run_folder(runs_dir: Path, name: str) -> Path:
    """Where a run of that name lies.

    Raises:
        InputError: If the name is not that of a plain, visible folder.
    """
    if not name or name.startswith(".") or Path(name).name != name:
        raise InputError(f"name must be a plain folder name, got '{name}'")
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
    for folder in (runs_dir / name, Path(name)):
        if any((folder / name).is_file() for name in (CONFIG, DATABASE)):
            return folder
    known = [run.name for run in all_runs(runs_dir)]
    raise InputError(f"no run '{name}' in '{runs_dir}'{nearest(name, known)}")


def all_runs(runs_dir: Path) -> list[Run]:
    """Every run under a directory, oldest first; one that cannot be read is only told of."""
    files = [path for name in (DATABASE, CONFIG) for path in runs_dir.glob(f"[!.]*/{name}")]  # drafts are hidden
    times = {path.parent: path.stat().st_mtime for path in files}  # if it can be, of what is never changed
    runs = []
    for folder in sorted(times, key=lambda folder: times[folder]):
        try:
            runs.append(Run(folder))
        except InputError as error:
            say(f"note: {error}")
    return runs
