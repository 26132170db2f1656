"""The runs of a directory, by their names."""

from __future__ import annotations

from pathlib import Path

from blend.errors import InputError, nearest
from blend.progress import say
from blend.runs.folder import CONFIG, Run


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
        if (folder / CONFIG).is_file():
            return folder
    known = [run.name for run in all_runs(runs_dir)]
    raise InputError(f"no run '{name}' in '{runs_dir}'{nearest(name, known)}")


def all_runs(runs_dir: Path) -> list[Run]:
    """Every run under a directory, oldest first; one that cannot be read is only told of."""
    folders = [path.parent for path in runs_dir.glob(f"[!.]*/{CONFIG}")]  # drafts of runs being made are hidden
    runs = []
    for folder in sorted(folders, key=lambda path: (path / CONFIG).stat().st_mtime):
        try:
            runs.append(Run(folder))
        except InputError as error:
            say(f"note: {error}")
    return runs
