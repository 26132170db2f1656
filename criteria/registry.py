"""The registry of criteria: built-in ones and those of other packages, by name."""

import difflib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from torch import Tensor

from criteria.claims import default_claims, known_claims
from criteria.errors import CriterionError, CriterionFault, CriterionValueError, raise_if_out_of_memory
from criteria.specification import Value, canonical, check, declared, declared_rules, parse, typed
from criteria.views import NEEDS, GroupStats, Side, bound_need, need_of

CriterionFunction = Callable[..., Tensor]
"""View → tensor of shape (channels,); keyword-only arguments with defaults are the criterion's parameters."""


@dataclass(frozen=True)
class Criterion:
    """A named function that gives each channel of a view a score; higher = keep.

    Attributes:
        name: what it is asked for by; with its parameters where they are not the defaults, as ``obd:probes=8``.
        family: what kind of evidence it looks at.
        needs: names of the statistics it reads, see `NEEDS`; all on one side. A need that has a parameter of the same
            name as the criterion is collected with the criterion's value.
        reference: where the formula comes from.
        function: view → tensor of shape (channels,).
        configured: parameters that are not the function's defaults.
        expensive: whether it costs far more than one sweep.
        claims: what it claims of its scores, see `CLAIMS`.
    """

    name: str
    family: str
    needs: frozenset[str]
    reference: str
    function: CriterionFunction
    configured: Mapping[str, Value] = field(default_factory=dict, hash=False)
    expensive: bool = False
    claims: frozenset[str] = frozenset()

    @property
    def parameters(self) -> Mapping[str, Value]:
        """All parameters and their current values."""
        return MappingProxyType(declared(self.name, self.function) | dict(self.configured))

    def with_parameters(self, given: Mapping[str, str]) -> "Criterion":
        """This criterion with other values for some parameters, and the name that says so.

        Raises:
            CriterionValueError: there is no such parameter, or its value is of another type or out of its range.
        """
        defaults = declared(self.name, self.function)
        values = typed(self.name, given, defaults)
        check(self.name, values, declared_rules(self.function))
        return replace(
            self,
            name=canonical(self.name, values, defaults),
            needs=frozenset(bound_need(need, values) for need in self.needs),
            configured={key: value for key, value in values.items() if value != defaults[key]},
        )

    @property
    def labelled(self) -> bool:
        """Whether it reads labels by itself, so that a loss without labels is not enough for it."""
        return any(need.partition(":")[0] == "classes" for need in self.needs)

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    @property
    def side(self) -> Side:
        """The side whose views it scores."""
        return next((need_of(need).side for need in self.needs), "producer")

    def missing(self, stats: GroupStats) -> str | None:
        """Why ``stats`` cannot serve this criterion, as a sentence; None if it can."""
        reason = stats.missing(self.needs)
        return reason and f"criterion {self.name!r} {reason}"

    def __call__(self, stats: GroupStats) -> Tensor:
        """Score every channel of one view.

        Args:
            stats: a view that holds all of ``needs``.

        Returns:
            Scores of shape (channels,).

        Raises:
            CriterionError: the view lacks something, or the function raised, or returned another shape.
        """
        if reason := self.missing(stats):
            raise CriterionError(reason)
        with failing(self.name, f" for {stats.layer!r}"):
            scores = self.function(stats.serving(self.needs), **self.configured)
        if not isinstance(scores, Tensor) or scores.shape != (stats.rows,):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise CriterionError(
                f"criterion {self.name!r} must return a tensor of shape ({stats.rows},) for {stats.layer!r}, got {got}"
            )
        return scores


@contextmanager
def failing(name: str, where: str = "") -> Iterator[None]:
    """Have what a criterion's function raises say whose it is; what memory runs out of is nobody's."""
    try:
        yield
    except CriterionError:
        raise
    except Exception as error:
        raise_if_out_of_memory(error)
        raise CriterionFault(f"criterion {name!r} failed{where}: {type(error).__name__}: {error}") from error


class Registry:
    """Criteria by name; iterates over them by family, then name.

    Args:
        entry_point_group: packages that name a module under this entry-point group add criteria by registering them
            when it is imported, which happens once, at the first look-up.
    """

    def __init__(self, entry_point_group: str | None = None) -> None:
        """Start empty."""
        self._criteria: dict[str, Criterion] = {}
        self._entry_point_group = entry_point_group

    def register(
        self, name: str, *, family: str, needs: Collection[str], reference: str, claims: Collection[str] | None = None
    ) -> Callable[[CriterionFunction], CriterionFunction]:
        """Decorate a function to become the criterion ``name``; the function itself stays as it is.

        Args:
            name: unique name.
            family: what kind of evidence it looks at.
            needs: names of the statistics it reads, see `NEEDS`.
            reference: where the formula comes from.
            claims: what it claims of its scores, see `CLAIMS`; by default all that its needs allow but that
                duplicates lower a score.

        Raises:
            CriterionValueError: the name is taken or holds ``:`` or ``,``, a need or claim is unknown, needs lie on two
                sides, or a keyword-only argument has no default of type int, float, bool or str.
        """
        if unknown := sorted(set(needs) - set(NEEDS)):
            raise CriterionValueError(f"needs of {name!r} must be among {', '.join(NEEDS)}, got {', '.join(unknown)}")
        if {":", ","} & set(name):
            raise CriterionValueError(f"criterion name must not contain ':' or ',', got {name!r}")
        claimed = default_claims(needs) if claims is None else known_claims(name, claims)
        if len({NEEDS[need].side for need in needs}) > 1:
            raise CriterionValueError(f"needs of {name!r} must be of one side, got {', '.join(sorted(needs))}")

        def add(function: CriterionFunction) -> CriterionFunction:
            defaults = declared(name, function)
            bound = frozenset(bound_need(need, defaults) for need in needs)
            self.add(Criterion(name, family, bound, reference, function, claims=claimed))
            return function

        return add

    def add(self, criterion: Criterion) -> None:
        """Enter a criterion.

        Raises:
            CriterionValueError: its name is taken.
        """
        if criterion.name in self._criteria:
            owner = self._criteria[criterion.name].function.__module__
            raise CriterionValueError(
                f"criterion name must be unique, got {criterion.name!r}, which {owner} registered"
            )
        self._criteria[criterion.name] = criterion

    def get(self, specification: str) -> Criterion:
        """The criterion of a name, ``obd``, or of a name with parameters, ``obd:probes=8``.

        Raises:
            CriterionValueError: there is no such criterion or parameter, in which case the message suggests the
                nearest name; or a parameter's value is of another type or out of its range.
        """
        self._load_entry_points()
        name, given = parse(specification)
        if name not in self._criteria:
            near = difflib.get_close_matches(name, self._criteria, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(self.names())}"
            raise CriterionValueError(f"criterion must be a registered name, got {name!r}; {hint}")
        return self._criteria[name].with_parameters(given) if given else self._criteria[name]

    def names(self) -> tuple[str, ...]:
        """All names, by family, then name."""
        return tuple(criterion.name for criterion in self)

    def __iter__(self) -> Iterator[Criterion]:
        """All criteria, by family, then name."""
        self._load_entry_points()
        return iter(sorted(self._criteria.values(), key=lambda criterion: (criterion.family, criterion.name)))

    def __len__(self) -> int:
        """Number of criteria."""
        self._load_entry_points()
        return len(self._criteria)

    def __contains__(self, name: object) -> bool:
        """Whether a criterion has this name, parameters aside."""
        self._load_entry_points()
        return isinstance(name, str) and name.partition(":")[0] in self._criteria

    def _load_entry_points(self) -> None:
        group, self._entry_point_group = self._entry_point_group, None  # cleared first: loading looks names up, too
        if group is None:
            return
        try:
            for point in entry_points(group=group):
                self._load(point)
        except CriterionError:
            self._entry_point_group = group
            raise

    def _load(self, point: EntryPoint) -> None:
        before = dict(self._criteria)
        what = f"entry point {point.name!r} = {point.value!r} of group {point.group!r}"
        cure = "repair or uninstall the package that declares it"
        fresh = point.module not in sys.modules  # else it may have registered before
        try:
            point.load()
        except Exception as error:
            self._criteria = before
            raise CriterionError(f"{what} must load, got {type(error).__name__}: {error}; {cure}") from error
        if fresh and len(self._criteria) == len(before):
            raise CriterionError(f"{what} must be a module that registers criteria when imported, got none; {cure}")


CRITERIA = Registry(entry_point_group="blend.criteria")
"""The one registry that this software uses."""

register = CRITERIA.register
