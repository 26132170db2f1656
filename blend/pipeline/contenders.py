"""Who is compared on test data, with what result, and which baselines have none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blend.errors import BlendError
from blend.evaluation import TestEvaluation, pack
from blend.objective.baselines import UNRANKED
from blend.problem import Problem
from blend.progress import progress, say
from blend.runs import CONTROL, FINAL, POLISH, SEARCH
from blend.task import accuracy
from search.archive import Archive, Evaluation
from search.errors import SearchError
from search.executor import Executor, Failure

COLLAPSE = 0.25  # below this share of the way from chance to the unpruned metric, the loss misleads

Contender = dict[str, Any]
Examples = NDArray[np.float64]


def contenders(problem: Problem, archive: Archive) -> tuple[list[Contender], list[Contender]]:
    """Unpruned network, blend, baselines and random search with their held-out results; and those without, and why.

    Where polishing has found something better, the blend is the polished one, and the blend before that is a baseline.
    """
    config = problem.config
    judged = {e.phenotype: e for e in archive.history("baseline")}
    whole = pack(np.ones(len(problem.graph), dtype=bool))
    found = [contender("unpruned", "unpruned", "", [judged[whole]])]
    best, unpolished = winner(archive, config.reduction), best_of(archive, FINAL[SEARCH], config.reduction)
    found += [contender("blend", "blend", config.allocation, [best])]
    if best is not unpolished:
        found += [contender("blend-unpolished", "unpolished", config.allocation, [unpolished])]
    there = {(baseline.name, baseline.allocation) for baseline in problem.baselines}
    failed = [
        {"name": name, "kind": "single", "allocation": how, "reason": UNRANKED[how]}
        for how, name in product(problem.contest.allocations, problem.table.criteria)
        if (name, how) not in there
    ]
    for baseline in problem.baselines:
        evaluations = [judged[pack(mask)] for mask in baseline.masks]
        errors = [evaluation.error for evaluation in evaluations if evaluation.error is not None]
        about = {"name": baseline.name, "kind": baseline.kind, "allocation": baseline.allocation}
        if errors:
            failed.append({**about, "reason": errors[0]})
        else:
            found.append(contender(**about, evaluations=evaluations, note=baseline.note))
    if config.random_search:
        about = {"name": "random-search", "kind": "random_search", "allocation": config.allocation}
        if reaching(archive.history(FINAL[CONTROL]), config.reduction):
            found.append(contender(**about, evaluations=[best_of(archive, FINAL[CONTROL], config.reduction)]))
        else:
            failed.append({**about, "reason": f"no valid candidate of reduction {config.reduction:g}"})
    return found, failed


def reaching(evaluations: Iterable[Evaluation], reduction: float) -> list[Evaluation]:
    """Those that have succeeded and remove at least so much."""
    return [e for e in evaluations if e.error is None and e.details["reduction"] >= reduction]


def best_of(archive: Archive, phase: str, reduction: float) -> Evaluation:
    """The fittest candidate of a phase that removes at least so much; the first among equals.

    Raises:
        BlendError: If there is none.
    """
    candidates = reaching(archive.history(phase), reduction)
    if not candidates:
        raise BlendError(f"the {phase} has no valid candidate of reduction {reduction:g}")
    return max(candidates, key=lambda candidate: candidate.fitness)


def winner(archive: Archive, reduction: float) -> Evaluation:
    """What is exported: the fittest blend, or what polishing made of it if that is fitter.

    Raises:
        BlendError: If no candidate of the search has succeeded and removes so much.
    """
    unpolished, polished = best_of(archive, FINAL[SEARCH], reduction), archive.best(FINAL[POLISH])
    return unpolished if polished is None or polished.fitness <= unpolished.fitness else polished


def check_baselines(evaluations: Sequence[Evaluation], *, complete: bool) -> None:
    """Goes on without those that failed, unless it is the unpruned network or all of them.

    Args:
        evaluations: Of the unpruned network and the baselines, in this order.
        complete: Whether these are all. If not, only such count as failed of which nothing came back, as after an
            accident, and not those that are not a number.

    Raises:
        SearchError: If it is.
    """
    unpruned, *rest = evaluations
    if unpruned.error is not None:
        raise SearchError(f"the unpruned network could not be judged: {unpruned.error}")
    if rest and all(e.error is not None and (complete or not e.details) for e in rest):
        raise SearchError(f"none of the {len(rest)} baselines could be judged; the first: {rest[0].error}")


def check_finalists(evaluations: Sequence[Evaluation]) -> None:
    """A search must not lose its best to an accident.

    Raises:
        SearchError: Nothing came back of one that was judged now.
    """
    for evaluation in evaluations:
        if evaluation.error is not None and not (evaluation.cached or evaluation.details):
            raise SearchError(f"one of the best could not be judged in full precision: {evaluation.error}")


def warn_of_collapse(problem: Problem, archive: Archive) -> None:
    """At high reductions recalibrated networks fall to chance, where the loss says nothing; or were there before."""
    targets, config = problem.splits.heldout.targets, problem.config
    if targets.is_floating_point() or targets.ndim > 1:
        return  # no classification, and so no level of chance
    unpruned, *rest = archive.history("baseline")
    unpruned_metric = unpruned.details["metric"]
    best = max((e.details["metric"] for e in reaching(rest, config.reduction)), default=unpruned_metric)
    counts = np.unique(targets.numpy(), return_counts=True)[1]
    chance = 1.0 / len(counts)
    if problem.task.metric is accuracy and unpruned_metric <= (constant := counts.max() / counts.sum()):
        say(
            f"warning: on held-out data the unpruned network has an accuracy of {unpruned_metric:.3f}, and one answer "
            f"for all {constant:.3f}: has it its trained weights, and inputs and labels as in training?"
        )
    elif config.fitness != "loss" or not chance < unpruned_metric <= 1:
        return  # the metric is no accuracy, of whose chance nothing is known
    elif best < chance + COLLAPSE * (unpruned_metric - chance):
        say(
            f"warning: at reduction {config.reduction:g} even the best baseline falls to {best:.3f} "
            f"(unpruned {unpruned_metric:.3f}); the loss misleads there: consider --fitness metric"
        )


def values_on_test(
    evaluate: TestEvaluation,
    phenotypes: Sequence[bytes],
    executor: Executor,
    check: Callable[[], None] = lambda: None,
    title: str = "test",
) -> dict[bytes, Examples | Failure]:
    """The metric's value for each test example, by phenotype.

    Args:
        evaluate: Judges on test data.
        phenotypes: What to judge.
        executor: Where.
        check: Called between two of them; raises to stop.
        title: What the bar is called.
    """
    values: dict[bytes, Examples | Failure] = {}
    with progress(title, len(phenotypes)) as bar:
        for index, answer in executor.run(evaluate, phenotypes):
            values[phenotypes[index]] = _finite(answer)
            bar.advance(1)
            if len(values) < len(phenotypes):
                check()
    return values


def _finite(answer: Examples | Failure) -> Examples | Failure:
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
        if failures and rival["kind"] in ("unpruned", "blend", "unpolished"):
            raise BlendError(f"the {rival['name']} could not be judged on test data: {failures[0].reason}")
        if failures:
            about = {key: rival[key] for key in ("name", "kind", "allocation")}
            failed.append({**about, "reason": f"on test data: {failures[0].reason}"})
            continue
        examples = np.mean(np.stack([answer for answer in answers if not isinstance(answer, Failure)]), axis=0)
        plain = {key: value for key, value in rival.items() if key != "phenotypes"}
        found.append({**plain, "test_metric": float(examples.mean()), "examples": examples})
    return found, failed


def contender(name: str, kind: str, allocation: str, evaluations: Sequence[Evaluation], note: str = "") -> Contender:
    """Who is compared, with the held-out results: means, where there are several masks."""
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
