"""`blend doctor`: whether this machine, the criteria of other packages, and a run folder are fit."""
