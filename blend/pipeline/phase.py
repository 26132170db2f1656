"""One search of a run, by its strategy, to polish, or by chance as the control: limits, progress, what is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from blend.limits import GAIN, Target, duration, ending
from blend.objective import BlendObjective
from blend.progress import Progress, progress, say
from blend.runs import CONTROL, POLISH, SEARCH, Run
from blend.runs.course import conquered, course, generation_record, key, say_when_dry
from search.archive import Archive, Evaluation
from search.executor import Executor
from search.loop import search
from search.strategy import Strategy

TITLES = {SEARCH: "search", POLISH: "polish", CONTROL: "random search (control)"}


class Phase:
    """A search from where the last commit has left it to its end.

    Args:
        name: ``search``, ``polish`` or ``random``.
        run: Where it is kept.
        archive: Everything evaluated so far; grows.
        strategy: In the state of the last commit.
        stop_requested: Whether somebody wants it to stop.
        clock: What to commit of the run's time.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        archive: Archive,
        strategy: Strategy,
        stop_requested: Callable[[], bool],
        clock: Callable[[], dict[str, Any]],
    ) -> None:
        self.name, self.run, self.archive, self.strategy = name, run, archive, strategy
        self.stop_requested, self.clock = stop_requested, clock
        self.config = run.config
        self.time = self.config.time if name == SEARCH else None
        self.is_timed = name == SEARCH and self.config.is_timed
        self.budget = self._budget()
        self.began = time.monotonic() - float(run.get(f"{name}-seconds", 0.0))
        self.done = len(archive.history(name))
        self.boost = strategy.proposals()["boost"]
        self.reductions = self.config.reductions
        self.volumes = [record["hypervolume"] for record in course(run, name)] if self.reductions else []

    def go(self, objective: BlendObjective, executor: Executor) -> str:
        """Searches until there is a reason to end, and returns it; ``stopped`` is not the end."""
        self.shown = self._position()
        with progress(TITLES[self.name], self._length(), self.shown) as bar:
            outcome = search(
                self.strategy, objective, self.archive, executor,
                phase=self.name, control=self.name == CONTROL, evaluations=self.budget, **self._limits(),
                should_stop=self._should_stop,
                against=objective.against if self.config.racing and self.reductions is None else None,
                on_evaluation=lambda done_now, *_: self._show(bar, done_now),
                on_generation=lambda evaluations, state: self._commit(bar, evaluations, state),
            )  # fmt: skip
        if outcome != "stopped":
            self.run.commit({f"{self.name}-ended": outcome, **self.clock()})
            if self.name == SEARCH:
                say(f"the search has ended: {ending(outcome, self.config)}")
        return outcome

    def _budget(self) -> int:
        """In evaluations: the control gets as many as all that it is held against."""
        if self.name == CONTROL:
            return len(self.archive.history(SEARCH)) + len(self.archive.history(POLISH))
        return self.config.polish if self.name == POLISH else self.config.evaluations - self.config.polish

    def _limits(self) -> dict[str, Any]:
        """What ends a search beside its evaluations and its time; the control only gets as many evaluations."""
        if self.name == CONTROL:
            return {}
        target = None if self.config.target is None else Target.parse(self.config.target).is_reached
        limits = {"patience": None if self.reductions else self.config.patience, "target": target}
        return limits if self.name == POLISH else {**limits, "generations": self.config.generations}

    def _should_stop(self) -> str | None:
        if self.stop_requested():
            return "stopped"
        if self._stagnates():
            return "patience"
        is_over = self.done and self.time is not None and self._seconds() >= self.time
        return "time" if is_over else None

    def _stagnates(self) -> bool:
        """Whether patience with a front is at its end; the control gets as many evaluations in any case."""
        before = None if self.config.patience is None else self.volumes[: -self.config.patience]
        return bool(self.name == SEARCH and before and self.volumes[-1] <= (1.0 + GAIN) * before[-1])

    def _seconds(self) -> float:
        """Of all processes that have worked on it."""
        return time.monotonic() - self.began

    def _commit(self, bar: Progress, evaluations: Sequence[Evaluation], state: dict[str, Any]) -> None:
        self.done += len(evaluations)
        record = generation_record(self.strategy, evaluations)
        if self.reductions is not None:
            record["hypervolume"] = conquered(self.archive, self.name, self.reductions)
            self.volumes.append(record["hypervolume"])
        say_when_dry(record, self.boost)
        self.boost = record["boost"]
        self._show(bar, 0)
        kept = {f"{self.name}-state": state, key(self.name, record["generation"]): record}
        self.run.commit({**kept, f"{self.name}-seconds": round(self._seconds(), 3), **self.clock()}, evaluations)

    def _length(self) -> int:
        """Of the bar: in evaluations, or in seconds where nothing but the time is a limit."""
        return round(self.time) if self.is_timed and self.time is not None else self.budget

    def _position(self, done_now: int = 0) -> int:
        return min(int(self._seconds()), self._length()) if self.is_timed else self.done + done_now

    def _show(self, bar: Progress, done_now: int) -> None:
        position = self._position(done_now)
        bar.advance(position - self.shown, **self._fields(done_now))
        self.shown = position

    def _fields(self, done_now: int) -> dict[str, Any]:
        best, proposals = self.archive.best(self.name), self.strategy.proposals()
        fields: dict[str, Any] = {}
        if self.is_timed:
            fields["evaluations"] = str(self.done + done_now)
        if self.time is not None:
            fields["time"] = f"{duration(self._seconds())} of {duration(self.time)}"
        fields["generation"] = self.strategy.generation + (done_now > 0)  # the one in progress, or the last
        if self.volumes:
            fields["hypervolume"] = self.volumes[-1]
        elif best is not None and self.reductions is None:
            fields |= {"fitness": best.fitness, "metric": best.details["metric"]}
        if proposals["known"]:
            fields["known"] = f"{proposals['known']} of {proposals['proposed']}"
        if proposals["boost"] > 1.0:
            fields["varied"] = f"×{proposals['boost']:.2g}"
        return fields
