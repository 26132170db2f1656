"""The command line: one file for the commands of a kind. Torch is imported by the commands that need it only."""

from blend.cli.program import main, run

__all__ = ["main", "run"]
