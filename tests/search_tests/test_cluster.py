"""Every executor on a cluster, held to the same: real schedulers, real worker processes, really killed."""

import os
import pickle
import time
from functools import partial

import pytest

from search import Archive, Evolution, Failure, LocalExecutor, SearchError, search
from search.cargo import Cargo
from search.machine import kind
from tests.clusters import DaskWorkers, dask_scheduler

from . import toy


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    pytest.importorskip("distributed")
    from search.dask_executor import DaskExecutor

    with dask_scheduler(allowed_failures=1) as (address, _):
        workers = DaskWorkers(address, tmp_path_factory.mktemp("dask"))
        for _ in range(3):  # a nanny does not replace a worker that is killed while it starts
            workers.start()
        yield partial(DaskExecutor, address)
        workers.end()


@pytest.fixture(scope="module")
def ray(ray_cluster):
    from search.ray_executor import RayExecutor

    return partial(RayExecutor, ray_cluster[0])


KILLED = {
    "dask": "KilledWorker: every worker that it was given to died",
    "ray": "WorkerCrashedError: every worker that it was given to died",
}


@pytest.fixture(scope="module", params=["dask", "ray"])
def cluster(request):
    """Connects: (timeout) → executor; with what it says of an item that kills."""
    return request.getfixturevalue(request.param), KILLED[request.param]


slow_on_ray = pytest.mark.parametrize("cluster", ["dask", pytest.param("ray", marks=pytest.mark.slow)], indirect=True)


@pytest.fixture(scope="module")
def executor(cluster):
    with cluster[0]() as executor:
        deadline = time.monotonic() + 30
        while executor.workers < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        yield executor


class Heavy(Cargo):
    """The number five, which leaves a line whenever it is packed."""

    def __init__(self, file, key):
        self.file, self._key = file, key

    @property
    def key(self):
        return self._key

    def pack(self):
        with self.file.open("a") as file:
            file.write("packed\n")
        return pickle.dumps(5)


def add(number, more, item):
    return number + more + item, os.getpid()


def test_every_item_once(executor):
    assert dict(executor.run(toy.square, range(7))) == {i: i * i for i in range(7)}
    assert list(executor.run(toy.square, [])) == []


def test_an_exception_fails_its_item_only(executor):
    results = dict(executor.run(toy.odd_fails, range(4)))
    assert results == {0: 0, 1: Failure("ValueError: odd: 1"), 2: 2, 3: Failure("ValueError: odd: 3")}


def test_what_raises_once_is_tried_again(executor, tmp_path):
    results = dict(executor.run(toy.raise_once, [(str(tmp_path / "marker"), value) for value in range(5)]))
    assert isinstance(results.pop(3), int)
    assert results == {i: i for i in (0, 1, 2, 4)}


def test_cargo_travels_once_however_many_functions_refer_to_it(executor, tmp_path):
    heavy = Heavy(tmp_path / "log", str(tmp_path))
    for more in range(3):
        sums = [result[0] for _, result in executor.run(partial(add, heavy, more), range(4))]
        assert sorted(sums) == [5 + more + item for item in range(4)]
    assert (tmp_path / "log").read_text() == "packed\n"


def test_a_killed_worker_loses_nothing(executor, tmp_path):
    items = [(str(tmp_path / "marker"), value) for value in range(6)]
    assert dict(executor.run(toy.die_once, items)) == dict(enumerate(range(6)))


def test_what_always_kills_its_worker_fails_alone(executor, cluster):
    results = dict(executor.run(toy.die_at_three, range(6)))
    assert results == {3: Failure(cluster[1]), **{i: i for i in (0, 1, 2, 4, 5)}}


def die_at_three_with(cargo, item):
    return toy.die_at_three(item)


@slow_on_ray
def test_what_kills_every_worker_that_holds_the_cargo_fails_alone(executor, cluster, tmp_path):
    function = partial(die_at_three_with, Heavy(tmp_path / "log", str(tmp_path)))
    results = dict(executor.run(function, range(6)))
    assert results == {3: Failure(cluster[1]), **{i: i for i in (0, 1, 2, 4, 5)}}


@slow_on_ray
def test_a_genome_that_kills_is_a_failed_evaluation_and_the_search_is_that_of_local_workers(executor, cluster):
    histories = []
    for where in (executor, local := LocalExecutor(2, retries=0)):
        archive = Archive()
        strategy = Evolution(toy.SPACE, population=8, seed=2, initial=toy.INITIAL)
        search(strategy, toy.Sphere(toy.fatal_sphere, digits=0), archive, where, phase="search", evaluations=16)
        histories.append([(e.genome, e.fitness, e.details, e.cached, e.error is None) for e in archive])
        failed = {e.error for e in archive if e.generation == 0} - {None}
        assert failed
        assert where is local or failed == {cluster[1]}
    local.close()
    assert histories[0] == histories[1]


@slow_on_ray
def test_what_always_hangs_fails_alone_and_the_workers_are_free_again(cluster, executor):
    with cluster[0](timeout=2.0) as impatient:
        results = dict(impatient.run(toy.hang_at_three, range(6)))
        assert results == {3: Failure("no answer within 2 s (2 of 2 tries)"), **{i: i for i in (0, 1, 2, 4, 5)}}
        began = time.monotonic()
        assert dict(impatient.run(toy.square, range(4))) == {i: i * i for i in range(4)}
        assert time.monotonic() - began < 30  # what hangs sleeps for 60 s


def test_an_abandoned_run_leaves_the_workers_to_others(executor):
    results = executor.run(toy.slow_first, [1, 0, 0, 0, 0, 0])
    assert next(results)[1] in (0, 1)
    results.close()
    assert dict(executor.run(toy.square, [3])) == {0: 9}


def test_a_wrong_timeout_is_refused(cluster):
    with pytest.raises(SearchError, match="timeout must be greater than 0 seconds, got -1"):
        cluster[0](timeout=-1)


def test_a_cluster_without_workers_is_told_of_and_waited_for(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    from search.dask_executor import DaskExecutor

    monkeypatch.setattr("search.cluster.QUIET", 1.5)
    told = []
    with dask_scheduler() as (address, _), DaskExecutor(address) as executor:
        workers = DaskWorkers(address, tmp_path)
        executor.tell = lambda line: (told.append(line), workers.start(nanny=False))
        results = dict(executor.run(toy.square, range(3)))
        workers.end()
    assert results == {0: 0, 1: 1, 2: 4}
    assert told == ["the cluster has no worker; it goes on when one joins"]


def test_a_last_worker_that_goes_just_before_the_cargo_does_is_waited_for(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    from search.dask_executor import DaskExecutor

    class Late(DaskExecutor):
        """Hears only then that there is nobody."""

        workers = property(lambda self: max(1, DaskExecutor.workers.fget(self)))

        def _submit(self, sent, item):
            handle = super()._submit(sent, item)
            if handle is None and not workers.processes:
                workers.start(nanny=False)
            return handle

    monkeypatch.setattr("search.dask_executor.CONNECT", 2.0)
    with dask_scheduler() as (address, _), Late(address) as executor:
        workers = DaskWorkers(address, tmp_path)
        results = dict(executor.run(partial(add, Heavy(tmp_path / "log", "it"), 1), range(3)))
        workers.end()
    assert {item: number for item, (number, _) in results.items()} == {0: 6, 1: 7, 2: 8}


def test_a_dask_scheduler_that_goes_is_told_of(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    from search.dask_executor import DaskExecutor

    monkeypatch.setattr("search.dask_executor.CONNECT", 2.0)
    with dask_scheduler() as (address, scheduler), DaskExecutor(address) as executor:
        workers = DaskWorkers(address, tmp_path)
        workers.start(nanny=False)
        results = executor.run(toy.slow_first, [1] + [0] * 100)
        next(results)
        scheduler.kill()
        with pytest.raises(SearchError, match=f"the dask scheduler at {address} is gone"):
            list(results)
        workers.end()


class Wanting(Cargo):
    """What no worker can unpack before it has been tried so many times."""

    def __init__(self, folder, tries):
        self.folder, self.tries = folder, tries

    @property
    def key(self):
        return str(self.folder)

    def pack(self):
        return pickle.dumps(self)

    def __reduce__(self):
        return missing_at_first, (self.folder, self.tries)


def missing_at_first(folder, tries):
    for number in range(tries):
        try:
            (folder / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        raise ModuleNotFoundError("No module named 'it'")
    return 5


@pytest.fixture
def briefly(monkeypatch):
    """No long pauses."""
    monkeypatch.setattr("search.cluster.PAUSES", (0.1, 0.2, 0.4))


@pytest.mark.usefixtures("briefly")
def test_a_worker_that_cannot_take_what_it_is_sent_costs_no_item(executor, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(executor, "tell", told.append)
    began = time.monotonic()
    results = dict(executor.run(partial(add, Wanting(tmp_path, 3), 1), [2]))
    assert results[0][0] == 8
    assert time.monotonic() - began > 0.7
    [line] = told
    assert line.startswith("a worker of the cluster cannot take part: the worker on ")
    assert line.endswith("ModuleNotFoundError: No module named 'it'; what it was to do is tried again in 0.1 s")


@slow_on_ray
@pytest.mark.usefixtures("briefly")
def test_a_worker_that_can_run_no_item_ends_it_and_is_no_items_fault(executor):
    with pytest.raises(SearchError, match=r"cannot take part: the worker on \S+: no data here$"):
        dict(executor.run(toy.without_data, range(6)))


@slow_on_ray
@pytest.mark.usefixtures("briefly")
def test_a_worker_of_another_release_is_told_of(executor, monkeypatch):
    monkeypatch.setattr(executor, "_outcome", lambda handle: Failure("TypeError: it takes 3 arguments"))
    with pytest.raises(SearchError, match="cannot take part: it has another release of this package"):
        dict(executor.run(toy.square, range(2)))


@pytest.mark.usefixtures("briefly")
def test_what_no_worker_can_take_ends_it_and_is_no_items_fault(executor, tmp_path):
    reason = r"a worker of the cluster cannot take part: the worker on \S+: ModuleNotFoundError: No module named 'it'$"
    with pytest.raises(SearchError, match=reason):
        dict(executor.run(partial(add, Wanting(tmp_path, 99), 1), range(6)))
    assert dict(executor.run(toy.square, [3])) == {0: 9}


def test_another_kind_of_processor_is_told_of_once(cluster, executor, monkeypatch):
    told = []
    monkeypatch.setattr("search.cluster.kind", lambda: "Fast One 3000")
    with cluster[0]() as other:
        other.tell = told.append
        for _ in range(2):
            assert dict(other.run(toy.square, range(3))) == {0: 0, 1: 1, 2: 4}
    [line] = told
    assert line.startswith(f"a worker has another kind of processor ({kind()}) than this machine (Fast One 3000), on ")
