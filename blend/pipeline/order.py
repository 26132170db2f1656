"""How a run begins, with its scores, and how a stopped one goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

from blend.config import SearchConfig
from blend.disk import durably
from blend.errors import InputError
from blend.evaluation.executors import open_executor
from blend.evaluation.workspace import check_portable
from blend.pipeline.execution import Execution
from blend.pipeline.same_task import check_same_task, marks, warn_of_another_machine
from blend.problem import Problem, prepare
from blend.progress import say
from blend.runs import SCORES, NameTaken, Run, check_free


def start(config: SearchConfig, folder: Path, another: Callable[[], Path] | None = None) -> Run:
    """Runs a search from the beginning to the exported file.

    The run folder appears once everything that bad input could break has been checked.

    Args:
        config: What is asked for.
        folder: Of the run.
        another: Names another folder, should that one have been taken by the time when it is to appear.

    Raises:
        InputError: If something given is wrong; no folder is left then.
        Interrupted: If the run was stopped; its state is saved.
    """
    check_free(folder)
    with open_executor(config) as executor:
        problem = prepare(config, check=check_portable)
        problem.check_reachable()
        _ = problem.consumer_inputs  # gathered, or refused, before there is a folder
        run = _created(folder, config, another)
        with run.writing():
            _keep_scores(run, problem)
            Execution(run, problem, executor).go()
    return run


def _created(folder: Path, config: SearchConfig, another: Callable[[], Path] | None) -> Run:
    while True:
        try:
            return Run.create(folder, config)
        except NameTaken:
            if another is None:
                raise
            folder = another()
            say(f"note: another search has taken the name meanwhile; this one is '{folder.name}'")


def resume(run: Run, **elsewhere: Any) -> Run:
    """Goes on with a run that was stopped or whose process is gone, exactly where its last commit was.

    Relative paths in the task's options count from the folder that the search was started in.

    Args:
        run: The run.
        elsewhere: ``workers``, ``timeout``, ``cache_memory``, ``executor`` and ``address`` that take the place of what
            it began with.

    Raises:
        InputError: If it is running or finished, the task is not what it was, or the workers cannot be reached.
    """
    run.check_resumable()
    here = Run(run.folder.resolve())
    config = here.config.moved(**elsewhere)
    if not Path(config.directory).is_dir():
        raise InputError(f"run '{run.name}' cannot go on: '{config.directory}', where it was started, is gone")
    with here.writing(), chdir(config.directory), open_executor(config) as executor:
        if here.get("identity") is None:  # it ended before its scores were whole
            problem = prepare(config)
            _keep_scores(here, problem)
        else:
            problem = prepare(config, here.folder / SCORES)
            check_same_task(here, problem)
            warn_of_another_machine(here, config.device)
        here.commit({"status": "running", "error": None})
        Execution(here, problem, executor).go()
    return run


def _keep_scores(run: Run, problem: Problem) -> None:
    """Puts down what is searched among: the scores, and then that they are whole, and what they are of."""
    with durably(run.folder / SCORES) as draft:
        problem.table.save(draft)
    run.commit({"status": "running", **marks(problem), "unpruned_cost": problem.cost.full})
