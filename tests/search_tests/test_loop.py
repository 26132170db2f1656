import json
import math
import struct
from dataclasses import astuple, replace

import pytest

from search import STRATEGIES, WORST_FITNESS, Archive, Evolution, LocalExecutor, RandomSearch, SearchError, search
from search.loop import _check_alive
from search.novelty import EXHAUSTED

from .toy import INITIAL, SPACE, DyingSphere, Inline, Sphere, fitness, sphere, unpack


def new_strategy(kind="ga"):
    return STRATEGIES[kind](SPACE, population=8, seed=1, initial=() if kind == "random" else INITIAL)


def computed(archive):
    """Number of evaluations that were not copied from earlier ones."""
    return sum(not e.cached for e in archive)


def run(evaluations=30, strategy=None, archive=None, executor=None, objective=None, **kwargs):
    strategy, archive = strategy or new_strategy(), Archive() if archive is None else archive
    ended = search(
        strategy,
        objective or Sphere(),
        archive,
        executor or Inline(),
        phase=kwargs.pop("phase", "search"),
        evaluations=evaluations,
        **kwargs,
    )
    return strategy, archive, ended


def outcome(strategy, archive):
    """Everything but the time it took."""
    return [astuple(replace(e, seconds=0.0)) for e in archive], strategy.state_dict()


def test_spends_the_budget_exactly_and_numbers_in_the_order_asked():
    strategy, archive, ended = run(30)
    assert ended == "evaluations"
    assert [e.number for e in archive] == list(range(30))
    assert [e.generation for e in archive] == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 6
    assert [list(e.genome) for e in archive.history()[:3]] == INITIAL
    for e in archive:
        assert e.fitness == fitness(unpack(e.phenotype))
        assert e.details == sphere(e.phenotype)
        assert e.error is None
        assert e.seconds > 0 or e.cached
    assert strategy.best[1] == archive.best().fitness


def test_nothing_is_computed_twice():
    executor, archive = Inline(), Archive()
    run(40, executor=executor, archive=archive, objective=Sphere(digits=0))
    assert len(executor.ran) == len(set(executor.ran)) == computed(archive)
    run(40, RandomSearch(SPACE, population=8, seed=1), archive, executor, Sphere(digits=0), phase="random")
    assert len(executor.ran) == len(set(executor.ran)) == computed(archive)
    again = Inline()
    run(40, archive=Archive(replace(e, phase="old") for e in archive), executor=again, objective=Sphere(digits=0))
    assert not set(again.ran) & set(executor.ran)


def test_a_control_proposes_what_others_know_and_takes_over_what_they_judged_to_the_end():
    def at_random():
        return RandomSearch(SPACE, population=8, seed=1)

    alone = run(16, at_random(), objective=Sphere(digits=0))[1].history()
    others = [replace(e, phase="other", fitness=-9.0, details={"share": 0.5}) if e.number % 2 else e for e in alone]
    others = [replace(e, phase="other") for e in others]
    executor, archive = Inline(), Archive(others)
    run(16, at_random(), archive, executor, Sphere(digits=0), phase="random", control=True)
    found = archive.history("random")
    assert [(e.genome, e.fitness) for e in found] == [(e.genome, e.fitness) for e in alone]
    assert set(executor.ran) == {e.phenotype for e in others if e.given_up} - {e.phenotype for e in others[::2]}
    archive = Archive(others)
    run(16, at_random(), archive, objective=Sphere(digits=0), phase="random")
    assert [e.genome for e in archive.history("random")] != [e.genome for e in alone]


def test_equal_phenotypes_inside_a_generation_are_computed_once():
    strategy = Evolution(SPACE, population=3, seed=0, initial=[INITIAL[0], INITIAL[0], INITIAL[1]])
    executor = Inline()
    _, archive, _ = run(3, strategy, executor=executor)
    assert len(executor.ran) == 2
    assert [e.cached for e in archive] == [False, True, False]
    assert archive.history()[0].fitness == archive.history()[1].fitness
    assert archive.history()[1].seconds == 0.0


@pytest.mark.parametrize("kind", [name for name in STRATEGIES if name != "swap"])  # it needs another space
def test_the_same_for_one_and_two_workers_and_in_the_driver(kind):
    outcomes = [outcome(*run(28, new_strategy(kind))[:2])]
    for workers in (1, 2):
        with LocalExecutor(workers) as executor:
            outcomes.append(outcome(*run(28, new_strategy(kind), executor=executor)[:2]))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_killed_workers_change_nothing(tmp_path):
    with LocalExecutor(2) as executor:
        survived = run(28, executor=executor, objective=Sphere(DyingSphere(tmp_path), digits=0))
    assert list(tmp_path.iterdir())  # some were killed
    assert outcome(*survived[:2]) == outcome(*run(28, objective=Sphere(digits=0))[:2])


@pytest.mark.parametrize("kind", [name for name in STRATEGIES if name != "swap"])  # it needs another space
@pytest.mark.parametrize("stop", [0, 1, 2, 3, 4])
def test_stopped_and_resumed_is_as_never_stopped(kind, stop):
    whole = outcome(*run(37, new_strategy(kind))[:2])
    strategy, archive = new_strategy(kind), Archive()
    _, _, ended = run(37, strategy, archive, should_stop=lambda: [None, "stopped"][strategy.generation == stop])
    assert (ended, strategy.generation) == ("stopped", stop)
    resumed = new_strategy(kind)
    resumed.load_state_dict(json.loads(json.dumps(strategy.state_dict())))
    _, archive, ended = run(37, resumed, Archive(archive))
    assert ended == "evaluations"
    assert outcome(resumed, archive) == whole


def test_a_larger_budget_goes_on():
    strategy, archive, _ = run(10)
    run(20, strategy, archive)
    assert len(archive) == 20
    assert run(20, strategy, archive)[2] == "evaluations"
    assert len(archive) == 20


def test_a_state_that_does_not_belong_to_the_history_is_refused():
    _, archive, _ = run(16)
    with pytest.raises(SearchError, match=r"strategy must be at generation 2.*got 0"):
        run(32, new_strategy(), archive)


def test_generations_are_a_budget_too():
    strategy, archive, ended = run(100, generations=2)
    assert (ended, strategy.generation, len(archive)) == ("generations", 2, 16)


def test_reports():
    evaluations, generations = [], []
    run(
        20,
        on_evaluation=lambda *args: evaluations.append(args),
        on_generation=lambda new, state: generations.append((new, state["generation"])),
    )
    assert [(len(new), generation) for new, generation in generations] == [(8, 1), (8, 2), (4, 3)]
    assert [args[:2] for args in evaluations[-4:]] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {args[3] for args in evaluations} == {"search"}
    alike = sorted(generations[0][0], key=lambda evaluation: evaluation.phenotype)  # one after the other
    assert [args[2] for args in evaluations[:8]] == [e.details for e in reversed(alike)]  # as this executor does it


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (math.nan, "fitness must be finite, got nan"),
        (-math.inf, "fitness must be finite, got -inf"),
        ("good", "number"),
        (None, "number"),
    ],
)
def test_what_is_no_fitness_becomes_the_worst(value, error):
    def sometimes(phenotype):
        return {"fitness": value} if unpack(phenotype)[1] < 0 else sphere(phenotype)

    reports = []
    strategy, archive, _ = run(40, objective=Sphere(sometimes), on_evaluation=lambda *args: reports.append(args[2]))
    failed = [e for e in archive if e.error is not None]
    assert failed
    assert all(error in e.error and e.fitness == WORST_FITNESS for e in failed)
    assert {r["fitness"] for r in reports if "error" in r} == {WORST_FITNESS}
    assert math.isfinite(strategy.best[1])
    assert strategy.best[1] == archive.best().fitness


def test_a_failed_phenotype_is_not_tried_again():
    executor = Inline()

    def fails_low(phenotype):
        if unpack(phenotype)[0] > 0:
            raise RuntimeError("no")
        return sphere(phenotype)

    _, archive, _ = run(60, executor=executor, objective=Sphere(fails_low, digits=0))
    assert any(e.error == "RuntimeError: no" for e in archive)
    assert len(executor.ran) == len(set(executor.ran))


@pytest.mark.parametrize("kind", ["ga", "greedy", "random"])
def test_a_generation_of_answers_that_are_not_finite_does_not_end_a_search_that_has_found_something(kind):
    def first_only(phenotype):
        return sphere(phenotype) if phenotype in found else {"fitness": math.nan}

    objective, strategy = Sphere(first_only), new_strategy(kind)
    found = {objective.phenotype(genome) for genome in strategy.ask()}
    _, archive, ended = run(40, strategy=strategy, objective=objective)
    assert ended == "evaluations"
    assert {(e.error, e.fitness) for e in archive if e.generation > 0} == {
        ("fitness must be finite, got nan", WORST_FITNESS)
    }
    assert strategy.best[1] == archive.best().fitness


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_no_other_number_of_an_answer_may_be_anything_but_finite(wrong):
    def sometimes(phenotype):
        return {**sphere(phenotype), "metric": wrong if unpack(phenotype)[1] < 0 else 1.0, "chunks": [0.5]}

    with pytest.raises(SearchError, match=r"chunks must be finite, got \[0.5, "):
        run(8, objective=Sphere(lambda phenotype: {**sphere(phenotype), "chunks": [0.5, wrong]}))
    _, archive, _ = run(40, objective=Sphere(sometimes))
    failed = [e for e in archive if e.error is not None]
    assert 0 < len(failed) < len(archive)
    assert {(e.error, e.details["metric"]) for e in failed} == {(f"metric must be finite, got {wrong}", str(wrong))}


def test_when_everything_fails_nothing_is_kept_and_the_reason_is_raised():
    def fails(phenotype):
        raise OSError("disk full")

    archive, strategy, kept = Archive(), new_strategy(), []
    with pytest.raises(SearchError, match=r"all 8 of generation 0 .* failed; the first: OSError: disk full"):
        run(30, strategy, archive, objective=Sphere(fails), on_generation=lambda *args: kept.append(args))
    assert (len(archive), strategy.generation, kept) == (0, 0, [])


def test_a_last_generation_of_one_may_fail():
    strategy, archive, _ = run(8)

    def fails(phenotype):
        raise OSError("disk full")

    run(9, strategy, archive, objective=Sphere(fails))
    assert archive.history()[-1].error == "OSError: disk full"


@pytest.mark.parametrize("kind", ["ga", "random", "aging"])
def test_failures_that_are_known_say_nothing_about_what_works_now(kind):
    """A generation of nothing but known failures, as of eight networks four fail."""

    class Eight(Sphere):
        def phenotype(self, genome):
            return bytes([sum((value > 0) << i for i, value in enumerate(genome[:3]))])

    def half(phenotype):
        if phenotype[0] % 2:
            raise ValueError("odd")
        return {"fitness": float(phenotype[0])}

    for seed in range(10):
        strategy = STRATEGIES[kind](SPACE, population=4, seed=seed, initial=[[-0.5] * len(SPACE)])
        _, archive, ended = run(300, strategy, objective=Eight(half))
        assert ended in ("exhausted", "evaluations")
        assert archive.best().fitness == 6.0


def test_nothing_new_says_nothing_about_what_works_now():
    _, archive, _ = run(8)
    known = archive.history()[0]
    failed = [replace(known, number=8 + i, phenotype=bytes([i]), error="no", details={}) for i in range(8)]
    for evaluation in failed:
        archive.add(evaluation)
    _check_alive(archive, "search", [replace(evaluation, cached=True) for evaluation in failed[:4]])
    with pytest.raises(SearchError, match="all 1 of generation 0"):
        _check_alive(archive, "search", [replace(failed[0], phenotype=b"new")])


def test_a_few_failures_in_a_row_do_not_end_a_search_but_many_do():
    def failing_after(count):
        """Of what is computed the first eight work, and all that comes after so many others."""
        done = []

        def evaluate(phenotype):
            done.append(phenotype)
            if 8 < len(done) <= 8 + count:
                raise OSError("disk full")
            return sphere(phenotype)

        return Sphere(evaluate)

    def greedy():
        return STRATEGIES["greedy"](SPACE, population=2, seed=0, initial=[[0.0] * len(SPACE)] * 8)

    assert run(60, greedy(), objective=failing_after(4))[2] == "evaluations"
    with pytest.raises(SearchError, match=r"must succeed, but all 2 of generation .* disk full"):
        run(60, greedy(), objective=failing_after(40))


def test_a_target_ends_it_at_the_first_generation_that_reaches_it():
    _, archive, ended = run(400, target=lambda best: best.fitness >= -1.0)
    assert ended == "target"
    last = archive.history()[-1].generation
    assert max(e.fitness for e in archive if e.generation < last) < -1.0 <= archive.best().fitness
    assert run(400, target=lambda best: best.fitness > 0.0)[2] == "evaluations"
    assert run(16, target=lambda best: best.generation == 0)[2] == "target"


def test_patience_ends_it_after_so_many_generations_without_a_better_one():
    def step_like(phenotype):
        return {"fitness": float(round(fitness(unpack(phenotype))))}

    for patience in (1, 2, 4):
        strategy, archive, ended = run(4000, objective=Sphere(step_like), patience=patience)
        assert ended == "patience"
        assert strategy.generation - 1 - archive.best().generation == patience


@pytest.mark.parametrize("kind", [name for name in STRATEGIES if name != "swap"])
def test_a_space_that_is_exhausted_ends_it(kind):
    class Coarse(Sphere):
        def phenotype(self, genome):
            return struct.pack(f"{len(SPACE)}d", *([float(genome[1] > 0)] * len(SPACE)))

    strategy, archive, ended = run(10_000, new_strategy(kind), objective=Coarse())
    assert ended == "exhausted"
    assert computed(archive) == 2
    found = max(e.generation for e in archive if not e.cached)
    assert strategy.generation - 1 - found == EXHAUSTED


@pytest.mark.parametrize("limits", [{"patience": 2}, {"target": lambda best: best.fitness > -0.6}])
def test_a_resumed_search_ends_where_it_would_have_ended(limits):
    whole = run(400, **limits)
    for stop in range(whole[0].generation):
        strategy, archive = new_strategy(), Archive()
        strategy, archive, ended = run(
            400, strategy, archive, should_stop=lambda s=strategy, at=stop: [None, "time"][s.generation == at], **limits
        )
        assert ended == "time"
        resumed = run(400, strategy, archive, **limits)
        assert resumed[2] == whole[2]
        assert outcome(*resumed[:2]) == outcome(*whole[:2])


@pytest.mark.parametrize(("name", "value"), [("evaluations", 0), ("generations", 0), ("patience", 0)])
def test_wrong_budgets_are_refused(name, value):
    with pytest.raises(SearchError, match=f"{name} must be at least 1, got 0"):
        run(**{name: value})


def raced(rival):
    """Knows at once who is worse, but not by how much."""

    def evaluate(phenotype):
        answer = sphere(phenotype)
        shortfall = rival.fitness - answer["fitness"]
        return {**answer, "fitness": rival.fitness - shortfall / 2, "given_up": True} if shortfall > 0 else answer

    return evaluate


@pytest.mark.parametrize("kind", ["ga", "greedy", "random"])
def test_giving_up_what_falls_short_of_the_rival_changes_nothing(kind):
    to_the_end = run(evaluations=120, strategy=new_strategy(kind))
    early = run(evaluations=120, strategy=new_strategy(kind), against=raced)
    given_up = [e for e in early[1] if "given_up" in e.details]
    assert len(given_up) > 20
    assert [e.genome for e in early[1]] == [e.genome for e in to_the_end[1]]
    assert early[0].best == to_the_end[0].best
    assert all(e.fitness < early[0].best[1] for e in given_up)


def test_with_two_survivors_of_a_fitness_there_is_no_rival():
    strategy = new_strategy("ga")
    strategy.tell(strategy.ask(), [0.5, 0.5, 0.4, *(-float(n) for n in range(len(strategy.ask()) - 3))])
    strategy.tell(genomes := strategy.ask(), [0.25] * len(genomes))
    assert strategy.rival is not None
    strategy = new_strategy("ga")
    strategy.tell(strategy.ask(), [0.5, 0.5] + [0.25] * (len(strategy.ask()) - 2))
    assert strategy.rival is None


@pytest.mark.parametrize("kind", ["aging", "cma"])
def test_where_every_proposal_matters_there_is_no_rival(kind):
    early = run(evaluations=60, strategy=new_strategy(kind), against=raced)
    assert not any("given_up" in e.details for e in early[1])
