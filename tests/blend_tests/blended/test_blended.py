import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from blend.blended import BlendedCriterion, BlendedGroup, CriterionRecord, Spokesman, layer_names, library_versions
from blend.blended.document import checksum
from blend.blended.formula import Blender, GroupFormula
from blend.budget import CostModel, floors, keep_mask
from blend.errors import InputError
from blend.identity import NetworkIdentity, weight_hash
from criteria import CRITERIA, ChannelGraph

from ..small_networks import graph_of, images, macs, random_table

MODEL, GRAPH = graph_of("resnet20")
TABLE = random_table(GRAPH, ["one", "two", "three"])
FORMULA = {
    group.name: GroupFormula((("one", 0.7), ("three", 0.3)) if i % 2 else (("two", 1.0),), (i - 6) / 70)
    for i, group in enumerate(GRAPH.groups)
}
SCORES = Blender(TABLE).scores(FORMULA)


def blend(graph=GRAPH, **changes):
    layers = layer_names(graph)
    groups = tuple(
        BlendedGroup(
            name=name, size=len(SCORES[name]), layers=layers[name], clusters=(("one", "two"), ("three",)),
            candidates=tuple(Spokesman(criterion=c, factor=f) for c, f in part.factors), offset=part.offset,
            scores=tuple(SCORES[name].tolist()),
        )
        for name, part in FORMULA.items()
    )  # fmt: skip
    values = {
        "groups": groups, "normalisation": "rank", "allocation": "global", "reduction": 0.5, "cost": "macs",
        "criteria": (CriterionRecord(name="one", family="control", reference="", parameters={}),),
        "task": {"name": "none", "ignore": []}, "seed": 3,
        "network": NetworkIdentity(layout=graph.fingerprint, weights=weight_hash(MODEL), shapes=graph.shapes),
        "metrics": {"margin": {"heldout": 0.1}}, "versions": library_versions(),
    }  # fmt: skip
    return BlendedCriterion(**values | changes)


def test_a_file_comes_back_as_it_was(tmp_path):
    blend().save(tmp_path / "a.blend.json")
    loaded = BlendedCriterion.load(tmp_path / "a.blend.json")
    assert loaded == blend()
    for name, scores in loaded.frozen_scores(GRAPH).items():
        assert scores.tobytes() == SCORES[name].tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.blend.json"]
    plain = json.loads((tmp_path / "a.blend.json").read_text())  # readable without this software
    assert plain["groups"][0]["scores"] == SCORES[GRAPH.groups[0].name].tolist()
    assert plain["schema_version"] == 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6))
def test_floats_come_back_bit_for_bit(values):
    group = BlendedGroup(
        name="g", size=len(values), layers=("g",), clusters=(), candidates=(Spokesman(criterion="one", factor=1 / 3),),
        offset=values[0], scores=tuple(values),
    )  # fmt: skip
    loaded = BlendedGroup.model_validate_json(group.model_dump_json())
    assert np.array(loaded.scores).tobytes() == np.array(values).tobytes()
    assert loaded.candidates[0].factor == 1 / 3


def test_a_file_that_cannot_be_written_or_read(tmp_path):
    with pytest.raises(InputError, match=r"cannot write '.*nowhere/a.blend.json'"):
        blend().save(tmp_path / "nowhere" / "a.blend.json")
    with pytest.raises(InputError, match=r"cannot read '.*a\.blend.json'"):
        BlendedCriterion.load(tmp_path / "a.blend.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        blend().save(tmp_path / "folder.json")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


def text(change):
    """A file with a change that its checksum knows of."""
    plain = json.loads(blend().model_dump_json())
    change(plain)
    return json.dumps(plain | {"checksum": checksum(plain)})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not json", r"document: invalid JSON"),
        (blend().model_dump_json()[:-40], r"document: invalid JSON, maybe cut off"),
        ("[" * 100_000, r"document: invalid JSON"),
        ("[]", r"document: must be an object, got list"),
        ("{}", r"schema_version: must be a whole number from 1 to 2, got None"),
        ('{"schema_version": true}', r"schema_version: must be a whole number from 1 to 2, got True"),
        ('{"schema_version": 1, "seed": NaN}', r"document: invalid JSON.*NaN is not JSON"),
        ('{"schema_version": 1, "seed": 1e999}', r"document: invalid JSON.*1e999 is too large"),
        ('{"schema_version": 1, "criteria": [3]}', r"groups: Field required"),
        (text(lambda d: d.update(extra=1)), r"extra: Extra inputs are not permitted"),
        (text(lambda d: d["groups"][1].update(extra=1)), r"groups\.1\.extra: Extra inputs are not permitted"),
        (text(lambda d: d["groups"].append(d["groups"][0])), r"document: .*'stem\.0' must be there once, got it 2"),
        (text(lambda d: d.pop("network")), r"network: Field required"),
        (text(lambda d: d.update(groups=[])), r"groups: Tuple should have at least 1 item"),
        (text(lambda d: d.update(reduction=1.0)), r"reduction: Input should be less than 1"),
        (text(lambda d: d["groups"][0]["scores"].pop()), r"groups\.0: .*group 'stem\.0' has 4 channels but 3 scores"),
        (text(lambda d: d["groups"][0]["scores"].__setitem__(2, None)), r"groups\.0\.scores\.2: .*valid number"),
        (text(lambda d: d.update(seed="3")), r"seed: .*valid integer"),
        (text(lambda d: d["groups"][0]["scores"].__setitem__(2, "1")), r"groups\.0\.scores\.2: .*valid number"),
        (text(lambda d: d["groups"][0]["candidates"][0].update(factor=True)), r"groups\.0\.candidates\.0\.factor: "),
        (text(lambda d: d["groups"][0].update(name="\ud800")), r"document: Invalid JSON"),
        (text(lambda d: d["task"].update(ignore=None)), r"task\.ignore: Input should be a valid array"),
        (text(lambda d: d["task"].update(ignore="head")), r"task\.ignore: Input should be a valid array"),
        (text(lambda d: d["task"].update(splits={"test": "abc"})), r"task\.splits\.test: Input should be an object"),
        (text(lambda d: d["metrics"].update(baselines=[{"name": "l1"}])), r"metrics\.baselines\.0\.kind: Field req"),
        (text(lambda d: d["groups"][0].pop("candidates")), r"groups\.0\.candidates: Field required"),
        (
            text(lambda d: d["groups"][0]["candidates"][0].update(factor=-1.1)),
            r"groups\.0\.candidates\.0\.factor: .*greater than or equal to -1",
        ),
    ],
)
def test_broken_files_are_refused_with_the_place(tmp_path, content, reason):
    (tmp_path / "a.blend.json").write_text(content)
    with pytest.raises(InputError, match=rf"'.*a\.blend\.json' is not a blended criterion: {reason}"):
        BlendedCriterion.load(tmp_path / "a.blend.json")


def test_another_layout_is_refused_with_the_first_difference():
    wider = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    graph = ChannelGraph.build(wider, images(2))
    with pytest.raises(InputError, match=r"'stem\.0\.weight' has shape absent here and \(4, 3, 3, 3\) there"):
        blend().frozen_scores(graph)
    other, _ = graph_of("resnet20")
    other.stages[0][0].conv1 = nn.Conv2d(4, 7, 3, padding=1, bias=False)
    other.stages[0][0].bn1 = nn.BatchNorm2d(7)
    other.stages[0][0].conv2 = nn.Conv2d(7, 4, 3, padding=1, bias=False)
    with pytest.raises(
        InputError, match=r"'stages\.0\.0\.conv1\.weight' has shape \(7, 4, 3, 3\) here and \(4, 4, 3, 3\)"
    ):
        blend().prune(other, images(2))
    fewer = ChannelGraph.build(MODEL, images(2), ignore=["stem"])
    with pytest.raises(InputError, match="its layers have these shapes but other couplings"):
        blend().keep_mask(fewer)


def test_groups_that_do_not_fit_the_layout_are_refused():
    first, *rest = blend().groups
    short = first.model_copy(update={"size": 3, "scores": first.scores[:3]})
    with pytest.raises(InputError, match=r"group 'stem\.0' has 3 scores, but 4 channels"):
        blend(groups=(short, *rest)).keep_mask(GRAPH)
    stranger = first.model_copy(update={"name": "stern"})
    with pytest.raises(InputError, match="group 'stern' has 4 scores, but None channels"):
        blend(groups=(stranger, *rest)).keep_mask(GRAPH)


@pytest.mark.parametrize("reduction", [None, 0.3, 0.7])
def test_a_pruned_network_has_the_reduction(reduction):
    asked = 0.5 if reduction is None else reduction
    pruned = blend().prune(MODEL, images(2), reduction)
    achieved = 1 - macs(pruned, images(2)) / macs(MODEL, images(2))
    assert achieved == CostModel(GRAPH).reduction(blend().keep_mask(GRAPH, reduction))
    assert asked <= achieved < asked + 0.02
    pruned(images(2)).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    assert all(parameter.grad is None for parameter in MODEL.parameters())


def test_layers_that_the_task_ignored_stay_whole():
    graph = ChannelGraph.build(MODEL, images(2), ignore=["stem"])
    kept = tuple(group for group in blend().groups if group.name in graph.slices)
    identity = NetworkIdentity(layout=graph.fingerprint, weights=weight_hash(MODEL), shapes=graph.shapes)
    pruned = blend(groups=kept, network=identity, task={"ignore": ["stem"]}).prune(MODEL, images(2), 0.3)
    assert pruned.stem[0].out_channels == 4


def test_the_floor_of_the_search_holds():
    cost = CostModel(GRAPH)
    for floor in (0.0, 0.6):
        expected = keep_mask(GRAPH, SCORES, 0.5, cost, floors(GRAPH, floor))
        assert np.array_equal(blend(floor=floor).keep_mask(GRAPH, 0.5), expected)
    assert not np.array_equal(blend(floor=0.0).keep_mask(GRAPH, 0.5), blend(floor=0.6).keep_mask(GRAPH, 0.5))


def test_recomputed_scores_are_the_frozen_ones_for_the_same_table():
    again, frozen = blend().recomputed_scores(TABLE), blend().frozen_scores(GRAPH)
    assert {name: scores.tobytes() for name, scores in again.items()} == {
        name: scores.tobytes() for name, scores in frozen.items()
    }
    other = blend().recomputed_scores(random_table(GRAPH, ["one", "two", "three"], seed=1))
    assert any(not np.array_equal(other[name], frozen[name]) for name in frozen)


def test_layer_names_are_the_producers():
    assert layer_names(GRAPH)["stem.0"] == ("stem.0", "stages.0.0.conv2", "stages.0.1.conv2", "stages.0.2.conv2")


def test_versions_name_what_the_result_depends_on():
    assert (
        library_versions()["torch"] == torch.__version__.split("+")[0]
        or library_versions()["torch"] == torch.__version__
    )


def test_versions_name_the_packages_that_criteria_are_from():
    own, home = CRITERIA.get("l1"), pytest.approx.__module__.partition(".")[0]
    foreign, local = replace(own, function=pytest.approx), replace(own, function=of_these_tests)
    assert home == "_pytest"
    assert library_versions([own, foreign, local]) == library_versions() | {"pytest": pytest.__version__}


def of_these_tests(stats):
    return stats.weight.sum(1)
