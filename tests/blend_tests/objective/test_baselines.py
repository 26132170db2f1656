import numpy as np
import pytest

from blend.blended.formula import Blender
from blend.budget import ALLOCATIONS, CostModel, floors, keep_mask, uniform
from blend.config import search_config
from blend.evaluation import HeldoutEvaluation, pack
from blend.objective import BlendObjective
from blend.objective.baselines import RANDOM_MASKS, Contest
from blend.objective.encoding import encoding_for
from criteria import ScoreTable

from ..small_networks import clusters_of, graph_of, random_table

CRITERIA = ("one", "two", "three", "four", "five")
MODEL, GRAPH = graph_of("resnet20")
GROUPS = [group.name for group in GRAPH.groups]
COST = CostModel(GRAPH)
HOLES = {  # 'two' is degenerate in two groups, and nothing but 'three' speaks in a third one
    **{("two", group): True for group in GROUPS[2:4]},
    **{(name, GROUPS[5]): True for name in CRITERIA if name != "three"},
}


def contest(table, encoding="cluster", offsets=True, normalisation="rank", reduction=0.5, seed=0, share=0.1):
    clusters = clusters_of(table)
    blender = Blender(table, normalisation)
    allocation = "global" if offsets else "uniform"
    meaning = encoding_for(search_config(task="any", encoding=encoding, allocation=allocation), clusters, blender)
    return Contest(
        GRAPH, table, clusters, meaning, blender, COST, floors(GRAPH, share), reduction, ALLOCATIONS, seed,
    )  # fmt: skip


def phenotype(found, genome):
    evaluate = HeldoutEvaluation(workspace=None)  # nothing is evaluated
    objective = BlendObjective(found.encoding, found.blender, GRAPH, COST, found.floor, found.reduction, evaluate)
    return objective.phenotype(genome)


@pytest.mark.parametrize("missing", [(), tuple(HOLES)], ids=["whole", "holes"])
@pytest.mark.parametrize("normalisation", ["rank", "minmax", "z"])
@pytest.mark.parametrize("encoding", ["cluster", "shared", "direct"])
@pytest.mark.parametrize("offsets", [True, False], ids=["global", "uniform"])
def test_genomes_stand_for_the_very_masks(encoding, normalisation, offsets, missing):
    compared = 0
    for seed in range(4):
        found = contest(
            random_table(GRAPH, CRITERIA, seed, missing), encoding, offsets, normalisation, 0.3 + 0.1 * seed
        )
        for baseline in found.baselines():
            if baseline.genome is not None:
                found.encoding.space.check(baseline.genome)
                assert phenotype(found, baseline.genome) == pack(baseline.masks[0]), baseline.name
                compared += 1
    # With offsets both allocations of what has scores everywhere, and the uniform one of what has not; without, only
    # the uniform allocation of what has scores everywhere. With the holes, only 'three' has.
    blends = 2 if offsets else 1
    singles = {(True, False): 10, (False, False): 5, (True, True): 6, (False, True): 1}[offsets, bool(missing)]
    assert compared == 4 * (singles + blends)


@pytest.mark.parametrize("missing", [(), tuple(HOLES)], ids=["whole", "holes"])
@pytest.mark.parametrize(
    ("encoding", "offsets", "expected"),
    [
        ("allocation", True, {"whole": 10, "holes": 2}),  # singles only, and only those with scores everywhere
        ("mask", True, {"whole": 12, "holes": 4}),  # and the uniform blends
        ("mask", False, {"whole": 6, "holes": 2}),
    ],
)
def test_what_an_encoding_cannot_express_has_no_genome(encoding, offsets, expected, missing):
    found = contest(random_table(GRAPH, CRITERIA, 1, missing), encoding, offsets)
    expressed = [baseline for baseline in found.baselines() if baseline.genome is not None]
    for baseline in expressed:
        found.encoding.space.check(baseline.genome)
        assert phenotype(found, baseline.genome) == pack(baseline.masks[0]), baseline.name
    assert len(expressed) == expected["holes" if missing else "whole"]


def test_a_single_criterion_goes_by_its_own_scores():
    table = random_table(GRAPH, CRITERIA)
    for baseline in contest(table, normalisation="z").baselines():
        if baseline.kind == "single":
            raw = {group: table.get(baseline.name, group) for group in GROUPS}
            ranked = uniform(raw) if baseline.allocation == "uniform" else raw
            assert np.array_equal(baseline.masks[0], keep_mask(GRAPH, ranked, 0.5, COST))


def test_who_takes_part():
    found = contest(random_table(GRAPH, CRITERIA)).baselines()
    assert [(b.name, b.allocation) for b in found if b.kind == "single"] == [
        (name, allocation) for allocation in ALLOCATIONS for name in CRITERIA
    ]
    assert [(b.name, b.allocation) for b in found if b.kind == "uniform_blend"] == [
        ("uniform-blend", allocation) for allocation in ALLOCATIONS
    ]
    assert all(COST.reduction(mask) >= 0.5 for b in found for mask in b.masks)


def test_groups_that_a_criterion_cannot_rank_are_left_whole():
    table = random_table(GRAPH, CRITERIA, missing=HOLES)
    found = {(b.name, b.allocation): b for b in contest(table).baselines()}
    assert ("two", "global") not in found
    baseline = found["two", "uniform"]
    assert baseline.note == f"cannot rank {', '.join(sorted([*GROUPS[2:4], GROUPS[5]]))}: left whole"
    whole = [group.name for group, part in GRAPH.split(baseline.masks[0]) if part.all()]
    assert set(GROUPS[2:4]) <= set(whole)
    assert found["three", "uniform"].note == ""


def test_a_criterion_that_cannot_reach_the_reduction_does_not_take_part():
    everywhere = random_table(GRAPH, ["one"])
    scores = {("one", group): everywhere.get("one", group) for group in GROUPS}
    table = ScoreTable(["one", "few"], GROUPS, scores | {("few", GROUPS[0]): scores["one", GROUPS[0]]})
    found = contest(table, reduction=0.7).baselines()
    assert {b.name for b in found} == {"one", "uniform-blend", "random-mask"}
    few = [b for b in contest(table, reduction=0.05).baselines() if b.name == "few"]
    assert [b.allocation for b in few] == ["uniform"]


def test_random_masks_follow_the_seed():
    table = random_table(GRAPH, CRITERIA)
    masks = [contest(table, seed=seed).baselines()[-1].masks for seed in (1, 1, 2)]
    assert len(masks[0]) == RANDOM_MASKS
    assert len({pack(mask) for mask in masks[0]}) == RANDOM_MASKS
    assert [pack(mask) for mask in masks[0]] == [pack(mask) for mask in masks[1]]
    assert pack(masks[0][0]) != pack(masks[2][0])
