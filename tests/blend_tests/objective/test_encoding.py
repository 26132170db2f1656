import random

import numpy as np
import pytest

from blend.blended.formula import Blender, GroupFormula, normalised
from blend.errors import InputError
from blend.objective.encoding import AllocationEncoding, ClusterEncoding, DirectEncoding, MaskEncoding, SharedEncoding
from criteria import Cluster, ScoreTable

CLUSTERS = {
    "g": (Cluster(("a", "b"), "a"), Cluster(("c",), "c")),
    "h": (Cluster(("c", "a"), "c"),),
}
VALUES = np.arange(3.0)
TABLE = ScoreTable(["a", "b", "c"], ["g", "h"], {(c, g): VALUES for c in "abc" for g in "gh" if (c, g) != ("b", "h")})


def test_the_space_of_clusters():
    free, fixed = ClusterEncoding(CLUSTERS), ClusterEncoding(CLUSTERS, offsets=False)
    assert [len(block) for block in free.space.blocks] == [4, 3]  # speaker and factor, factor, offset; the same; offset
    assert [len(block) for block in fixed.space.blocks] == [3, 2]
    assert len(free.space) == 7


def test_a_genome_of_clusters_solved_by_hand():
    genome = [1.0, 0.6, 0.2, 0.5, 0.0, 0.3, -0.25]
    assert ClusterEncoding(CLUSTERS).decode(genome) == {
        "g": GroupFormula(normalised({"b": 0.6, "c": 0.2}), 0.5),
        "h": GroupFormula((("c", 1.0),), -0.25),
    }
    assert ClusterEncoding(CLUSTERS, offsets=False).decode([0.0, 0.0, 0.0, 1.0, 0.7]) == {
        "g": GroupFormula((("a", 0.5), ("c", 0.5)), 0.0),  # all zero: all equal
        "h": GroupFormula((("a", 1.0),), 0.0),
    }


def test_a_genome_of_shared_factors_solved_by_hand():
    free, fixed = SharedEncoding(TABLE, ["g", "h"]), SharedEncoding(TABLE, ["g", "h"], offsets=False)
    assert [len(block) for block in free.space.blocks] == [3, 1, 1]
    assert [len(block) for block in fixed.space.blocks] == [3]
    expected = {
        "g": GroupFormula(normalised({"a": 0.5, "b": 0.25, "c": 0.25}), 0.1),
        "h": GroupFormula(normalised({"a": 0.5, "c": 0.25}), -0.1),  # b has no scores there
    }
    assert free.decode([0.5, 0.25, 0.25, 0.1, -0.1]) == expected
    assert fixed.decode([0.5, 0.25, 0.25]) == {name: GroupFormula(part.factors) for name, part in expected.items()}


def test_a_genome_of_direct_factors_solved_by_hand():
    free, fixed = DirectEncoding(TABLE, ["g", "h"]), DirectEncoding(TABLE, ["g", "h"], offsets=False, signed=True)
    assert [len(block) for block in free.space.blocks] == [4, 3]
    assert [len(block) for block in fixed.space.blocks] == [3, 2]
    assert free.decode([0.5, 0.25, 0.25, 0.1, 0.0, 0.3, -0.1]) == {
        "g": GroupFormula(normalised({"a": 0.5, "b": 0.25, "c": 0.25}), 0.1),
        "h": GroupFormula((("c", 1.0),), -0.1),
    }
    assert fixed.decode([-0.5, 0.25, 0.25, 0.0, -0.3]) == {
        "g": GroupFormula((("a", -0.5), ("b", 0.25), ("c", 0.25))),
        "h": GroupFormula((("c", -1.0),)),
    }
    assert min(fixed.space.sample(random.Random(0))) < 0 <= min(free.space.sample(random.Random(0))[:3])


def test_a_negative_factor_speaks_against():
    blender = Blender(TABLE)
    against = blender.scores({"g": GroupFormula((("a", -1.0),), 0.5)})["g"]
    assert against == pytest.approx([0.5 + 5 / 6, 1.0, 0.5 + 1 / 6])
    balanced = blender.scores({"g": GroupFormula((("a", -0.75), ("b", 0.25)))})["g"]
    assert balanced == pytest.approx([5 / 6, 3 / 6, 1 / 6])


def test_allocations_solved_by_hand():
    searched, fixed = AllocationEncoding(TABLE, ["g", "h"]), AllocationEncoding(TABLE, ["g", "h"], "c")
    assert searched.criteria == ("a", "c")  # b does not rank h
    assert [len(block) for block in searched.space.blocks] == [1, 1, 1]
    assert [len(block) for block in fixed.space.blocks] == [1, 1]
    expected = {"g": GroupFormula((("c", 1.0),), 0.1), "h": GroupFormula((("c", 1.0),), -0.2)}
    assert searched.decode([1.0, 0.1, -0.2]) == fixed.decode([0.1, -0.2]) == expected
    alone = {"g": {"c": 1.0}, "h": {"c": 1.0}}
    assert searched.encode(alone, {"g": 0.1, "h": -0.2}) == [1.0, 0.1, -0.2]
    assert fixed.encode(alone, {"g": 0.1, "h": -0.2}) == [0.1, -0.2]
    assert fixed.encode({"g": {"a": 1.0}, "h": {"a": 1.0}}, {}) is None
    assert searched.encode({"g": {"a": 1.0}, "h": {"c": 1.0}}, {}) is None
    assert searched.encode(searched.uniform_factors(), {}) is None


def test_an_allocation_needs_a_criterion_that_ranks_every_group():
    with pytest.raises(InputError, match="base must rank every group, but 'b' cannot rank 'h'"):
        AllocationEncoding(TABLE, ["g", "h"], "b")
    table = ScoreTable(["a", "b"], ["g", "h"], {("a", "g"): VALUES, ("b", "h"): VALUES})
    with pytest.raises(InputError, match="needs a criterion that ranks every group"):
        AllocationEncoding(table, ["g", "h"])


def test_masks_solved_by_hand():
    free, fixed = MaskEncoding(Blender(TABLE), ["g", "h"]), MaskEncoding(Blender(TABLE), ["g", "h"], offsets=False)
    assert [len(block) for block in free.space.blocks] == [3, 3]
    genome = [0.3, 0.1, 0.9, -0.5, 0.0, 2.0]
    assert Blender(TABLE).scores(free.decode(genome))["g"].tolist() == genome[:3]
    assert Blender(TABLE).scores(fixed.decode(genome))["h"] == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    factors = {"g": {"a": 1.0}, "h": {"c": 1.0}}
    assert free.encode(factors, {"h": 0.5}) == pytest.approx([1 / 6, 3 / 6, 5 / 6, 4 / 6, 1.0, 0.5 + 5 / 6])
    assert fixed.encode(factors, {"h": 0.5}) == pytest.approx([1 / 6, 3 / 6, 5 / 6] * 2)
    assert free.encode({"g": {"a": 1.0}, "h": {}}, {}) is None


def encodings(offsets):
    return (
        ClusterEncoding(CLUSTERS, offsets),
        SharedEncoding(TABLE, ["g", "h"], offsets),
        DirectEncoding(TABLE, ["g", "h"], offsets),
    )


@pytest.mark.parametrize("offsets", [True, False])
def test_factors_and_offsets_come_back_exactly(offsets):
    cluster, shared, direct = encodings(offsets)
    shifts = {"g": 0.125, "h": -1 / 3}
    kept = shifts if offsets else {"g": 0.0, "h": 0.0}
    for encoding, factors in (
        (cluster, {"g": {"b": 0.3, "c": 0.9}, "h": {"a": 0.7}}),
        (cluster, {"g": {"c": 1.0}, "h": {"c": 1.0}}),
        (shared, {"g": {"a": 0.3, "b": 0.1, "c": 0.9}, "h": {"a": 0.3, "c": 0.9}}),
        (shared, {"g": {"a": 1.0}, "h": {"a": 1.0}}),
        (direct, {"g": {"a": 0.3, "c": 0.9}, "h": {"a": 0.7}}),
        *((encoding, encoding.uniform_factors()) for encoding in (cluster, shared, direct)),
    ):
        genome = encoding.encode(factors, shifts)
        encoding.space.check(genome)
        expected = {group: GroupFormula(normalised(part), kept[group]) for group, part in factors.items()}
        assert encoding.decode(genome) == expected


@pytest.mark.parametrize("offsets", [True, False])
def test_every_genome_of_the_space_has_a_formula(offsets):
    rng = random.Random(0)
    for encoding in encodings(offsets):
        for _ in range(50):
            genome = encoding.space.sample(rng)
            formula = encoding.decode(genome)
            assert list(formula) == ["g", "h"]
            for group, part in formula.items():
                assert sum(factor for _, factor in part.factors) == pytest.approx(1.0, abs=1e-15)
                assert all(TABLE.get(name, group) is not None for name, _ in part.factors)
            # Factors are proportions: the formula again, but for rounding, when all genes that are factors are halved.
            shifts = {group: part.offset for group, part in formula.items()}
            again = encoding.decode(encoding.encode({g: dict(p.factors) for g, p in formula.items()}, shifts))
            if isinstance(encoding, ClusterEncoding):
                assert {g: [name for name, _ in p.factors] for g, p in again.items()} == {
                    g: [name for name, _ in p.factors] for g, p in formula.items()
                }
            assert {g: p.offset for g, p in again.items()} == shifts


def test_the_strongest_of_a_cluster_speaks():
    genome = ClusterEncoding(CLUSTERS).encode({"g": {"a": 0.2, "b": 0.4}, "h": {}}, {})
    assert genome == [1.0, 0.4, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_the_uniform_blend():
    cluster, shared, direct = encodings(True)
    assert cluster.uniform_factors() == {"g": {"a": 1.0, "c": 1.0}, "h": {"c": 1.0}}
    assert shared.uniform_factors() == {"g": {"a": 1.0, "b": 1.0, "c": 1.0}, "h": {"a": 1.0, "c": 1.0}}
    assert direct.uniform_factors() == shared.uniform_factors()
