"""How criteria agree: rank correlations, clusters of those that would vote twice, overlap of what they would prune.

SciPy and scikit-learn take a second to import, which whoever needs no clusters, such as a worker, shall not wait for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from criteria.errors import CriterionValueError
from criteria.scores import ScoreTable, normalise

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]
Method = Literal["agglomerative", "kmeans"]


@dataclass(frozen=True)
class Cluster:
    """Criteria of one group whose rankings agree.

    Attributes:
        criteria: their names: the medoid, then the others in the table's order.
        medoid: the one that correlates best with the others: it speaks for the cluster.
    """

    criteria: tuple[str, ...]
    medoid: str


def spearman(table: ScoreTable, group: str) -> tuple[tuple[str, ...], Matrix]:
    """Spearman's rank correlation between all usable criteria of a group; equal scores share their mean rank.

    Returns:
        Names, and the symmetric matrix of shape (criteria, criteria) with ones on its diagonal.
    """
    names = table.usable(group)
    return names, _correlation(_standardised_ranks(table, group))


def cluster(
    table: ScoreTable,
    group: str,
    *,
    k: int | Literal["silhouette"] = 3,
    method: Method = "agglomerative",
    seed: int = 0,
) -> tuple[Cluster, ...]:
    """Group the usable criteria of a group by the agreement of their rankings.

    Args:
        table: the scores.
        group: name of the channel group.
        k: number of clusters, lowered to the number of different rankings; or ``silhouette``: the number from 2 to
            n - 1 with the best mean silhouette, the smallest of equals.
        method: ``agglomerative``, average linkage on the distance 1 - ρ; or ``kmeans`` on standardised ranks.
        seed: of k-means.

    Returns:
        Clusters in the table's order of their first criterion; none if the group has no usable criterion.

    Raises:
        CriterionValueError: ``k`` or ``method`` is not one of these.
    """
    if method not in get_args(Method):
        raise CriterionValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if k != "silhouette" and (not isinstance(k, int) or k < 1):
        raise CriterionValueError(f"k must be at least 1 or 'silhouette', got {k!r}")
    ranks = _standardised_ranks(table, group)
    distance = 1 - _correlation(ranks)

    def split(parts: int) -> Labels:
        return _labels(ranks, distance, parts, method, seed)

    different = len(np.unique(ranks, axis=0))
    labels = _by_silhouette(distance, different, split) if k == "silhouette" else split(min(k, different))
    names = table.usable(group)
    first_seen = dict.fromkeys(labels.tolist())
    return tuple(_cluster(names, distance, np.flatnonzero(labels == label)) for label in first_seen)


def _standardised_ranks(table: ScoreTable, group: str) -> Matrix:
    """Ranks of shape (criteria, channels), each row with mean 0 and length 1."""
    from scipy.stats import rankdata

    if not table.usable(group):
        return np.empty((0, 1))
    ranks = rankdata(table.matrix(group), axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    return np.asarray(ranks / np.linalg.norm(ranks, axis=1, keepdims=True), dtype=np.float64)


def _correlation(ranks: Matrix) -> Matrix:
    matrix = np.clip(ranks @ ranks.T, -1, 1).round(12)  # rounded, so that equals are equal whatever adds them up
    np.fill_diagonal(matrix, 1)
    return matrix


def _labels(ranks: Matrix, distance: Matrix, k: int, method: Method, seed: int) -> Labels:
    """The cluster of each criterion, as a number."""
    from sklearn.cluster import AgglomerativeClustering, KMeans

    if k in (len(ranks), 1):  # each its own, or all one: nothing to compute, and too little for scikit-learn
        return np.arange(len(ranks)) if k > 1 else np.zeros(len(ranks), dtype=np.int64)
    if method == "agglomerative":
        fitted = AgglomerativeClustering(k, metric="precomputed", linkage="average").fit(distance)
    else:
        fitted = KMeans(k, n_init=10, random_state=seed).fit(ranks)
    return np.asarray(fitted.labels_, dtype=np.int64)


def _by_silhouette(distance: Matrix, different: int, split: Callable[[int], Labels]) -> Labels:
    from sklearn.metrics import silhouette_score

    candidates = [split(k) for k in range(2, min(different, len(distance) - 1) + 1)]
    if not candidates:  # fewer than three criteria, or all alike
        return split(different)
    scores = [float(silhouette_score(distance, labels, metric="precomputed")) for labels in candidates]
    return candidates[int(np.round(scores, 12).argmax())]


def _cluster(names: Sequence[str], distance: Matrix, members: NDArray[np.intp]) -> Cluster:
    medoid = members[distance[np.ix_(members, members)].sum(1).round(12).argmin()]
    others = (names[member] for member in members if member != medoid)
    return Cluster(criteria=(names[medoid], *others), medoid=names[medoid])


def mean_spearman(table: ScoreTable) -> tuple[tuple[str, ...], Matrix]:
    """Spearman's rank correlation between all criteria, averaged over the groups where both are usable.

    Returns:
        Names, and a matrix of shape (criteria, criteria); NaN for a pair that no group has both of.
    """
    return table.criteria, _mean_over_groups(table, lambda group: spearman(table, group))


def mean_tail_overlap(table: ScoreTable, share: float) -> tuple[tuple[str, ...], Matrix]:
    """`tail_overlap` averaged over the groups where both criteria are usable.

    Returns:
        Names, and a matrix of shape (criteria, criteria); NaN for a pair that no group has both of.
    """
    return table.criteria, _mean_over_groups(table, lambda group: tail_overlap(table, group, share))


def _mean_over_groups(table: ScoreTable, of_group: Callable[[str], tuple[tuple[str, ...], Matrix]]) -> Matrix:
    shape = (len(table.criteria), len(table.criteria))
    total, count = np.zeros(shape), np.zeros(shape)
    for group in table.groups:
        names, matrix = of_group(group)
        where = np.ix_(*[[table.criteria.index(name) for name in names]] * 2)
        total[where] += matrix
        count[where] += 1
    return np.asarray(np.divide(total, count, out=np.full(shape, np.nan), where=count > 0))


def agglomeration(table: ScoreTable) -> tuple[Matrix, list[int]]:
    """How criteria merge as ever lower correlations are allowed: average linkage on 1 - mean ρ.

    A pair that no group has both of counts as uncorrelated.

    Returns:
        The linkage of shape (criteria - 1, 4) as SciPy has it, and the criteria in the order of its leaves, in which
        neighbours are as alike as can be.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    if len(table.criteria) < 2:
        return np.empty((0, 4)), list(range(len(table.criteria)))
    distance = np.clip(1 - np.nan_to_num(mean_spearman(table)[1], nan=0.0), 0, 2)
    np.fill_diagonal(distance, 0)
    condensed = squareform(distance, checks=False)
    tree = optimal_leaf_ordering(linkage(condensed, method="average"), condensed)
    return np.asarray(tree), [int(leaf) for leaf in leaves_list(tree)]


def tail_overlap(table: ScoreTable, group: str, share: float) -> tuple[tuple[str, ...], Matrix]:
    """How far criteria would prune the same filters, which a high correlation over all ranks does not tell.

    Args:
        table: the scores.
        group: name of the channel group.
        share: the part of the channels, those with the lowest scores, that is compared; at least one channel.

    Returns:
        Names, and for each pair the number of channels in both tails over the size of a tail.

    Raises:
        CriterionValueError: ``share`` is not in (0, 1).
    """
    if not 0 < share < 1:
        raise CriterionValueError(f"share must be in (0, 1), got {share}")
    names = table.usable(group)
    if not names:
        return names, np.empty((0, 0))
    ranks = np.stack([normalise(scores, "rank") for scores in table.matrix(group)]) * len(table.matrix(group)[0])
    size = max(1, round(share * ranks.shape[1]))
    tails = (ranks < size).astype(np.float64)
    return names, tails @ tails.T / size


def redundancy(table: ScoreTable, clusters: Mapping[str, Sequence[Cluster]], share: float) -> dict[str, Any]:
    """Everything above in one report, ready for JSON.

    Args:
        table: the scores.
        clusters: group → its clusters.
        share: for `tail_overlap`.

    Returns:
        ``criteria``, ``mean_spearman`` (None where undefined), ``tail_share``, ``notes``, and ``groups``: name →
        ``criteria``, ``spearman``, ``tail_overlap``, ``clusters``.
    """
    names, mean = mean_spearman(table)
    return {
        "criteria": list(names),
        "mean_spearman": [[None if np.isnan(rho) else float(rho) for rho in row] for row in mean],
        "tail_share": share,
        "groups": {
            group: {
                "criteria": list(table.usable(group)),
                "spearman": spearman(table, group)[1].tolist(),
                "tail_overlap": tail_overlap(table, group, share)[1].tolist(),
                "clusters": [{"medoid": c.medoid, "criteria": list(c.criteria)} for c in clusters.get(group, ())],
            }
            for group in table.groups
        },
        "notes": [asdict(note) for note in table.notes],
    }
