"""The loop that joins strategy, objective, archive and executor."""

import math
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Protocol

from search.archive import WORST_FITNESS, Archive, Evaluation
from search.errors import SearchError, SearchValueError
from search.executor import Executor, Failure
from search.novelty import EXHAUSTED, IsKnown
from search.strategy import Strategy

Answer = dict[str, Any]
OnEvaluation = Callable[[int, int, Answer, str], None]
OnGeneration = Callable[[list[Evaluation], dict[str, Any]], None]


_HOPELESS = 8  # failures in a row, after which nothing works any more


class Objective(Protocol):
    """What is searched for: genome → phenotype in the driver, phenotype → answer in the workers."""

    def phenotype(self, genome: Sequence[float]) -> bytes:
        """Return what a genome stands for; cheap, and equal for genomes that can't differ in fitness."""
        ...

    @property
    def evaluate(self) -> Callable[[bytes], Answer]:
        """A picklable, deterministic function; its JSON-able answer holds at least ``"fitness"``, to be maximised."""
        ...


def search(
    strategy: Strategy,
    objective: Objective,
    archive: Archive,
    executor: Executor,
    *,
    phase: str,
    evaluations: int,
    control: bool = False,
    generations: int | None = None,
    patience: int | None = None,
    target: Callable[[Evaluation], bool] | None = None,
    against: Callable[[Evaluation], Callable[[bytes], Answer]] | None = None,
    on_evaluation: OnEvaluation | None = None,
    on_generation: OnGeneration | None = None,
    should_stop: Callable[[], str | None] | None = None,
) -> str:
    """Search until there is a reason to end, generation by generation.

    Neither the archive nor the strategy depends on the number of workers or the order in which they finish. To resume,
    pass an archive with the history so far and a strategy with the state that belongs to it.

    Args:
        strategy: Proposes and learns.
        objective: Judges.
        archive: Grows by this phase's evaluations; phenotypes it holds, of whatever phase, are not computed again,
            unless another phase gave them up.
        executor: Computes.
        phase: Name under which the evaluations are kept.
        evaluations: Budget of the phase, cached evaluations included; the last generation is cut to meet it exactly.
        control: Whether to propose what other phases know, too: it is what they are compared with.
        generations: Budget in generations, or None.
        patience: End after so many generations without a new best, or None.
        target: Says of the best evaluation whether it is good enough to end.
        against: Makes, of the evaluation that a proposal has to surpass to have any influence, what is used instead of
            the objective's ``evaluate``: it may end as soon as it is clear that a phenotype does not surpass it, with a
            fitness below.
        on_evaluation: Called with (evaluations of this generation known so far, evaluations of this generation,
            answer, phase) in the order of completion.
        on_generation: Called once a generation with its evaluations and the strategy's state after it: all that must
            be kept to resume, to be written in one transaction.
        should_stop: Asked before each generation for a reason to end that is none of these, such as the time.

    Returns:
        Why it ended: ``"target"``, ``"evaluations"``, ``"generations"``, ``"patience"``, ``"exhausted"`` (nothing was
        new for `EXHAUSTED` generations) or the answer of `should_stop`. All but the last depend on the history alone,
        so that a resumed search ends where it would have ended.

    Raises:
        SearchError: Every evaluation of a generation failed, of which nothing is kept then; or the strategy's state
            does not belong to the archive.
    """
    _check(strategy, archive, phase, evaluations=evaluations, generations=generations, patience=patience)
    while True:
        left = evaluations - len(archive.history(phase))
        best = archive.best(phase)
        if best is not None and target is not None and target(best):
            return "target"
        if left <= 0:
            return "evaluations"
        if generations is not None and strategy.generation >= generations:
            return "generations"
        if best is not None and patience is not None and strategy.generation - 1 - best.generation >= patience:
            return "patience"
        if strategy.generation - 1 - archive.newest(phase) >= EXHAUSTED:
            return "exhausted"
        if should_stop is not None and (reason := should_stop()) is not None:
            return reason
        genomes = strategy.ask(_is_known(objective, archive, phase if control else None), limit=left)
        phenotypes = [objective.phenotype(genome) for genome in genomes]
        batch = evaluate_all(
            _evaluator(strategy, objective, archive, phase, against), archive, executor, phenotypes,
            phase=phase, generation=strategy.generation, genomes=genomes, on_evaluation=on_evaluation,
        )  # fmt: skip
        _check_alive(archive, phase, batch)
        for evaluation in batch:
            archive.add(evaluation)
        strategy.tell(genomes, [evaluation.fitness for evaluation in batch])
        if on_generation is not None:
            on_generation(batch, strategy.state_dict())


def _evaluator(
    strategy: Strategy,
    objective: Objective,
    archive: Archive,
    phase: str,
    against: Callable[[Evaluation], Callable[[bytes], Answer]] | None,
) -> Callable[[bytes], Answer]:
    genome = None if against is None else strategy.rival
    rival = None if genome is None else archive.get(objective.phenotype(genome), phase)
    return objective.evaluate if against is None or rival is None else against(rival)


def evaluate_all(
    evaluate: Callable[[bytes], Answer],
    archive: Archive,
    executor: Executor,
    phenotypes: Sequence[bytes],
    *,
    phase: str,
    generation: int = 0,
    genomes: Sequence[Sequence[float] | None] | None = None,
    on_evaluation: OnEvaluation | None = None,
) -> list[Evaluation]:
    """Evaluate each phenotype that the archive does not hold once; what fails is an evaluation, too.

    Args:
        evaluate: The objective's.
        archive: What is known; it is not changed.
        executor: Computes.
        phenotypes: What to evaluate.
        phase: Name under which the evaluations are to be kept.
        generation: Their generation.
        genomes: Where the phenotypes come from, if from genomes.
        on_evaluation: As for `search`.

    Returns:
        One evaluation a phenotype, in the given order, numbered on from the archive's last.
    """
    report = None if on_evaluation is None else partial(_report, on_evaluation, phase)
    kept = {phenotype: found for phenotype in phenotypes if (found := archive.get(phenotype, phase)) is not None}
    results = _compute(evaluate, kept, executor, phenotypes, report)
    origins: Sequence[Sequence[float] | None] = [None] * len(phenotypes) if genomes is None else genomes
    return _batch(archive, phase, generation, origins, phenotypes, kept, results)


@dataclass(frozen=True)
class _Result:
    fitness: float
    details: Answer
    seconds: float
    error: str | None


def _check(strategy: Strategy, archive: Archive, phase: str, **limits: int | None) -> None:
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise SearchValueError(f"{name} must be at least 1, got {limit}")
    history = archive.history(phase)
    expected = history[-1].generation + 1 if history else 0
    if strategy.generation != expected:
        raise SearchValueError(
            f"strategy must be at generation {expected}, where the archive's history of phase {phase!r} ends, "
            f"got {strategy.generation}: load the state that was saved with the history"
        )


def _is_known(objective: Objective, archive: Archive, phase: str | None) -> IsKnown:
    """Return the question whether a phase, or any, holds a phenotype or it was proposed before in this generation."""
    proposed: set[bytes] = set()

    def is_known(genome: list[float]) -> bool:
        phenotype = objective.phenotype(genome)
        known = archive.holds(phenotype, phase) or phenotype in proposed
        proposed.add(phenotype)
        return known

    return is_known


def _compute(
    evaluate: Callable[[bytes], Answer],
    kept: Container[bytes],
    executor: Executor,
    phenotypes: Sequence[bytes],
    report: Callable[[int, int, _Result], None] | None,
) -> dict[bytes, _Result]:
    """Evaluate each phenotype that is not kept once."""
    copies = Counter(phenotype for phenotype in phenotypes if phenotype not in kept)
    new = sorted(copies)  # those that begin alike one after the other
    done = len(phenotypes) - copies.total()
    results: dict[bytes, _Result] = {}
    for index, outcome in executor.run(partial(_timed, evaluate), new):
        result = results[new[index]] = _result(outcome)
        done += copies[new[index]]
        if report is not None:
            report(done, len(phenotypes), result)
    return results


def _timed(evaluate: Callable[[bytes], Answer], phenotype: bytes) -> tuple[Answer, float]:
    start = time.perf_counter()
    answer = evaluate(phenotype)
    return answer, time.perf_counter() - start


def _result(outcome: tuple[Answer, float] | Failure) -> _Result:
    if isinstance(outcome, Failure):
        return _Result(WORST_FITNESS, {}, 0.0, outcome.reason)
    answer, seconds = outcome
    if not isinstance(answer, dict) or not isinstance(answer.get("fitness"), Real):
        return _Result(WORST_FITNESS, {}, seconds, f'answer must be a dict with a number "fitness", got {answer!r}')
    for name, value in answer.items():
        if not _is_finite(value):
            about = {name: value if _is_finite(value) else str(value) for name, value in answer.items()}
            return _Result(WORST_FITNESS, about, seconds, f"{name} must be finite, got {value}")
    return _Result(float(answer["fitness"]), answer, seconds, None)


def _is_finite(value: Any) -> bool:
    """Whether all numbers among a value of an answer are."""
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, Real) or math.isfinite(value)


def _report(on_evaluation: OnEvaluation, phase: str, done: int, total: int, result: _Result) -> None:
    answer = {**result.details, "fitness": result.fitness}
    on_evaluation(done, total, answer if result.error is None else {**answer, "error": result.error}, phase)


def _batch(
    archive: Archive,
    phase: str,
    generation: int,
    genomes: Sequence[Sequence[float] | None],
    phenotypes: Sequence[bytes],
    kept: Mapping[bytes, Evaluation],
    results: Mapping[bytes, _Result],
) -> list[Evaluation]:
    """Return the generation's evaluations in the order asked, whatever the order of completion."""
    batch: list[Evaluation] = []
    computed: set[bytes] = set()
    for genome, phenotype in zip(genomes, phenotypes, strict=True):
        result = kept.get(phenotype) or results[phenotype]
        cached = phenotype in kept or phenotype in computed
        computed.add(phenotype)
        batch.append(
            Evaluation(
                number=len(archive) + len(batch),
                phase=phase,
                generation=generation,
                genome=None if genome is None else tuple(genome),
                phenotype=phenotype,
                fitness=result.fitness,
                details=result.details,
                seconds=0.0 if cached else result.seconds,
                cached=cached,
                error=result.error,
            )
        )
    return batch


def _check_alive(archive: Archive, phase: str, batch: list[Evaluation]) -> None:
    """Raise if nothing works any more.

    Once others have succeeded, a few in a row may fail, as may those that are known to, and any number with an answer
    that is not finite: whatever worked it out works.
    """
    if any(evaluation.error is None for evaluation in batch):
        return
    new = [evaluation for evaluation in [*archive.history(phase), *batch] if not evaluation.cached]
    may_work = all(e.cached for e in batch) or any(e.details or e.error is None for e in new[-_HOPELESS:])
    if archive.best(phase) is None or not may_work:
        raise SearchError(
            f"at least one evaluation of a generation must succeed, but all {len(batch)} of generation "
            f"{batch[0].generation} of phase {phase!r} failed; the first: {batch[0].error}"
        )
