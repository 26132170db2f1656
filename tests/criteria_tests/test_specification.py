from typing import Annotated

import pytest

from criteria import CRITERIA, CriterionError
from criteria.specification import (
    Rule,
    above,
    at_least,
    canonical,
    check,
    declared,
    declared_rules,
    one_of,
    parse,
    share,
    typed,
)

DEFAULTS = {"count": 8, "share": 0.5, "signed": True, "start": "he"}


def configured(*, count: int = 8, share: float = 0.5, signed: bool = True, start: str = "he"):
    """A function with one parameter of each type."""


def test_parameters_are_keyword_only_arguments_with_defaults():
    assert declared("x", configured) == DEFAULTS
    assert declared("x", lambda stats, other=3: None) == {}


@pytest.mark.parametrize(
    ("function", "got"),
    [(lambda *, a: None, "none"), (lambda *, a=None: None, "None"), (lambda *, a=(1,): None, r"\(1,\)")],
)
def test_a_parameter_has_a_default_of_a_known_type(function, got):
    with pytest.raises(
        ValueError, match=f"'a' of 'x' must have a default that is an int, float, bool or str, got {got}"
    ):
        declared("x", function)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("x", "x"),
        ("x:count=8", "x"),
        ("x:count=+08:share=0.50", "x"),
        ("x:count=9", "x:count=9"),
        ("x:start=le_cun:count=09", "x:count=9:start=le_cun"),
        ("x:signed=False:share=1e-1", "x:share=0.1:signed=false"),
        ("x:share=1", "x:share=1.0"),
    ],
)
def test_names_are_canonical(written, name):
    base, given = parse(written)
    found = canonical(base, typed(base, given, DEFAULTS), DEFAULTS)
    assert found == name
    again = typed(*parse(found), DEFAULTS)
    assert again == typed(base, given, DEFAULTS)
    assert [type(value) for value in again.values()] == [int, float, bool, str]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("x:count", "parameters of 'x' must be given as 'name:parameter=value', got 'x:count'"),
        ("x:", "must be given as 'name:parameter=value', got 'x:'"),
        ("x:=3", "must be given as 'name:parameter=value', got 'x:=3'"),
        ("x:count=", "must be given as 'name:parameter=value', got 'x:count='"),
        ("x:count=1:count=2", "parameter 'count' of 'x' must be given once, got 'x:count=1:count=2'"),
        ("x:cuont=1", "of 'x' must be one of count, share, signed, start, got 'cuont'; did you mean 'count'"),
        ("x:zzz=1", "of 'x' must be one of count, share, signed, start, got 'zzz'$"),
        ("x:count=1.5", "'count' of 'x' must be of type int, got '1.5'"),
        ("x:count=many", "'count' of 'x' must be of type int, got 'many'"),
        ("x:share=half", "'share' of 'x' must be of type float, got 'half'"),
        ("x:share=nan", "'share' of 'x' must be finite, got 'nan'"),
        ("x:share=-1e300", "'share' of 'x' must be at most 3.4e\\+38 in size, got '-1e300'"),
        ("x:signed=1", "'signed' of 'x' must be true or false, got '1'"),
        ("x:start=a b", "'start' of 'x' must be letters, digits, .*, got 'a b'"),
    ],
)
def test_what_is_refused(written, message):
    with pytest.raises(ValueError, match=message) as caught:
        typed(*parse(written), DEFAULTS)
    assert isinstance(caught.value, CriterionError)


def test_a_name_without_parameters_says_so():
    with pytest.raises(ValueError, match="parameter of 'l1' must be none, for it has none, got 'p'"):
        typed("l1", {"p": "1"}, {})


def ruled(
    stats,
    *,
    steps: Annotated[int, at_least(1)] = 3,
    rate: Annotated[float, above(0)] = 0.1,
    momentum: Annotated[float, share()] = 0.9,
    start: Annotated[str, one_of(["he", "ones"])] = "he",
    free: int = 0,
):
    """A function with a rule of each kind."""


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("x:steps=0", "parameter 'steps' of 'x' must be at least 1, got 0"),
        ("x:rate=0", "parameter 'rate' of 'x' must be above 0, got 0.0"),
        ("x:momentum=1", r"parameter 'momentum' of 'x' must be in \[0, 1\), got 1.0"),
        ("x:start=xavier", "parameter 'start' of 'x' must be one of he, ones, got 'xavier'"),
    ],
)
def test_a_value_that_breaks_its_rule_is_refused(written, message):
    with pytest.raises(ValueError, match=message) as caught:
        check("x", typed(*parse(written), declared("x", ruled)), declared_rules(ruled))
    assert isinstance(caught.value, CriterionError)


@pytest.mark.parametrize("written", ["x", "x:steps=1", "x:rate=1e-9", "x:momentum=0", "x:start=ones", "x:free=-3"])
def test_a_value_at_the_edge_of_its_rule_is_not(written):
    check("x", typed(*parse(written), declared("x", ruled)), declared_rules(ruled))


def test_rules_are_those_of_annotations():
    assert list(declared_rules(ruled)) == ["steps", "rate", "momentum", "start"]
    assert all(isinstance(rule, Rule) for rule in declared_rules(ruled).values())
    assert declared_rules(lambda stats, *, count=1: None) == {}


def test_rules_are_found_where_annotations_are_text():
    source = """
from __future__ import annotations
from typing import Annotated
from criteria.specification import at_least
def ruled(stats: NotImported, *, count: Annotated[int, at_least(1)] = 3, other: AlsoNot = 1): pass
"""
    exec(source, module := {})
    assert {name: rule.words for name, rule in declared_rules(module["ruled"]).items()} == {"count": "at least 1"}


def test_every_default_of_the_registry_keeps_to_its_rule():
    for criterion in CRITERIA:
        check(criterion.name, criterion.parameters, declared_rules(criterion.function))
