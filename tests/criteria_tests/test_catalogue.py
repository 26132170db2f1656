"""The catalogue for people, and that the one in docs is what the registry says today."""

from pathlib import Path
from typing import Annotated

import pytest

from criteria import Criterion
from criteria.catalogue import built_in, cost_class, docstring_parts, markdown, meanings, parameters, record
from criteria.specification import above

DOCUMENT = Path(__file__).parents[2] / "docs" / "criteria.md"


def documented(stats, *, p: float = 2.0, bins: int = 8):
    r"""A norm, :math:`\|W\|_p`, of ``weight``.

    .. math:: s_i = \|W_i\|_p

    Args:
        stats: ``weight``.

    Returns:
        Scores of shape (channels,).

    Caution:
        Only a test; do
        not use it.
    """


def criterion(*needs, function=documented):
    return Criterion("documented", "test", frozenset(needs), "somebody, 2020", function, claims=frozenset({"alike"}))


def test_the_document_is_fresh():
    assert DOCUMENT.read_text() == markdown(built_in()), "run `make docs`"


def test_an_entry_has_formula_needs_parameters_claims_caution_and_reference():
    text = markdown([criterion("weight")])
    assert "| [`documented`](#documented) | test | weights | `weight` |" in text
    for line in (
        "### documented",
        r"A norm, $\|W\|_p$, of `weight`.",
        r"$$s_i = \|W_i\|_p$$",
        "- **Gives** scores of shape (channels,).",
        "- **Needs** `weight`; cost: weights.",
        "- **Parameters** `p=2.0`, `bins=8`",
        "- **Claims** that channels that are alike score alike.",
        "- **Caution** Only a test; do not use it.",
        "- **Reference** somebody, 2020",
    ):
        assert line in text.splitlines()


def test_the_arguments_of_a_docstring_are_told_apart():
    def several(stats, *, p: Annotated[float, above(1)] = 2.0, bins: int = 8):
        """Something.

        Args:
            stats: ``weight`` of shape
                (channels,).
            p: the exponent, such as: 2;
                above 1.
            bins: how many.

        Returns:
            Scores.
        """

    one = criterion("weight", function=several)
    assert meanings(one) == {
        "stats": "``weight`` of shape (channels,).",
        "p": "the exponent, such as: 2; above 1.",
        "bins": "how many.",
    }
    assert record(one)["parameters"] == [
        {"name": "p", "type": "float", "default": 2.0, "rule": "above 1", "meaning": meanings(one)["p"]},
        {"name": "bins", "type": "int", "default": 8, "rule": None, "meaning": "how many."},
    ]
    assert "- **Parameters** `p=2.0` (above 1), `bins=8`" in markdown([one])


def test_what_is_not_documented_is_left_out():
    def bare(stats):
        pass

    text = markdown([Criterion("bare", "test", frozenset(), "r", bare)])
    assert "Caution" not in text
    assert "**Parameters**" not in text
    assert "**Gives**" not in text
    assert parameters(criterion("weight", function=bare)) == {}
    assert docstring_parts(criterion(function=bare)) == {"": ""}


@pytest.mark.parametrize(
    ("needs", "cost"),
    [
        ((), "weights"),
        (("weight",), "weights"),
        (("activation",), "forward"),
        (("weight", "weight_gradient"), "backward"),
        (("weight", "hessian_diagonal"), "second order"),
    ],
)
def test_the_cost_class_follows_from_the_needs(needs, cost):
    assert cost_class(criterion(*needs)) == cost


def test_every_built_in_criterion_warns_of_something():
    assert not [c.name for c in built_in() if "Caution" not in docstring_parts(c)]
