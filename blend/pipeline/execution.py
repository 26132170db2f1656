"""One process' work on a run: baselines, search, polish, select, test, export; what is done already is skipped."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from blend.blended import BlendedCriterion
from blend.errors import BlendError, InputError
from blend.evaluation import HeldoutEvaluation, Settings, TestEvaluation, Workspace, in_full_precision, pack, unpack
from blend.evaluation.executors import ShippedWorkspace
from blend.objective import BlendObjective
from blend.objective.encoding import Genomes
from blend.objective.front import FrontObjective
from blend.objective.polish import CorrectionEncoding, exchanged
from blend.pipeline.contenders import (
    Contender,
    Examples,
    best_of,
    check_baselines,
    check_finalists,
    contenders,
    reaching,
    tested,
    values_on_test,
    warn_of_collapse,
    winner,
)
from blend.pipeline.evidence import verdict
from blend.pipeline.export import blended_criterion
from blend.pipeline.phase import Phase
from blend.pipeline.precision import chosen_precision, finalists
from blend.problem import Problem
from blend.progress import progress, say
from blend.report.figure import draw_result
from blend.runs import CONTROL, EXPORT, FIGURE, FINAL, POLISH, SEARCH, WORK, Run, export_at
from blend.runs.signals import Interruption, resume_command
from search.archive import Archive, Evaluation
from search.errors import SearchError
from search.executor import Executor, Failure
from search.loop import evaluate_all
from search.nsga2 import NSGA2
from search.strategies import STRATEGIES
from search.strategy import Strategy

HANDFUL = 4  # baselines a worker between two commits


class Execution:
    """One process' work on a run. Every stage leaves its result in the folder and is skipped when it is there."""

    def __init__(self, run: Run, problem: Problem, executor: Executor) -> None:
        self.run = run
        self.problem = problem
        self.config = problem.config
        self.executor = executor
        self.archive = Archive(run.evaluations())
        self.started = time.monotonic() - float(run.get("seconds", 0.0))
        scratch = str((run.folder / WORK).resolve())
        kind = Workspace if self.config.executor == "local" else ShippedWorkspace
        self.workspace = kind(scratch, self.config.task, token=f"{os.getpid()}-{time.time_ns()}")
        self.evaluate = HeldoutEvaluation(self.workspace)

    def go(self) -> None:
        """Every stage in order."""
        self._write_workspace()
        executor = self.executor
        with Interruption(self.run) as interruption:
            try:
                self._baselines(executor, interruption)
                self._choose_precision(executor, interruption)
                for phase in self._phases():
                    self._search(phase, executor, interruption)
                    self._final(phase, executor, interruption)
                self._test(executor, interruption)
            except KeyboardInterrupt:
                raise interruption.at_once() from None
            except SearchError as error:
                self._record(BlendError(str(error)), interruption)
                raise BlendError(f"{error}; go on with: {resume_command(self.run)}") from error
            except BlendError as error:
                self._record(error, interruption)
                raise
        self._export()

    def _write_workspace(self) -> None:
        config, problem = self.config, self.problem
        settings = Settings.of(config, config.cache_share)
        self.workspace.write(problem.task, problem.graph, problem.splits, settings, problem.consumer_inputs)

    def _record(self, error: BlendError, interruption: Interruption) -> None:
        with suppress(BlendError):  # it may be the very thing that cannot be written
            self.run.commit({"status": interruption.status_after(error), "error": str(error)})

    def _phases(self) -> list[str]:
        """The searches of this run, in order."""
        polish = [POLISH] if self.config.polish else []
        return [SEARCH, *polish, *([CONTROL] if self.config.random_search else [])]

    def _baselines(self, executor: Executor, interruption: Interruption) -> None:
        """Judges the unpruned network and all opponents on held-out data, and saves a handful at a time."""
        whole = np.ones(len(self.problem.graph), dtype=bool)
        masks = [whole, *(mask for problem in self.problem.shown for b in problem.baselines for mask in b.masks)]
        done = len(self.archive.history("baseline"))
        with progress("baselines", len(masks), done) as bar:
            while done < len(masks):
                interruption.check()
                some = [pack(mask) for mask in masks[done : done + HANDFUL * max(1, executor.workers)]]
                evaluations = evaluate_all(self.evaluate, self.archive, executor, some, phase="baseline")
                # Before they are kept: an accident ends this process, and not the run for good.
                check_baselines([*self.archive.history("baseline"), *evaluations], complete=False)
                self._keep(evaluations)
                done += len(some)
                bar.advance(len(some))
        check_baselines(self.archive.history("baseline"), complete=True)
        warn_of_collapse(self.problem, self.archive)

    def _keep(self, evaluations: Sequence[Evaluation]) -> None:
        self.run.commit(self._clock(), evaluations)
        for evaluation in evaluations:
            self.archive.add(evaluation)

    def _search(self, phase: str, executor: Executor, interruption: Interruption) -> None:
        """The search, polishing, or random search as the control, until there is a reason to end."""
        if self.run.get(f"{phase}-ended") is not None:
            return
        if phase == POLISH and not self._polishing.window:
            say("note: no group of the blend is cut, so that there is nothing to polish")
            return
        genomes = self._polishing if phase == POLISH else self.problem.genomes
        objective = self._objective(genomes)
        strategy = self._strategy(phase, objective)
        searching = Phase(phase, self.run, self.archive, strategy, interruption.requested, self._clock)
        if searching.go(objective, executor) == "stopped":
            raise interruption.interrupted()  # whoever asked for it may have changed their mind; the loop has ended

    @cached_property
    def _polishing(self) -> CorrectionEncoding:
        """What polishing begins with: the best blend, once that is known."""
        best, problem = best_of(self.archive, FINAL[SEARCH], self.config.reduction), self.problem
        formula, keep = problem.encoding.decode(best.genome or ()), unpack(best.phenotype, len(problem.graph))
        return CorrectionEncoding(formula, problem.blender, problem.graph, keep)

    def _objective(self, genomes: Genomes) -> BlendObjective:
        problem, kind = self.problem, BlendObjective if self.config.reductions is None else FrontObjective
        return kind(
            genomes, problem.blender, problem.graph, problem.cost, problem.floor, self.config.reduction,
            replace(self.evaluate, half=self.run.get("precision") == "bf16"),
        )  # fmt: skip

    def _choose_precision(self, executor: Executor, interruption: Interruption) -> None:
        """Settles once for the whole run what the layers of its candidates compute in."""
        if self.run.get("precision") is None:
            chosen = chosen_precision(self.problem, self.evaluate, executor, interruption.check)
            self.run.commit({**chosen, **self._clock()})

    def _final(self, phase: str, executor: Executor, interruption: Interruption) -> None:
        """Judges the best of a search in full precision: only that is compared. What is known is not judged again.

        The best baseline that the search could begin with is among it, so that nothing is lost to half precision, nor
        to a budget that did not reach as far.
        """
        if self.archive.history(FINAL[phase]):
            return
        interruption.check()
        history = self.archive.history(phase)
        best = [e for r in self.config.shown for e in finalists(reaching(history, r))]
        genomes = {in_full_precision(e.phenotype, len(self.problem.graph)): e.genome for e in best}
        for phenotype, genome in self._best_seeds().items() if phase == SEARCH else ():
            genomes.setdefault(phenotype, genome)
        judged = evaluate_all(
            self.evaluate, self.archive, executor, list(genomes), phase=FINAL[phase], genomes=list(genomes.values())
        )
        check_finalists(judged)
        self._keep(judged)

    def _best_seeds(self) -> dict[bytes, Sequence[float] | None]:
        """The fittest baseline that is a genome, at each reduction that is compared; by phenotype in full precision."""
        objective = self._objective(self.problem.genomes)
        seeds = {in_full_precision(objective.phenotype(s), len(self.problem.graph)): s for s in self.problem.seeds}
        judged = [e for phenotype in seeds if (e := self.archive.get(phenotype, FINAL[SEARCH])) is not None]
        fittest = [e for r in self.config.shown for e in finalists(reaching(judged, r))[:1]]
        return {e.phenotype: seeds[e.phenotype] for e in fittest}

    def _clock(self) -> dict[str, Any]:
        """Seconds that the run has taken up to now, those of earlier processes included."""
        return {"seconds": round(time.monotonic() - self.started, 3)}

    def _strategy(self, phase: str, objective: BlendObjective) -> Strategy:
        """Where the last commit has left it."""
        make = STRATEGIES[{SEARCH: self.config.strategy, POLISH: "swap", CONTROL: "random"}[phase]]
        if phase == SEARCH and isinstance(objective, FrontObjective):
            make = partial(NSGA2, cost=objective.cost_of)
        seeds: list[Sequence[float]] = []
        if phase == SEARCH:
            seeds = self.problem.seeds
        elif phase == POLISH:
            seeds = [self._polishing.unpolished]
        state = self.run.get(f"{phase}-state")
        space, config = objective.encoding.space, self.config
        try:
            strategy = make(space, population=config.population, seed=config.seed, initial=seeds)
            if state is not None:
                strategy.load_state_dict(state)
        except SearchError as error:
            raise InputError(f"strategy '{config.strategy}' cannot go on with this run: {error}") from error
        return strategy

    def _test(self, executor: Executor, interruption: Interruption) -> None:
        """Opens the test split, once: for the blends and everything that they are compared with."""
        if self.run.get("result") is not None:
            return
        found = self.archive.history(FINAL[SEARCH])
        problems = [p for p in self.problem.shown if p is self.problem or reaching(found, p.config.reduction)]
        contests = [contenders(problem, self.archive) for problem in problems]
        phenotypes = list(dict.fromkeys(p for rivals, _ in contests for rival in rivals for p in rival["phenotypes"]))
        interruption.check()
        values = values_on_test(TestEvaluation(self.workspace), phenotypes, executor, interruption.check)
        results = {p.config.reduction: self._verdict(*c, values) for p, c in zip(problems, contests, strict=True)}
        front = [{"reduction": reduction, **result} for reduction, result in results.items()]
        kept = {"result": results[self.config.reduction], **({"front": front} if self.config.reductions else {})}
        self.run.commit({**kept, **self._clock()})

    def _verdict(
        self, rivals: list[Contender], failed: list[Contender], values: dict[bytes, Examples | Failure]
    ) -> dict[str, Any]:
        rivals, failed_on_test = tested(rivals, values)
        result = {**verdict(rivals, self.config.seed), "failed": failed + failed_on_test}
        if "polish" in result:
            reduction = self.config.reduction
            both = (winner(self.archive, reduction), best_of(self.archive, FINAL[SEARCH], reduction))
            keep, before = (unpack(blend.phenotype, len(self.problem.graph)) for blend in both)
            result["polish"]["exchanged"] = exchanged(keep, before)
        return result

    def _export(self) -> None:
        """Writes the blended criteria and the figure, and closes the run."""
        files = {EXPORT: self._criterion(self.config.reduction, self.run.get("result"))}
        files |= {export_at(p["reduction"]): self._criterion(p["reduction"], p) for p in self.run.get("front", [])}
        try:
            for name, criterion in reversed(files.items()):  # the one that says that they are there comes last
                criterion.save(self.run.folder / name)
        except InputError as error:
            raise BlendError(f"{error}; go on with: {resume_command(self.run)}") from error
        draw_result(self.run, self.run.folder / FIGURE)
        self.run.commit({"status": "finished"})

    def _criterion(self, reduction: float, result: dict[str, Any]) -> BlendedCriterion:
        """What removes at least so much best, to be cut where it was searched."""
        best, genome = winner(self.archive, reduction), best_of(self.archive, FINAL[SEARCH], reduction).genome or ()
        blend = self.problem.genomes.decode(genome)
        polished = self._polishing.decode(best.genome or ()) if best.phase == FINAL[POLISH] else None
        requested = self._objective(self.problem.genomes).requested(genome)
        return blended_criterion(self.problem.at(requested), blend, polished, result)
