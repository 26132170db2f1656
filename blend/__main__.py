"""``python -m blend``."""

from blend.cli import main

main()
