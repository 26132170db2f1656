"""The evidence: by how much the blend wins or loses on data that no search has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 5_000


def verdict(contenders: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Holds the blend against the strongest single criterion.

    The opponent is the one that does best *on the very split that is reported*: the best on held-out data for the
    held-out margin, the best on test data for the test margin. That is harder to beat than what a user could have
    chosen without looking at the test data.

    Args:
        contenders: The unpruned network, the blend and all baselines, each with ``name``, ``kind``, ``allocation``,
            ``fitness``, ``heldout_metric``, ``test_metric``, ``reduction``, ``cost``, ``note`` and ``examples``, the
            metric's value for every test example.
        seed: For the bootstrap.

    Returns:
        ``unpruned``, ``best``, ``baselines``, ``margin`` and ``achieved_reduction`` as plain data; and ``polish``
        if the blend was polished, with what that has brought.
    """
    unpruned = next(c for c in contenders if c["kind"] == "unpruned")
    blend = next(c for c in contenders if c["kind"] == "blend")
    baselines = [c for c in contenders if c["kind"] not in ("unpruned", "blend")]
    singles = [c for c in baselines if c["kind"] == "single"] or baselines  # it may be that none of them has a result
    return {
        "unpruned": {key: unpruned[key] for key in ("heldout_metric", "test_metric", "cost")},
        "best": _plain(blend),
        "baselines": [_plain(c) for c in baselines],
        "margin": margin(blend, singles, seed),
        "achieved_reduction": blend["reduction"],
        **_polish(contenders, seed),
    }


def margin(blend: dict[str, Any], rivals: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """By how much a contender is better than the strongest of its rivals on each of the two splits.

    Args:
        blend: As in :func:`verdict`, like the rivals.
        rivals: At least one.
        seed: For the bootstrap.

    Returns:
        ``heldout`` and ``test``, over whom (``heldout_over``, ``test_over``), and ``test_ci95``.
    """
    chosen = max(rivals, key=lambda c: c["heldout_metric"])
    strongest = max(rivals, key=lambda c: c["test_metric"])
    low, high = paired_interval(blend["examples"] - strongest["examples"], seed)
    return {
        "heldout": blend["heldout_metric"] - chosen["heldout_metric"],
        "heldout_over": _title(chosen),
        "test": blend["test_metric"] - strongest["test_metric"],
        "test_over": _title(strongest),
        "test_ci95": [low, high],
    }


def _polish(contenders: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """What the polished blend gains over the blend as it was, and the verdict on that; nothing if it was not."""
    unpolished = next((c for c in contenders if c["kind"] == "unpolished"), None)
    if unpolished is None:
        return {}
    polished = next(c for c in contenders if c["kind"] == "blend")
    others = [c for c in contenders if c["kind"] not in ("blend", "unpolished")]
    without = verdict([*others, {**unpolished, "name": polished["name"], "kind": "blend"}], seed)
    low, high = paired_interval(polished["examples"] - unpolished["examples"], seed)
    return {
        "polish": {
            **{key: polished[key] - unpolished[key] for key in ("fitness", "heldout_metric", "test_metric")},
            "test_ci95": [low, high],
            "without": {key: without[key] for key in ("best", "margin", "achieved_reduction")},
        }
    }


def paired_interval(differences: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """A 95 % percentile bootstrap interval of the mean of paired differences, shape (examples,)."""
    if np.ptp(differences) == 0.0:
        return float(differences[0]), float(differences[0])
    interval = stats.bootstrap(
        (differences,), np.mean, n_resamples=RESAMPLES, batch=250, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _plain(contender: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in contender.items() if key != "examples"}


def _title(contender: dict[str, Any]) -> str:
    return f"{contender['name']} ({contender['allocation']})"
