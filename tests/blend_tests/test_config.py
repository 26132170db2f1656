import math
import re

import pytest
from pydantic import ValidationError

from blend.config import MAX_SEED, SearchConfig, parse_options, search_config
from blend.errors import InputError


def test_values_survive_being_written():
    config = search_config(
        task="digits", reduction=1 / 3, clusters="silhouette", criteria=("l1", "l2"), options={"a": "1"}
    )
    assert SearchConfig.model_validate_json(config.model_dump_json()) == config


def test_text_from_a_command_line_is_understood():
    config = search_config(task="digits", reduction="0.25", clusters="4", population="8", seed="3", floor="0")
    assert (config.reduction, config.clusters, config.population, config.seed, config.floor) == (0.25, 4, 8, 3, 0.0)
    assert search_config(task="digits", clusters="silhouette").clusters == "silhouette"
    assert search_config(task="digits", seed=MAX_SEED).seed == MAX_SEED


def test_limits_are_kept_in_one_form():
    config = search_config(task="digits", time="1h30m", target="0.9", patience="5")
    assert (config.time, config.target, config.patience) == (5400.0, "metric=0.9", 5)
    assert SearchConfig.model_validate_json(config.model_dump_json()) == config


def test_where_there_is_a_time_evaluations_are_hardly_a_limit():
    assert search_config(task="digits").evaluations == 600
    assert search_config(task="digits", time="2h").evaluations == 100_000
    assert search_config(task="digits", time="2h", evaluations=50).evaluations == 50


@pytest.mark.parametrize(
    ("reduction", "middle", "reductions", "shown"),
    [
        ("0.3:0.7", 0.5, (0.3, 0.7), (0.3, 0.4, 0.5, 0.6, 0.7)),
        (0.5, 0.5, (0.3, 0.7), (0.3, 0.4, 0.5, 0.6, 0.7)),
        ("0.9", 0.9, (0.86, 0.94), (0.86, 0.88, 0.9, 0.92, 0.94)),
        ("0.2:0.5", 0.35, (0.2, 0.5), (0.2, 0.275, 0.35, 0.425, 0.5)),
    ],
)
def test_a_front_has_a_range_of_reductions(reduction, middle, reductions, shown):
    config = search_config(task="digits", strategy="nsga2", reduction=reduction)
    assert (config.reduction, config.reductions, config.shown) == (middle, reductions, shown)
    assert SearchConfig.model_validate_json(config.model_dump_json()) == config
    assert config.moved(workers=3).reductions == reductions
    assert search_config(task="digits", reduction=0.4).shown == (0.4,)


@pytest.mark.parametrize("reduction", ["0.7:0.3", "0.5:0.5", "0:0.5", "0.5:1", "a:b", "0.3:0.5:0.7", "nan:0.5"])
def test_a_range_that_is_none_is_refused(reduction):
    with pytest.raises(InputError, match=rf"^reduction must be .* in \(0, 1\) or LOW:HIGH in it.*, got '{reduction}'"):
        search_config(task="digits", strategy="nsga2", reduction=reduction)


def test_a_range_holds_its_middle():
    with pytest.raises(InputError, match=r"^reductions must hold the reduction 0\.5, got 0\.1:0\.3"):
        search_config(task="digits", strategy="nsga2", reductions=(0.1, 0.3))
    with pytest.raises(InputError, match=r"^strategy must be 'nsga2' for a range of reductions, got 'ga'"):
        search_config(task="digits", reduction="0.3:0.7")


@pytest.mark.parametrize(
    ("where", "share"), [({"workers": 4}, 2**28), ({"workers": 4, "executor": "dask", "address": "tcp://a:1"}, 2**30)]
)
def test_workers_share_the_cache_memory_where_their_number_is_known(where, share):
    assert search_config(task="digits", cache_memory="1G", **where).cache_share == share


def test_it_never_changes():
    config = search_config(task="digits")
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("reduction", 0.0, "in (0, 1)"),
        ("reduction", 1, "in (0, 1)"),
        ("reduction", 1.3, "in (0, 1)"),
        ("reduction", float("nan"), "in (0, 1)"),
        ("reduction", "half", "a number"),
        ("cost", "flops", "'macs' or 'params'"),
        ("allocation", "locl", "'global' or 'uniform'"),
        ("encoding", "both", "'cluster', 'shared', 'direct', 'allocation' or 'mask'"),
        ("normalisation", "log", "'rank', 'minmax' or 'z'"),
        ("clusters", 0, "at least 1 or 'silhouette'"),
        ("clusters", "many", "at least 1 or 'silhouette'"),
        ("clustering", "dbscan", "'agglomerative' or 'kmeans'"),
        ("fitness", "accuracy", "'loss' or 'metric'"),
        ("strategy", "gaa", "'ga', 'aging', 'cma', 'greedy', 'swap', 'nsga2' or 'random'"),
        ("population", 3, "at least 4"),
        ("population", "some", "a whole number"),
        ("evaluations", 0, "at least 1"),
        ("generations", 0, "at least 1"),
        ("timeout", 0.0, "greater than 0"),
        ("timeout", math.inf, "a number"),
        ("time", "soon", "must be a duration like 90s, 45m, 2h or 1h30m"),
        ("target", "much", "must be a number, metric=NUMBER or fitness=NUMBER"),
        ("patience", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("seed", MAX_SEED + 1, f"must be at most {MAX_SEED}"),
        ("workers", 0, "at least 1"),
        ("workers", 1.5, "a whole number"),
        ("executor", "moon", "'local'"),
        ("recalibration_images", -1, "at least 0"),
        ("batch_size", 0, "at least 1"),
        ("floor", -0.1, "at least 0"),
        ("floor", 1.0, "must be less than 1"),
    ],
)
def test_errors_name_parameter_rule_and_value(name, value, rule):
    with pytest.raises(InputError) as caught:
        search_config(**{"task": "digits", name: value})
    message = str(caught.value)
    assert message.startswith(name)
    assert rule in message
    assert re.search(rf"got '?{re.escape(str(value))}'?", message)
    assert "\n" not in message


def test_no_criterion_at_all_is_refused():
    with pytest.raises(InputError, match=r"^criteria must name at least 1, got none$"):
        search_config(task="digits", criteria=())


def test_a_criterion_that_is_named_twice_is_refused():
    with pytest.raises(InputError, match="criteria must be different from one another, got 'l1' twice"):
        search_config(task="digits", criteria=("l1", "l2", "l1"))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"encoding": "shared", "signed": True}, "signed must be used with encoding 'direct', got True with 'shared'"),
        ({"strategy": "swap"}, "strategy 'swap' must be used with encoding 'mask', got 'cluster'"),
        ({"base": "l1"}, "base must be used with encoding 'allocation', got 'l1' with 'cluster'"),
        ({"encoding": "allocation", "base": "cap"}, "criteria must hold the base 'cap', got l1,l2"),
        ({"encoding": "allocation", "allocation": "uniform"}, "equal shares leave nothing to search"),
    ],
)
def test_parameters_that_contradict_each_other(values, complaint):
    with pytest.raises(InputError, match=re.escape(complaint)):
        search_config(**{"task": "digits", "criteria": ("l1", "l2"), **values})


def test_unknown_and_missing_parameters():
    with pytest.raises(InputError, match="there is no parameter 'populatoin'; did you mean 'population'"):
        search_config(task="digits", populatoin=8)
    with pytest.raises(InputError, match="task must be given"):
        search_config()


def test_options_of_a_task():
    assert parse_options(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    for broken in ("a", "=1", ""):
        with pytest.raises(InputError, match=f"option must look like key=value, got '{broken}'"):
            parse_options([broken])
    with pytest.raises(InputError, match="option 'a' was given twice"):
        parse_options(["a=1", "a=2"])
