"""Who is compared on test data, with what result, and which baselines have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blend.database import CONTROL, FINAL
from blend.errors import BlendError
from blend.evaluation import pack
from blend.problem import Problem
from search.archive import Archive, Evaluation
from search.executor import Failure

Contender = dict[str, Any]
Examples = NDArray[np.float64]


def contenders(problem: Problem, archive: Archive) -> tuple[list[Contender], list[Contender]]:
    """Unpruned network, blend, baselines and random search with their held-out results; and the baselines without."""
    config = problem.config
    judged = {e.phenotype: e for e in archive.history("baseline")}
    whole = pack(np.ones(len(problem.graph), dtype=bool))
    found = [_contender("unpruned", "unpruned", "", [judged[whole]])]
    found += [_contender("blend", "blend", config.allocation, [best_of(archive, FINAL["search"])])]
    failed = []
    for baseline in problem.baselines:
        evaluations = [judged[pack(mask)] for mask in baseline.masks]
        errors = [evaluation.error for evaluation in evaluations if evaluation.error is not None]
        about = {"name": baseline.name, "kind": baseline.kind, "allocation": baseline.allocation}
        if errors:
            failed.append({**about, "reason": errors[0]})
        else:
            found.append(_contender(**about, evaluations=evaluations, note=baseline.note))
    if config.random_search:
        found += [_contender("random-search", "random_search", config.allocation, [best_of(archive, FINAL[CONTROL])])]
    return found, failed


def best_of(archive: Archive, phase: str) -> Evaluation:
    """The fittest candidate of a phase.

    Raises:
        BlendError: If all of them failed.
    """
    best = archive.best(phase)
    if best is None or best.genome is None:
        raise BlendError(f"the {phase} has no valid candidate")
    return best


def finite(answer: Examples | Failure) -> Examples | Failure:
    """A network whose metric is not a number for some example has failed."""
    if isinstance(answer, Failure) or np.isfinite(answer).all():
        return answer
    return Failure("the metric must be finite for every example")


def tested(
    rivals: Sequence[Contender], values: Mapping[bytes, Examples | Failure]
) -> tuple[list[Contender], list[Contender]]:
    """Adds the test results.

    Args:
        rivals: Who is compared.
        values: The metric's value for each test example, by phenotype.

    Returns:
        Those that have a result, with ``examples`` and ``test_metric``; and the baselines that failed.

    Raises:
        BlendError: If it is the unpruned network or the blend that failed.
    """
    found, failed = [], []
    for rival in rivals:
        answers = [values[phenotype] for phenotype in rival["phenotypes"]]
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        if failures and rival["kind"] in ("unpruned", "blend"):
            raise BlendError(f"the {rival['name']} could not be judged on test data: {failures[0].reason}")
        if failures:
            about = {key: rival[key] for key in ("name", "kind", "allocation")}
            failed.append({**about, "reason": f"on test data: {failures[0].reason}"})
            continue
        examples = np.mean(np.stack([answer for answer in answers if not isinstance(answer, Failure)]), axis=0)
        plain = {key: value for key, value in rival.items() if key != "phenotypes"}
        found.append({**plain, "test_metric": float(examples.mean()), "examples": examples})
    return found, failed


def _contender(
    name: str, kind: str, allocation: str, evaluations: Sequence[Evaluation], note: str = ""
) -> Contender:
    return {
        "name": name,
        "kind": kind,
        "allocation": allocation,
        "fitness": float(np.mean([e.fitness for e in evaluations])),
        "heldout_metric": float(np.mean([e.details["metric"] for e in evaluations])),
        "reduction": float(np.mean([e.details["reduction"] for e in evaluations])),
        "cost": float(np.mean([e.details["cost"] for e in evaluations])),
        "note": note,
        "phenotypes": [e.phenotype for e in evaluations],
    }
