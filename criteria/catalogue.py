"""The catalogue of criteria for people, made of the registry: ``python -m criteria.catalogue > docs/criteria.md``."""

import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

from criteria.claims import CLAIMS
from criteria.registry import Criterion
from criteria.specification import declared_rules
from criteria.views import NEEDS

_SECTION = re.compile(r"^(Args|Returns|Caution|Raises|Yields|Example|Note):\s*$", re.MULTILINE)
_ARGUMENT = re.compile(r"^ {4}(\w+): ", re.MULTILINE)

_INTRODUCTION = """\
# Criteria

What `blend criteria` lists, with formulas. Higher scores mean keep. Made by `make docs` from the registry; the words
are those of the docstrings. `blend doctor --all` holds every one of them to what it claims here.

Costs, from cheap to dear: **weights** reads parameters only; **forward** takes a forward pass over the calibration
data; **backward** a backward pass, too; **second order** derivatives of derivatives; **own passes** whatever its
parameters say. All but the last share one sweep: many criteria cost little more than the dearest of them.
"""


def docstring_parts(criterion: Criterion) -> dict[str, str]:
    """The sections of a criterion's docstring by name; ``""`` is what comes before the first."""
    first, sections = _sections(criterion)
    return {"": first.strip(), **{name: " ".join(body.split()) for name, body in sections.items()}}


def meanings(criterion: Criterion) -> dict[str, str]:
    """What a criterion's docstring says of each of its arguments."""
    _, *parts = _ARGUMENT.split(_sections(criterion)[1].get("Args", ""))
    return {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def record(criterion: Criterion) -> dict[str, Any]:
    """Everything that a program may want to know of a criterion, ready for JSON.

    Returns:
        ``name``, ``family``, ``summary``, ``formula`` (the docstring's own words, in reStructuredText), ``needs``,
        ``cost`` (see `cost_class`), ``labels`` (whether it reads labels by itself, and not just through the loss),
        ``claims`` (keys of `CLAIMS`), ``caution`` and ``reference``; and ``parameters``, of each its ``name``,
        ``type``, ``default``, ``rule`` beyond the type (or None) and ``meaning``.
    """
    parts, rules, meaning = docstring_parts(criterion), declared_rules(criterion.function), meanings(criterion)
    return {
        "name": criterion.name,
        "family": criterion.family,
        "summary": criterion.summary,
        "formula": parts[""],
        "needs": sorted(criterion.needs),
        "cost": cost_class(criterion),
        "labels": criterion.labelled,
        "parameters": [
            {
                "name": name,
                "type": type(default).__name__,
                "default": default,
                "rule": rules[name].words if name in rules else None,
                "meaning": meaning.get(name, ""),
            }
            for name, default in parameters(criterion).items()
        ],
        "claims": [claim for claim in CLAIMS if claim in criterion.claims],
        "caution": parts.get("Caution"),
        "reference": criterion.reference,
    }


def _sections(criterion: Criterion) -> tuple[str, dict[str, str]]:
    """What comes before the first section of a docstring, and the sections as they are written."""
    first, *rest = _SECTION.split(inspect.getdoc(criterion.function) or "")
    return first, dict(zip(rest[::2], rest[1::2], strict=True))


def cost_class(criterion: Criterion) -> str:
    """What a criterion's evidence takes to collect, by the nature of the statistics that it needs."""
    if type(criterion) is not Criterion:
        return "own passes"
    needs = [need.partition(":")[0] for need in criterion.needs]
    if any("hessian" in need or "curvature" in need for need in needs):
        return "second order"
    if any("gradient" in need for need in needs):
        return "backward"
    return "forward" if any(NEEDS[need].side == "consumer" for need in needs) else "weights"


def parameters(criterion: Criterion) -> dict[str, object]:
    """A criterion's parameters and their defaults: the keyword-only arguments of its function."""
    arguments = inspect.signature(criterion.function).parameters.values()
    return {argument.name: argument.default for argument in arguments if argument.kind is argument.KEYWORD_ONLY}


def markdown(criteria: Iterable[Criterion]) -> str:
    """The catalogue of these criteria, in their order."""
    chosen = list(criteria)
    families = dict.fromkeys(criterion.family for criterion in chosen)
    parts = [_INTRODUCTION, _index(chosen)]
    for family in families:
        parts.append(f"## {family}\n")
        parts += ["\n".join(_entry(criterion)) for criterion in chosen if criterion.family == family]
    return "\n".join(parts)


def _index(criteria: list[Criterion]) -> str:
    rows = [f"| [`{c.name}`](#{c.name}) | {c.family} | {cost_class(c)} | {_needs(c)} |" for c in criteria]
    return "\n".join(["| criterion | family | cost | needs |", "|---|---|---|---|", *rows, ""])


def _entry(criterion: Criterion) -> Iterator[str]:
    parts = docstring_parts(criterion)
    yield f"### {criterion.name}\n"
    yield _mathematics(parts[""]) + "\n"
    if "Returns" in parts:
        yield f"- **Gives** {_lower(_mathematics(parts['Returns']))}"
    yield f"- **Needs** {_needs(criterion)}; cost: {cost_class(criterion)}."
    if settings := parameters(criterion):
        rules = {name: f" ({rule.words})" for name, rule in declared_rules(criterion.function).items()}
        shown = (f"`{name}={default}`{rules.get(name, '')}" for name, default in settings.items())
        yield f"- **Parameters** {', '.join(shown)}"
    if claimed := [what for name, what in CLAIMS.items() if name in criterion.claims]:
        yield f"- **Claims** that {'; '.join(claimed)}."
    if "Caution" in parts:
        yield f"- **Caution** {_mathematics(parts['Caution'])}"
    yield f"- **Reference** {criterion.reference}\n"


def _needs(criterion: Criterion) -> str:
    return ", ".join(f"`{need}`" for need in sorted(criterion.needs)) or "–"


def _mathematics(text: str) -> str:
    """Roles and directives of reStructuredText as Markdown."""
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = re.sub(r"(?m)^\.\. math::\s+(.+)$", r"$$\1$$", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def _lower(text: str) -> str:
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def built_in() -> list[Criterion]:
    """The registered criteria that are this package's own."""
    import criteria

    return [criterion for criterion in criteria.CRITERIA if criterion.function.__module__.startswith("criteria.")]


if __name__ == "__main__":
    print(markdown(built_in()), end="")
