import json

import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from scipy.stats import spearmanr

from criteria import (
    Cluster,
    CriterionError,
    Note,
    ScoreTable,
    cluster,
    mean_spearman,
    redundancy,
    spearman,
    tail_overlap,
)


def table_of(notes=(), **scores):
    """A table of one group from criterion → scores."""
    return ScoreTable(list(scores), ["g"], {(name, "g"): np.array(s, float) for name, s in scores.items()}, notes)


def noisy(signal, noise, seed):
    return signal + noise * np.random.default_rng(seed).normal(size=len(signal))


def three_families():
    """a1, a2, a3 around one signal (a2 the nearest), b1, b2 around another, c alone."""
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 60))
    return table_of(
        b1=noisy(b, 0.2, 4), a1=noisy(a, 0.4, 1), c=c, a2=noisy(a, 0.01, 2), b2=noisy(b, 0.2, 5), a3=noisy(a, 0.4, 3)
    )


def members(clusters):
    return [set(found.criteria) for found in clusters]


# --- correlation ---------------------------------------------------------------------------------------------------


def test_spearman_by_hand():
    table = table_of(up=[1, 2, 3, 4], steep=[1, 10, 100, 1e6], down=[4, 3, 2, 1], tied=[1, 1, 2, 2], swap=[2, 1, 3, 4])
    names, matrix = spearman(table, "g")
    assert names == table.criteria
    # Tied ranks 1.5, 1.5, 3.5, 3.5: covariance 4 over sqrt(5 · 4); one swap: 1 - 6 · 2 / (4 · 15) = 0.8.
    np.testing.assert_allclose(matrix[0], [1, 1, -1, 4 / np.sqrt(20), 0.8], rtol=1e-11)
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(matrix.diagonal(), 1)


def test_spearman_agrees_with_scipy():
    table = table_of(**{f"c{i}": np.random.default_rng(i).normal(size=30).round(1) for i in range(5)})
    np.testing.assert_allclose(spearman(table, "g")[1], spearmanr(table.matrix("g"), axis=1).statistic, atol=1e-11)


def test_unusable_criteria_are_left_out():
    table = ScoreTable(["x", "y"], ["g", "h"], {("y", "g"): np.arange(3.0)}, [Note("x", "g", "why")])
    assert spearman(table, "g")[0] == ("y",)
    assert spearman(table, "g")[1].tolist() == [[1]]
    assert spearman(table, "h")[1].shape == (0, 0)


def test_mean_spearman_is_over_the_groups_that_have_both():
    up, down, other = np.arange(3.0), -np.arange(3.0), np.array([0, 2.0, 1])
    scores = {("x", "g"): up, ("y", "g"): up, ("x", "h"): up, ("y", "h"): other, ("x", "i"): down, ("z", "j"): up}
    names, matrix = mean_spearman(ScoreTable(["x", "y", "z", "none"], ["g", "h", "i", "j", "k"], scores))
    assert names == ("x", "y", "z", "none")
    nan = np.nan
    expected = [[1, 0.75, nan, nan], [0.75, 1, nan, nan], [nan, nan, 1, nan], [nan] * 4]
    np.testing.assert_allclose(matrix, expected, rtol=1e-11)


# --- clusters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["agglomerative", "kmeans"])
@pytest.mark.parametrize("k", [3, "silhouette"])
def test_families_are_found(method, k):
    clusters = cluster(three_families(), "g", k=k, method=method)
    assert members(clusters) == [{"b1", "b2"}, {"a1", "a2", "a3"}, {"c"}]  # in the table's order of their first
    assert clusters[1] == Cluster(criteria=("a2", "a1", "a3"), medoid="a2")
    assert clusters[0].medoid == "b1"  # of two, the table's first


@pytest.mark.parametrize("method", ["agglomerative", "kmeans"])
def test_duplicates_never_vote_twice(method):
    signal, other, third = np.random.default_rng(0).normal(size=(3, 20))
    table = table_of(a=signal, b=other, copy=signal, c=third, shape=np.exp(signal))
    for k in (3, 4, 5, 99, "silhouette"):
        together = [found for found in cluster(table, "g", k=k, method=method) if "a" in found.criteria]
        assert {"a", "copy", "shape"} <= set(together[0].criteria)
    assert len(cluster(table, "g", k=99, method=method)) == 3
    assert [c.medoid for c in cluster(table, "g", k=3, method=method)] == ["a", "b", "c"]


def test_average_linkage_by_hand():
    # Squared rank differences of 4, 10 and 6 in all: ρ = 1 - 6 Σd² / (n³ - n) = 1 - Σd² / 20.
    table = table_of(x=[1, 2, 3, 4, 5], y=[2, 1, 3, 5, 4], z=[3, 2, 1, 5, 4])
    rho = spearman(table, "g")[1]
    np.testing.assert_allclose(rho, [[1, 0.8, 0.5], [0.8, 1, 0.7], [0.5, 0.7, 1]], rtol=1e-11)
    assert members(cluster(table, "g", k=2)) == [{"x", "y"}, {"z"}]
    whole = cluster(table, "g", k=1)
    assert whole == (Cluster(("y", "x", "z"), "y"),)  # 0.2 + 0.3 away from the others; x is 0.2 + 0.5, z 0.5 + 0.3


def test_linkage_is_average_as_scipy_understands_it():
    def partition(distance, names, linkage):
        labels = hierarchy.fcluster(hierarchy.linkage(squareform(distance), linkage), 3, "maxclust")
        return {frozenset(np.array(names)[labels == label].tolist()) for label in labels}

    unlike_single = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        table = table_of(**{f"c{i}": rng.normal(size=20) for i in range(8)})
        names, rho = spearman(table, "g")
        found = {frozenset(c.criteria) for c in cluster(table, "g", k=3)}
        assert found == partition(1 - rho, names, "average")
        unlike_single += found != partition(1 - rho, names, "single")
    assert unlike_single > 10


@pytest.mark.parametrize("method", ["agglomerative", "kmeans"])
@pytest.mark.parametrize("k", [1, 3, "silhouette"])
def test_few_criteria(method, k):
    up, down = [1, 2, 3], [3, 2, 1]
    assert cluster(ScoreTable(["x"], ["g"], {}), "g", k=k, method=method) == ()
    assert cluster(table_of(x=up), "g", k=k, method=method) == (Cluster(("x",), "x"),)
    assert cluster(table_of(x=up, y=up), "g", k=k, method=method) == (Cluster(("x", "y"), "x"),)
    assert len(cluster(table_of(x=up, y=down), "g", k=k, method=method)) == (1 if k == 1 else 2)


def test_every_criterion_is_in_one_cluster_whatever_k():
    table = three_families()
    for k in range(1, 9):
        clusters = cluster(table, "g", k=k)
        assert len(clusters) == min(k, 6)
        assert sorted(name for found in clusters for name in found.criteria) == sorted(table.criteria)
        assert [table.criteria.index(min(c.criteria, key=table.criteria.index)) for c in clusters] == sorted(
            min(table.criteria.index(name) for name in c.criteria) for c in clusters
        )
        assert all(found.criteria[0] == found.medoid for found in clusters)


def test_the_same_seed_gives_the_same_clusters():
    table = table_of(**{f"c{i}": np.random.default_rng(i).normal(size=30) for i in range(9)})
    for method in ("agglomerative", "kmeans"):
        assert cluster(table, "g", method=method, seed=5) == cluster(table, "g", method=method, seed=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be at least 1 or 'silhouette', got 0"),
        ({"k": 2.5}, "k must be at least 1 or 'silhouette', got 2.5"),
        ({"k": "best"}, "k must be at least 1 or 'silhouette', got 'best'"),
        ({"method": "ward"}, "method must be one of agglomerative, kmeans, got 'ward'"),
    ],
)
def test_wrong_choices(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        cluster(table_of(x=[1, 2]), "g", **arguments)
    assert isinstance(caught.value, CriterionError)


# --- what would be pruned ------------------------------------------------------------------------------------------


def test_tail_overlap_by_hand():
    up = np.arange(10.0)
    turned = np.array([2, 1, 0, 9, 8, 7, 6, 5, 4, 3.0])  # the lowest three alike, all else reversed
    table = table_of(up=up, turned=turned, down=-up, half=[0, 9, 1, 8, 7, 6, 5, 4, 3, 2])
    names, matrix = tail_overlap(table, "g", 0.3)
    assert names == ("up", "turned", "down", "half")
    np.testing.assert_allclose(matrix[0], [1, 1, 0, 2 / 3])
    np.testing.assert_array_equal(matrix, matrix.T)
    assert tail_overlap(table, "g", 0.01)[1][0].tolist() == [1, 0, 0, 1]  # at least one channel


def test_a_high_correlation_can_hide_different_tails():
    order = np.arange(100.0)
    swapped = order.copy()
    swapped[:5], swapped[5:10] = order[5:10], order[:5]
    table = table_of(x=order, y=swapped)
    assert spearman(table, "g")[1][0, 1] > 0.99
    assert tail_overlap(table, "g", 0.05)[1][0, 1] == 0


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_a_tail_is_a_proper_share(share):
    with pytest.raises(ValueError, match=rf"share must be in \(0, 1\), got {share}"):
        tail_overlap(table_of(x=[1, 2]), "g", share)


def test_the_report_is_json():
    scores = {("x", "g"): np.arange(4.0), ("y", "g"): np.array([1, 0, 2, 3.0]), ("x", "h"): np.arange(2.0)}
    table = ScoreTable(["x", "y", "z"], ["g", "h", "i"], scores, [Note("z", "g", "why")])
    clusters = {group: cluster(table, group, k=1) for group in table.groups}
    report = json.loads(json.dumps(redundancy(table, clusters, 0.25), allow_nan=False))
    assert report["criteria"] == ["x", "y", "z"]
    assert report["mean_spearman"][2] == [None, None, None]
    assert report["mean_spearman"][0] == [1, pytest.approx(0.8), None]
    assert report["tail_share"] == 0.25
    assert report["groups"]["g"] == {
        "criteria": ["x", "y"],
        "spearman": [[1, pytest.approx(0.8)], [pytest.approx(0.8), 1]],
        "tail_overlap": [[1, 0], [0, 1]],
        "clusters": [{"medoid": "x", "criteria": ["x", "y"]}],
    }
    assert report["groups"]["i"] == {"criteria": [], "spearman": [], "tail_overlap": [], "clusters": []}
    assert report["notes"] == [{"criterion": "z", "group": "g", "reason": "why"}]
