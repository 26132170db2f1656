"""``blend`` on a machine with the device: ``python -m tests.second_device search digits --device second``."""

import sys

from blend.cli import run

from . import register

register()

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
