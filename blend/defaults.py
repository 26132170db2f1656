"""What is asked for unless something else is; imports next to nothing, so that the help is quick."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blend.config import SearchConfig

CPU = "cpu"
DEFAULT_CRITERIA = (
    "l1", "l2", "fpgm", "bn_scale", "taylor_l1", "taylor_l2", "taylor_fo", "fisher", "mean_activation", "apoz", "hrank",
    "cap",
)  # fmt: skip
"""What is blended unless criteria are chosen: all that one forward and backward pass tells, and ``cap``, which takes
another pass and makes better blends; ``obd`` takes many."""


def free_name(runs_dir: Path, config: SearchConfig) -> str:
    """A name that says what the run is, with a number where it is taken."""
    task = re.sub(r"[^\w.-]+", "-", config.title)
    reduction = "-".join(f"{share:g}" for share in config.reductions or (config.reduction,))
    stem = f"{task}-{reduction}-seed{config.seed}"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 100_000)))
    return next(name for name in names if not (runs_dir / name).exists())
