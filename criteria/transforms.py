"""Scores made comparable between groups, for a global ranking: inside of a group no order changes.

Pure functions of group → scores; what they are given is not changed.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from criteria.errors import CriterionValueError

Scores = NDArray[np.float64]
Groups = Mapping[str, NDArray[np.floating]]


def balanced(scores: Groups) -> dict[str, Scores]:
    r"""Scale each group's scores so that all groups have the same mean, :math:`s_l\, \bar m / m_l`.

    RANP's weighted step: Xu et al., 2020, arXiv:2010.02488. The common mean :math:`\bar m` is that of the groups'
    means.

    Args:
        scores: group → scores of shape (channels,), with a positive mean.

    Returns:
        Group → scores.

    Raises:
        CriterionValueError: a group's mean is not positive, so that scaling it would turn its order round.
    """
    groups = _checked(scores)
    means = {group: float(values.mean()) for group, values in groups.items()}
    for group, mean in means.items():
        if not mean > 0:
            raise CriterionValueError(f"scores of group {group!r} must have a positive mean to be balanced, got {mean}")
    common = float(np.mean(list(means.values())))
    return {group: values * (common / means[group]) for group, values in groups.items()}


def resource_aware(scores: Groups, cost: Mapping[str, float], *, strength: float) -> dict[str, Scores]:
    r"""Keep cheap groups, prune costly ones: :math:`s_l\, (1 + \lambda\, \mathrm{softmax}_l(-\tau_l / \max \tau))`.

    RANP-f with MACs as the cost, RANP-m with memory (Xu et al., 2020, arXiv:2010.02488).

    Args:
        scores: group → scores of shape (channels,), at least 0, as a factor would lower what is negative.
        cost: group → its cost :math:`\tau`, positive, in any unit.
        strength: :math:`\lambda`, at least 0, which changes nothing.

    Returns:
        Group → scores.

    Raises:
        CriterionValueError: a cost, the strength or a score is out of its range, or the groups differ.
    """
    groups = _checked(scores)
    _same_groups("cost", cost, groups)
    if not (np.isfinite(strength) and strength >= 0):
        raise CriterionValueError(f"strength must be at least 0, got {strength}")
    for group, values in groups.items():
        if not (np.isfinite(cost[group]) and cost[group] > 0):
            raise CriterionValueError(f"cost of group {group!r} must be positive, got {cost[group]}")
        if values.min() < 0:
            raise CriterionValueError(f"scores of group {group!r} must be at least 0, got {values.min()}")
    largest = max(cost[group] for group in groups)
    weights = {group: float(np.exp(-cost[group] / largest)) for group in groups}
    total = sum(weights.values())
    return {group: values * (1 + strength * weights[group] / total) for group, values in groups.items()}


def affine(scores: Groups, scale: Mapping[str, float], shift: Mapping[str, float]) -> dict[str, Scores]:
    r"""A line for each group, :math:`\alpha_l s_l + \kappa_l` (LeGR; Chin et al., CVPR 2020, arXiv:1904.12368).

    Args:
        scores: group → scores of shape (channels,).
        scale: group → :math:`\alpha`, positive.
        shift: group → :math:`\kappa`.

    Returns:
        Group → scores.

    Raises:
        CriterionValueError: a scale is not positive, a shift is not finite, or the groups differ.
    """
    groups = _checked(scores)
    _same_groups("scale", scale, groups)
    _same_groups("shift", shift, groups)
    for group in groups:
        if not (np.isfinite(scale[group]) and scale[group] > 0):
            raise CriterionValueError(f"scale of group {group!r} must be positive, got {scale[group]}")
        if not np.isfinite(shift[group]):
            raise CriterionValueError(f"shift of group {group!r} must be finite, got {shift[group]}")
    return {group: scale[group] * values + shift[group] for group, values in groups.items()}


def _checked(scores: Groups) -> dict[str, Scores]:
    groups = {group: np.asarray(values, dtype=np.float64) for group, values in scores.items()}
    for group, values in groups.items():
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
            raise CriterionValueError(f"scores of group {group!r} must be a finite vector, got {values}")
    if not groups:
        raise CriterionValueError("scores must hold at least one group, got none")
    return groups


def _same_groups(what: str, values: Mapping[str, float], groups: Mapping[str, Scores]) -> None:
    if different := sorted(set(values) ^ set(groups)):
        raise CriterionValueError(f"{what} must be given for exactly the groups with scores, got {different} otherwise")
