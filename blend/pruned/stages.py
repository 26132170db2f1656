"""The networks on the way from the unpruned to the saved one: what each costs, what it is worth, how fast it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from safetensors.torch import save
from torch import nn

from blend.budget import CostModel
from blend.pruned.choice import Chosen
from blend.pruned.latency import LatencyModel
from blend.pruned.saved import plain_tensors
from blend.pruned.step import judged
from blend.pruned.timing import batch_of, conditions, median_interval, seconds_in_turns
from criteria.graph import Keep

ROUNDS = {1: 31, 64: 9}
"""At which batch sizes networks are timed, with the number of rounds; and at the one that was asked for."""
OTHERWISE = 9
"""Rounds at any other batch size."""
BUDGET = 20.0
"""Seconds after which there are no more rounds than an interval needs, for each batch size."""


class Stages:
    """Collects the networks on the way, and measures at the end what nothing may be decided by.

    Args:
        chosen: The task, its data and what was asked for.
    """

    def __init__(self, chosen: Chosen) -> None:
        self.chosen = chosen
        self.rows: list[dict[str, Any]] = []
        self.networks: list[nn.Module] = []

    def add(self, title: str, network: nn.Module, keep: Keep) -> None:
        """Adds a network with its costs and its results on held-out data; the unpruned one comes first."""
        task, splits, config = self.chosen.task, self.chosen.splits, self.chosen.config
        loss, metric = judged(network, task, splits.heldout, config.batch_size)
        self.networks.append(network)
        self.rows.append(
            {
                "stage": title,
                "macs": CostModel(self.chosen.graph)(keep),
                "parameters": sum(parameter.numel() for parameter in network.parameters()),
                "bytes": len(save(plain_tensors(network))),
                "heldout_loss": loss,
                "heldout_metric": metric,
            }
        )

    def finish(self) -> None:
        """Opens the test split, once, and times all networks in turns, after everything is decided."""
        task, splits, config = self.chosen.task, self.chosen.splits, self.chosen.config
        for row, network in zip(self.rows, self.networks, strict=True):
            row["test_loss"], row["test_metric"] = judged(network, task, splits.test, config.batch_size)
            row["latency"] = []
        for size in batch_sizes(config.batch_size):
            inputs = batch_of(splits.heldout.inputs, size)
            seconds = seconds_in_turns(self.networks, inputs, ROUNDS.get(size, OTHERWISE), budget=BUDGET)
            for row, mine in zip(self.rows, seconds.T, strict=True):
                ratio, low, high = median_interval(mine / seconds[:, 0])
                row["latency"].append({
                    "batch_size": size, "seconds": float(np.median(mine)),
                    "ratio": ratio, "ratio_ci95": [low, high], "rounds": len(mine),
                })  # fmt: skip


def batch_sizes(largest: int) -> list[int]:
    """Those that networks are timed at: none above the one that was asked for, as more may not fit into memory."""
    return sorted({size for size in ROUNDS if size <= largest} | {largest})


def timing(chosen: Chosen, keep: Keep, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Under what conditions networks were timed; and where latency is what was reduced, what was predicted of it.

    Args:
        chosen: What was asked for.
        keep: The channels that stay.
        rows: All stages, finished; the last one is the network that was predicted.
    """
    if not isinstance(chosen.cost, LatencyModel):
        return conditions()
    cost, size = chosen.cost, chosen.config.batch_size
    place = next(number for number, timed in enumerate(rows[-1]["latency"]) if timed["batch_size"] == size)
    before, after = rows[0]["latency"][place], rows[-1]["latency"][place]
    return {
        **conditions(),
        "batch_size": size,
        "predicted": {
            "unpruned_seconds": cost.full * size,
            "seconds": cost(keep) * size,
            "ratio": 1.0 - cost.reduction(keep),
        },
        "measured": {
            "unpruned_seconds": before["seconds"],
            "seconds": after["seconds"],
            "ratio": after["ratio"],
            "ratio_ci95": after["ratio_ci95"],
        },
        "model": cost.record(),
    }

