"""The registry of criteria: built-in ones and those of other packages, by name."""

import difflib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from torch import Tensor

from criteria.claims import CLAIMS, default_claims
from criteria.errors import CriterionError, CriterionValueError
from criteria.views import NEEDS, GroupStats, Side

CriterionFunction = Callable[[GroupStats], Tensor]


@dataclass(frozen=True)
class Criterion:
    """A named function that gives each channel of a view a score; higher = keep.

    Attributes:
        name: what it is asked for by.
        family: what kind of evidence it looks at.
        needs: names of the statistics it reads, see `NEEDS`; all on one side.
        reference: where the formula comes from.
        function: view → tensor of shape (channels,).
        claims: what it claims of its scores, see `CLAIMS`.
    """

    name: str
    family: str
    needs: frozenset[str]
    reference: str
    function: CriterionFunction
    claims: frozenset[str] = frozenset()

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    @property
    def side(self) -> Side:
        """The side whose views it scores."""
        return next((NEEDS[need].side for need in self.needs), "producer")

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
            CriterionError: the view lacks something, or the function returned another shape.
        """
        if reason := self.missing(stats):
            raise CriterionError(reason)
        scores = self.function(stats)
        if not isinstance(scores, Tensor) or scores.shape != (stats.rows,):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise CriterionError(
                f"criterion {self.name!r} must return a tensor of shape ({stats.rows},) for {stats.layer!r}, got {got}"
            )
        return scores


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
            CriterionValueError: the name is taken, or a need or claim is unknown, or needs lie on two sides.
        """
        if unknown := sorted(set(needs) - set(NEEDS)):
            raise CriterionValueError(f"needs of {name!r} must be among {', '.join(NEEDS)}, got {', '.join(unknown)}")
        if unknown := sorted(set(claims or ()) - set(CLAIMS)):
            raise CriterionValueError(f"claims of {name!r} must be among {', '.join(CLAIMS)}, got {', '.join(unknown)}")
        if len({NEEDS[need].side for need in needs}) > 1:
            raise CriterionValueError(f"needs of {name!r} must be of one side, got {', '.join(sorted(needs))}")

        def add(function: CriterionFunction) -> CriterionFunction:
            if name in self._criteria:
                owner = self._criteria[name].function.__module__
                raise CriterionValueError(f"criterion name must be unique, got {name!r}, which {owner} registered")
            claimed = default_claims(needs) if claims is None else frozenset(claims)
            self._criteria[name] = Criterion(name, family, frozenset(needs), reference, function, claims=claimed)
            return function

        return add

    def get(self, name: str) -> Criterion:
        """The criterion called ``name``.

        Raises:
            CriterionValueError: there is none; the message suggests the nearest name.
        """
        self._load_entry_points()
        if name not in self._criteria:
            near = difflib.get_close_matches(name, self._criteria, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(self.names())}"
            raise CriterionValueError(f"criterion must be a registered name, got {name!r}; {hint}")
        return self._criteria[name]

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
        """Whether a criterion has this name."""
        self._load_entry_points()
        return name in self._criteria

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
        try:
            point.load()
        except Exception as error:
            self._criteria = before
            raise CriterionError(
                f"entry point {point.name!r} = {point.value!r} of group {point.group!r} must load, "
                f"got {type(error).__name__}: {error}; repair or uninstall the package that declares it"
            ) from error


CRITERIA = Registry(entry_point_group="blend.criteria")
"""The one registry that this software uses."""

register = CRITERIA.register
