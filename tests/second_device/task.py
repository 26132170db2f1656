"""A task whose module makes the device known, in workers, too."""

from tests.blend_tests.task_file import small, tunable

from . import register

__all__ = ["small", "tunable"]

register()
