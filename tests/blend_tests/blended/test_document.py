"""Files of blended criteria: whatever happens to one, it is read as it was written, or refused for a reason."""

import copy
import json
import random

import jsonschema
import numpy as np
import pytest
import torch

from blend import schema
from blend.blended import BlendedCriterion
from blend.blended.document import checksum
from blend.blended.score_export import write_scores
from blend.errors import InputError
from blend.identity import OtherWeightsWarning

from ..small_networks import graph_of, images
from .test_blended import GRAPH, MODEL, TABLE, blend

FUZZED = 2_000


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.blend.json"
    blend().save(path)
    return path


def test_the_published_schema_is_that_of_the_program_and_its_files_keep_it(file):
    assert schema.FILE.read_text() == schema.text(), "make docs writes it anew"
    published = json.loads(schema.FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(json.loads(file.read_text()), published)
    with pytest.raises(jsonschema.ValidationError, match="'checksum' is a required property"):
        jsonschema.validate(json.loads(blend().model_dump_json()), published)


def test_the_checksum_is_what_the_schema_says_it_is(file):
    plain = json.loads(file.read_text())
    written = plain.pop("checksum")
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    import hashlib

    assert written == "sha256:" + hashlib.sha256(canonical.encode("ascii")).hexdigest()


@pytest.mark.parametrize(
    "tamper",
    [
        lambda d: d["groups"][0]["scores"].reverse(),
        lambda d: d.update(reduction=0.6),
        lambda d: d["metrics"].update(margin=1.0),
        lambda d: d.pop("checksum"),
        lambda d: d.update(checksum=["sha256:"]),
    ],
)
def test_a_file_that_somebody_changed_is_refused(file, tamper):
    plain = json.loads(file.read_text())
    tamper(plain)
    file.write_text(json.dumps(plain))
    with pytest.raises(InputError, match=r"a\.blend\.json' was changed after it was written: its checksum is"):
        BlendedCriterion.load(file)


def test_formatting_is_no_change(file):
    file.write_text(json.dumps(json.loads(file.read_text()), sort_keys=True, indent=7))
    assert BlendedCriterion.load(file) == blend()


def test_a_newer_version_asks_for_an_update(file):
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 3}))
    with pytest.raises(InputError, match=r"has schema version 3, and this version of blend knows those up to 2"):
        BlendedCriterion.load(file)


def test_a_file_of_version_1_is_read(file):
    old = json.loads(blend().model_dump_json()) | {"schema_version": 1}
    for criterion in old["criteria"]:
        del criterion["parameters"]
    file.write_text(json.dumps(old))
    assert BlendedCriterion.load(file) == blend()


def test_nothing_that_happens_to_a_file_gets_through(file, tmp_path):
    """Bytes and values are changed at random; half of the changed values under a checksum that fits them."""
    rng = random.Random(0)
    whole, plain = file.read_bytes(), json.loads(blend().model_dump_json())
    outcomes = {"refused": 0, "valid": 0}
    for number in range(FUZZED):
        file.write_bytes(_damaged_bytes(whole, rng) if number % 2 else _damaged_values(plain, rng))
        loaded, reason = _loaded(file)
        outcomes["refused" if loaded is None else "valid"] += 1
        if loaded is None:
            assert str(file) in reason
        else:
            _check_valid(loaded)
    assert outcomes["refused"] > FUZZED // 2
    assert outcomes["valid"] > 0  # some changes are harmless: a space, another name of the task


def _loaded(file):
    try:
        return BlendedCriterion.load(file), ""
    except InputError as error:
        return None, str(error)


def _check_valid(loaded):
    for group in loaded.groups:
        assert len(group.scores) == group.size
        assert np.isfinite(group.scores).all()
    assert 0 < loaded.reduction < 1
    try:
        keep = loaded.keep_mask(GRAPH)
    except InputError:  # it belongs to another network, or its reduction is impossible
        return
    assert keep.shape == (len(GRAPH),)


def _damaged_bytes(content, rng):
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 3))):
        start = rng.randrange(len(damaged))
        match rng.randrange(4):
            case 0:
                damaged[start] ^= 1 << rng.randrange(8)
            case 1:
                del damaged[start : start + rng.randrange(1, 50)]
            case 2:
                damaged[start:start] = rng.choice((b" ", b"0", b'"', b"[", b"\xff", b"NaN", rng.randbytes(4)))
            case _:
                del damaged[start:]
        if not damaged:
            break
    return bytes(damaged)


def _damaged_values(plain, rng):
    damaged = copy.deepcopy(plain)
    parent = damaged
    while True:
        key = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        if not isinstance(parent[key], (dict, list)) or not parent[key] or rng.random() < 0.15:
            break
        parent = parent[key]
    match rng.randrange(4):
        case 0:
            del parent[key]
        case 1:
            parent[key] = rng.choice((None, -1, 0, 1e300, 10**40, "", "ä\ud800", [], {}, [[]], True, {"a": 1}))
        case 2 if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        case _:
            parent[key] = [parent[key]]
    return json.dumps(damaged | {"checksum": checksum(damaged)} if rng.random() < 0.8 else damaged).encode()


def test_other_weights_are_warned_of_and_another_layout_is_not_used():
    other = copy.deepcopy(MODEL)
    with torch.no_grad():
        other.stem[0].weight.mul_(1.1)
    with pytest.warns(OtherWeightsWarning, match="computed on other weights of this layout .* recompute them"):
        blend().prune(other, images(2))


@pytest.mark.filterwarnings("error")
def test_the_same_weights_are_not_warned_of():
    blend().prune(graph_of("resnet20")[0], images(2))


class TestTables:
    def test_csv(self, tmp_path):
        write_scores(tmp_path / "a.csv", blend(), TABLE)
        header, *lines = (tmp_path / "a.csv").read_text().splitlines()
        assert header == "group,channel,layers,blend,one,two,three"
        assert len(lines) == len(GRAPH)
        first = lines[0].split(",")
        group = GRAPH.groups[0].name
        assert first[:3] == [group, "0", "stem.0 stages.0.0.conv2 stages.0.1.conv2 stages.0.2.conv2"]
        scores = blend().groups[0].scores[0], *(TABLE.get(name, group)[0] for name in ("one", "two", "three"))
        assert tuple(map(float, first[3:])) == scores

    def test_npz(self, tmp_path):
        write_scores(tmp_path / "a.npz", blend(), TABLE)
        with np.load(tmp_path / "a.npz", allow_pickle=False) as columns:
            assert list(columns) == ["group", "channel", "layers", "blend", "one", "two", "three"]
            for group in blend().groups:
                mine = columns["group"] == group.name
                assert columns["channel"][mine].tolist() == list(range(group.size))
                assert columns["blend"][mine].tolist() == list(group.scores)
                assert columns["two"][mine].tolist() == TABLE.get("two", group.name).tolist()

    def test_where_a_criterion_does_not_apply_there_is_nothing(self, tmp_path):
        from criteria import ScoreTable

        some = {("one", g.name): np.arange(g.size, dtype=float) for g in GRAPH.groups[1:]}
        table = ScoreTable(["one"], [g.name for g in GRAPH.groups], some, [])
        write_scores(tmp_path / "a.csv", blend(), table)
        assert (tmp_path / "a.csv").read_text().splitlines()[1].endswith(",")
        write_scores(tmp_path / "a.npz", blend(), table)
        assert np.isnan(np.load(tmp_path / "a.npz")["one"][0])

    def test_that_cannot_be_written(self, tmp_path):
        with pytest.raises(InputError, match="cannot write"):
            write_scores(tmp_path / "no" / "a.csv", blend(), TABLE)
