"""What becomes of a network whose channels go: sliced, recalibrated, run. Nothing is saved."""

from blend.pruning.slicing import TOLERANCES, PrunedNetwork, check_slicing, recalibrate, reproducibly

__all__ = ["TOLERANCES", "PrunedNetwork", "check_slicing", "recalibrate", "reproducibly"]
