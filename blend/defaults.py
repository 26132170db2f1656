"""What is asked for unless something else is; imports nothing, so that the help is quick."""

from __future__ import annotations

DEFAULT_CRITERIA = (
    "l1", "l2", "fpgm", "bn_scale", "taylor_l1", "taylor_l2", "taylor_fo", "fisher", "mean_activation", "apoz", "hrank",
)  # fmt: skip
"""What is blended unless criteria are chosen: all that cost about one forward and backward pass; ``obd`` costs more."""
