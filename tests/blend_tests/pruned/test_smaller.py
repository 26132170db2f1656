"""``blend prune``, from the command line to the network in another process; and all that it refuses."""

import copy
import dataclasses
import errno
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from blend import BlendedCriterion, load_pruned
from blend.blended import NotCompensatedWarning
from blend.cli import run
from blend.compensation.correction import GRADES
from blend.config import search_config
from blend.errors import InputError
from blend.pipeline import start
from blend.pruned.choice import Request, choose
from blend.pruned.saved import RECORD, WEIGHTS, PruningRecord
from blend.task import load_task

from ..task_file import SmallNetwork, small, tunable

TASK = f"{Path(__file__).parents[1] / 'task_file.py'}:small"


@pytest.fixture(scope="module")
def criterion(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "it"
    config = search_config(task=TASK, evaluations=8, population=8, random_search=False, criteria=("l1", "l2", "fpgm"))
    return start(config, folder).folder / "criterion.blend.json"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "smaller"
    assert run(["prune", "l1", TASK, "--out", str(folder)]) == 0
    return folder


def prune(capsys, *arguments):
    code = run(["prune", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out) if out else err


def refused(capsys, *arguments, code=2):
    assert run(["prune", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    return err.strip().splitlines()[-1].removeprefix("error: ")


@pytest.mark.parametrize(("written", "recorded"), [("cap:patches=True", "cap:patches=true"), ("cap:ridge=0.01", "cap")])
def test_a_criterion_may_be_written_in_another_way(capsys, tmp_path, written, recorded):
    prune(capsys, written, TASK, "--out", tmp_path / "smaller")
    assert json.loads((tmp_path / "smaller" / RECORD).read_text())["criterion"]["name"] == recorded
    prune(capsys, written, TASK, "--out", tmp_path / "in-steps", "--iterative", "2")


@pytest.mark.parametrize(("at_first", "keeps"), [("None", "self.kept = made"), ("[]", "self.kept.append(made)")])
def test_the_network_may_keep_what_it_makes(capsys, tmp_path, at_first, keeps):
    source = Path(TASK.partition(":")[0]).read_text()
    keeping = source.replace("self.head(self.features(x).flatten(1))", "self.head(self.keep(x).flatten(1))") + f"""

def keep(self, x):
    made = self.features(x)
    {keeps}
    return made

SmallNetwork.keep, SmallNetwork.kept = keep, []
"""
    begun = f"    model.kept = {at_first}\n    return Task("
    (tmp_path / "keeping.py").write_text(keeping.replace("    return Task(", begun))
    task = f"{tmp_path / 'keeping.py'}:small"
    prune(capsys, "taylor_fo", task, "--out", tmp_path / "smaller")
    assert run(["compare", task, "--criteria", "l1,taylor_fo"]) == 0


def accuracy(network, data):
    with torch.no_grad():
        return float((network(data[0]).argmax(1) == data[1]).float().mean())


def test_table_and_folder_tell_the_same(capsys, tmp_path):
    out = tmp_path / "deep" / "smaller"
    told = prune(capsys, "l1", TASK, "--out", out, "--reduction", "0.4", "--json")
    assert {path.name for path in out.iterdir()} == {RECORD, WEIGHTS}
    assert not list(out.parent.glob(".*"))
    record, network = PruningRecord.load(out), load_pruned(out, SmallNetwork)
    before, after = record.stages
    assert told["stages"] == [before, after]
    assert 0.4 <= told["pruning"]["achieved"] < 0.6
    assert after["macs"] == pytest.approx(before["macs"] * (1 - told["pruning"]["achieved"]))
    assert after["parameters"] == sum(p.numel() for p in network.parameters()) < before["parameters"]
    assert after["bytes"] == (out / WEIGHTS).stat().st_size < before["bytes"]
    task = small()
    assert accuracy(network, task.heldout) == pytest.approx(after["heldout_metric"])
    assert accuracy(task.model, task.heldout) == pytest.approx(before["heldout_metric"])
    gone = {group.name: len(group.removed) for group in record.groups}
    assert network.features[0].out_channels == 12 - gone["features.0"]
    assert not network.training


def test_criterion_file_keeps_what_the_search_measured(capsys, tmp_path, criterion):
    out = tmp_path / "smaller"
    told = prune(capsys, criterion, TASK, "--out", out, "--json")
    file = BlendedCriterion.load(criterion)
    assert told["pruning"]["achieved"] == pytest.approx(file.metrics["best"]["reduction"])
    assert told["stages"][1]["heldout_metric"] == pytest.approx(file.metrics["best"]["heldout_metric"])
    assert told["criterion"]["file"] == criterion.name
    task = small()
    smaller = file.prune(task.model, task.example_input)
    for name, tensor in load_pruned(out, SmallNetwork).state_dict().items():
        if "running" not in name:
            torch.testing.assert_close(tensor, smaller.state_dict()[name], rtol=0, atol=0)


def test_a_file_brings_its_own_cost_reduction_and_floor(capsys, tmp_path):
    own = {"reduction": "0.3", "cost": "params", "floor": 0.3, "calibration_loss": "squared_norm"}
    config = search_config(task=TASK, evaluations=4, population=4, random_search=False, criteria=("l1", "l2"), **own)
    file = start(config, tmp_path / "it").folder / "criterion.blend.json"
    told = prune(capsys, file, TASK, "--out", tmp_path / "smaller", "--json")
    assert {key: told["pruning"][key] for key in ("reduction", "cost")} == {"reduction": 0.3, "cost": "params"}
    best = BlendedCriterion.load(file).metrics["best"]
    assert told["pruning"]["achieved"] == pytest.approx(best["reduction"])
    assert told["stages"][1]["heldout_metric"] == pytest.approx(best["heldout_metric"])
    request = Request(criterion=str(file), task=TASK, options={})
    config = choose(request).config
    assert (config.floor, config.calibration_loss) == (0.3, "squared_norm")
    assert config.seed == 0
    seeded = BlendedCriterion.load(file).model_copy(update={"seed": 3})
    seeded.save(tmp_path / "seeded.blend.json")
    by_three = dataclasses.replace(request, criterion=str(tmp_path / "seeded.blend.json"))
    assert choose(by_three).config.seed == 3
    assert choose(dataclasses.replace(by_three, seed="1")).config.seed == 1
    other = choose(dataclasses.replace(request, reduction="0.4", cost="macs", floor=0.2, calibration_loss="task"))
    assert (other.config.reduction, other.config.cost, other.config.floor) == (0.4, "macs", 0.2)


@pytest.mark.parametrize("pattern", ["features.0", "features.1"])  # a convolution, and its BatchNorm
def test_what_is_to_be_ignored_means_the_same_by_file_and_by_name(capsys, tmp_path, criterion, pattern):
    for number, one in enumerate((criterion, "l1")):
        out = tmp_path / f"{number}"
        prune(capsys, one, TASK, "--out", out, "--reduction", "0.3", "--ignore", pattern)
        gone = {group.name: group.removed for group in PruningRecord.load(out).groups}
        assert not gone.get("features.0")
        assert gone["features.3"]


def test_a_file_may_have_any_name(capsys, tmp_path, criterion):
    (tmp_path / "mine").write_bytes(criterion.read_bytes())
    record = prune(capsys, tmp_path / "mine", TASK, "--out", tmp_path / "smaller", "--json")
    assert record["criterion"]["file"] == "mine"


@pytest.mark.parametrize("grade", ["none", "patch"])
def test_a_file_prunes_by_itself_as_the_command_does(capsys, tmp_path, criterion, grade):
    file = BlendedCriterion.load(criterion).model_copy(update={"compensate": grade})
    file.save(tmp_path / "mine.blend.json")
    stages = prune(capsys, tmp_path / "mine.blend.json", TASK, "--out", tmp_path / "smaller", "--json")["stages"]
    assert [stage["stage"] for stage in stages][2:] == ([] if grade == "none" else ["compensated"])
    task = small()
    smaller = file.prune(task.model, task.example_input, calibration=task.calibration[0][:256])
    saved = load_pruned(tmp_path / "smaller", SmallNetwork).state_dict()
    assert saved.keys() == smaller.state_dict().keys()
    for name, tensor in smaller.state_dict().items():
        assert torch.equal(tensor, saved[name])
    with warnings.catch_warnings(record=True) as caught:
        file.prune(task.model, task.example_input)
    assert [warning.category for warning in caught] == ([] if grade == "none" else [NotCompensatedWarning])
    with pytest.raises(InputError, match="calibration must hold at least one input, got none"):
        file.prune(task.model, task.example_input, calibration=task.calibration[0][:0])


def test_options_are_kept(capsys, tmp_path, criterion):
    out = tmp_path / "smaller"
    prune(capsys, criterion, TASK, "--out", out, "--round-to", "4", "--min-channels", "5", "--reduction", "0.3",
          "--cost", "params", "--ignore", "features.0")  # fmt: skip
    network = load_pruned(out, SmallNetwork)
    assert network.features[0].out_channels == 12
    assert network.features[3].out_channels in (8, 12)
    record = PruningRecord.load(out)
    assert record.pruning["achieved"] >= 0.3
    assert record.pruning["cost"] == "params"


def test_frozen_parameters_stay_frozen_and_gradients_flow(pruned):
    def factory():
        model = SmallNetwork()
        model.head.requires_grad_(False)
        return model

    network = load_pruned(pruned, factory).train()
    network(torch.randn(4, 1, 8, 8)).sum().backward()
    assert network.head.weight.grad is None
    assert network.features[3].weight.grad.shape == network.features[3].weight.shape


@pytest.mark.parametrize("grade", ["channel", "patch", "sequential"])
def test_compensated_network_is_saved(capsys, tmp_path, grade):
    out = tmp_path / "smaller"
    told = prune(capsys, "l1", TASK, "--out", out, "--compensate", grade, "--json")
    assert told["pruning"]["compensate"] == grade
    unpruned, plain, compensated = told["stages"]
    assert compensated["macs"] == plain["macs"] < unpruned["macs"]
    assert compensated["heldout_loss"] != plain["heldout_loss"]
    task = small()
    assert accuracy(load_pruned(out, SmallNetwork), task.heldout) == pytest.approx(compensated["heldout_metric"])


def test_added_biases_are_loaded(capsys, tmp_path):
    file = tmp_path / "task.py"
    source = Path(TASK.partition(":")[0]).read_text()
    file.write_text(source.replace("nn.Linear(16 * 4, 4)", "nn.Linear(16 * 4, 4, bias=False)"))
    prune(capsys, "l1", f"{file}:small", "--out", tmp_path / "out", "--compensate", "channel", "--json")
    assert PruningRecord.load(tmp_path / "out").biases == ("head",)

    def factory():
        model = SmallNetwork()
        model.head = nn.Linear(64, 4, bias=False)
        return model

    assert load_pruned(tmp_path / "out", factory).head.bias.shape == (4,)


@pytest.mark.parametrize("task", ["digits", pytest.param("textures", marks=pytest.mark.slow)])
def test_better_grades_err_less(capsys, tmp_path, task):
    """Of the logits on held-out data, after recalibration."""
    found = load_task(task)
    inputs = found.heldout[0][:300]
    with torch.no_grad():
        expected, errors = found.model.eval()(inputs), []
        for grade in GRADES:
            prune(capsys, "cap", task, "--out", tmp_path / grade, "--compensate", grade)
            network = load_pruned(tmp_path / grade, lambda: copy.deepcopy(found.model))
            errors.append(float((network(inputs) - expected).square().mean() / expected.var()))
    none, channel, patch, sequential = errors
    assert sequential < patch < channel < none, errors


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["l1", TASK, "--compensate", "patches"], "compensate must be one of none, channel, patch, sequential, got"),
        (["l11", TASK], "did you mean 'l1'"),
        (["l1", "digit"], "did you mean 'digits'?"),
        (["l1", TASK, "--ignore", "nothing.*"], "no layer matches 'nothing.*'"),
        (["l1", TASK, "--ignore", "features.*"], "all layers are ignored"),
        (["l1", TASK, "--reduction", "1.5"], "reduction must be in (0, 1), got 1.5"),
        (["l1", TASK, "--reduction", "0.3:0.9"], "reduction must be a number in (0, 1), got '0.3:0.9'"),
        (["l1", TASK, "--reduction", "0.99"], "reduction 0.99 of macs cannot be reached: "),
        (["l1", TASK, "--reduction", "0.9", "--min-channels", "8"], "the largest possible is 0."),
        (["l1", TASK, "--round-to", "16"], "round-to must be at most the number of channels of every layer"),
        (["l1", TASK, "--round-to", "0"], "round-to must be at least 1, got 0"),
        (["l1", TASK, "--min-channels", "0"], "min-channels must be at least 1, got 0"),
        (["l1", TASK, "--allocation", "globe"], "allocation must be one of global, uniform, got 'globe'; did you mean"),
        (["l1", TASK, "--cost", "latency", "--iterative", "2"], "iterative must be left out with cost 'latency'"),
        (["l1", TASK, "--cost", "seconds"], "cost must be one of macs, params, latency, got 'seconds'"),
        (["missing.json", TASK], "cannot read 'missing.json'"),
        (["l1"], "Missing argument 'TASK'"),
    ],
)
def test_refuses_and_leaves_nothing(capsys, tmp_path, arguments, complaint):
    out = tmp_path / "out"
    assert complaint in refused(capsys, *arguments, "--out", out)
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_file_with_an_unknown_layer_to_ignore(capsys, tmp_path, criterion):
    told = refused(capsys, criterion, TASK, "--out", tmp_path / "out", "--ignore", "nowhere")
    assert "no layer matches 'nowhere'" in told
    told = refused(capsys, criterion, TASK, "--out", tmp_path / "out", "--ignore", "features")
    assert "all groups are ignored" in told


def test_scores_of_equal_shares_are_not_ranked_globally(capsys, tmp_path, criterion):
    file = BlendedCriterion.load(criterion).model_copy(update={"allocation": "uniform"})
    file.save(tmp_path / "it.blend.json")
    asked = [tmp_path / "it.blend.json", TASK, "--out", tmp_path / "out", "--allocation"]
    assert refused(capsys, *asked, "global") == (
        "allocation must be 'uniform' with 'it.blend.json', which was searched with equal shares, so that its scores "
        "are not comparable across groups, got 'global'"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["it.blend.json"]
    assert prune(capsys, *asked, "uniform", "--json")["pruning"]["allocation"] == "uniform"


def test_refuses_the_criterion_of_another_network(capsys, tmp_path, criterion):
    told = refused(capsys, criterion, "digits", "--out", tmp_path / "out")
    assert "belongs to another network: 'features.0.weight' has shape absent here and (12, 1, 3, 3) there" in told


def test_refuses_a_folder_that_is_there_before_it_works(capsys, tmp_path):
    (tmp_path / "out").mkdir()
    assert "out must be a folder that does not exist yet" in refused(capsys, "l1", "nowhere", "--out", tmp_path / "out")
    too_long = refused(capsys, "l1", "nowhere", "--out", tmp_path / ("x" * 300))
    assert "out must be a folder that can be made, got " in too_long
    assert too_long.rstrip().endswith("File name too long")


@pytest.mark.parametrize("broken", ["write_bytes", "write_text"])
def test_full_disk_leaves_nothing(capsys, tmp_path, monkeypatch, broken):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, broken, full)
    told = refused(capsys, "l1", TASK, "--out", tmp_path / "out", code=3)
    assert "could not be written" in told
    assert "No space left on device" in told
    assert list(tmp_path.iterdir()) == []


def test_onnx_computes_the_same(capsys, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    told = prune(capsys, "l1", TASK, "--out", out, "--compensate", "channel", "--onnx")
    assert "network.onnx differs from PyTorch by at most" in told
    session = onnxruntime.InferenceSession(out / "network.onnx", providers=["CPUExecutionProvider"])
    inputs = small().heldout[0][:5]
    [found] = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), load_pruned(out, SmallNetwork)(inputs), rtol=0, atol=1e-4)


def test_onnx_that_computes_something_else_is_refused(capsys, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("blend.pruned.parity.tolerance", lambda _: -1.0)
    told = refused(capsys, "l1", TASK, "--out", tmp_path / "out", "--onnx", code=3)
    assert "exported to ONNX computes something else" in told
    assert list(tmp_path.iterdir()) == []


def test_onnx_says_what_to_install(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("blend.pruned.onnx_export.find_spec", lambda name: None)
    told = refused(capsys, "l1", TASK, "--out", tmp_path / "out", "--onnx")
    assert told == "--onnx needs the package onnx; this package's extra 'onnx' installs it"


class TwoNames(nn.Module):
    """Registers its layers twice: by themselves and in a sequence."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.second, self.third = nn.Conv2d(12, 16, 3, bias=False), nn.Conv2d(16, 8, 3)
        self.body = nn.Sequential(self.first, self.norm, nn.ReLU(), self.second, nn.ReLU(), self.third, nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("more", [[], ["--compensate", "channel", "--iterative", "2", "--finetune", "2"]])
def test_layers_with_two_names_are_saved_and_loaded(capsys, tmp_path, more):
    file = tmp_path / "two_names.py"
    file.write_text(
        f"import torch\nfrom {__name__} import TwoNames\nfrom {tunable.__module__} import tunable\n"
        "def task():\n    found = tunable()\n    found.model = TwoNames().eval()\n    return found\n"
    )
    prune(capsys, "l1", f"{file}:task", "--out", tmp_path / "out", *more)
    network = load_pruned(tmp_path / "out", TwoNames)
    assert network.first is network.body[0]
    assert network.first.out_channels == network.second.in_channels < 12
    tensors = network.state_dict()
    assert torch.equal(tensors["body.3.weight"], tensors["second.weight"])
    assert (network.second.bias is None) == (not more)


class Wider(SmallNetwork):
    def __init__(self):
        super().__init__()
        self.features[3] = nn.Conv2d(12, 20, 3, padding=1)


class Deeper(SmallNetwork):
    def __init__(self):
        super().__init__()
        self.tail = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        (Wider, r"'features\.3\.weight' has shape \(20, 12, 3, 3\) in what it makes and \(16, 12, 3, 3\) in the"),
        (Deeper, r"'tail\.weight' has shape \(4, 4\) in what it makes and absent in the record"),
        (lambda: "network", "model_factory must make a torch.nn.Module, got str"),
    ],
)
def test_loading_refuses_another_network(pruned, factory, complaint):
    with pytest.raises(InputError, match=complaint):
        load_pruned(pruned, factory)


def test_loading_refuses_broken_folders(pruned, tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*pruning\.json"):
        load_pruned(tmp_path, SmallNetwork)
    shutil.copytree(pruned, tmp_path / "copy")
    record = json.loads((pruned / RECORD).read_text())
    record["cuts"][0]["removed"] = record["cuts"][0]["removed"][:-1]
    (tmp_path / "copy" / RECORD).write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"does not fit its record: 'features\.0\.weight' has shape"):
        load_pruned(tmp_path / "copy", SmallNetwork)
    (tmp_path / "copy" / RECORD).write_text('{"groups": 1}')
    with pytest.raises(InputError, match="is not a pruning record: "):
        load_pruned(tmp_path / "copy", SmallNetwork)
    (tmp_path / "copy" / WEIGHTS).write_bytes(b"nothing")
    record = json.loads((pruned / RECORD).read_text())
    (tmp_path / "copy" / RECORD).write_text(json.dumps({**record, "weights_sha256": None}))  # of an earlier version
    with pytest.raises(InputError, match="cannot read"):
        load_pruned(tmp_path / "copy", SmallNetwork)


@pytest.mark.parametrize("place", [-1, -100, 200])
def test_loading_refuses_weights_of_which_a_bit_is_another(pruned, tmp_path, place):
    shutil.copytree(pruned, tmp_path, dirs_exist_ok=True)
    content = bytearray((pruned / WEIGHTS).read_bytes())
    content[place] ^= 1
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.safetensors' is not the file that was written, or is damaged"):
        load_pruned(tmp_path, SmallNetwork)


@pytest.mark.parametrize(
    ("place", "change", "complaint"),
    [
        ("cuts", {"tensor": "nope"}, "cuts must be of dimensions that the network has, got 0 of 'nope'"),
        ("cuts", {"dim": 9}, "cuts must be of dimensions that the network has, got 9 of 'features.0.weight'"),
        ("cuts", {"removed": [1, 0]}, "removed must be some of the 12 positions of 'features.0.weight', ascending"),
        ("cuts", {"removed": [12]}, "removed must be some of the 12 positions of 'features.0.weight', ascending"),
        ("groups", {"removed": [0, 0]}, "removed must be some of the 12 positions of group 'features.0', ascending"),
    ],
)
def test_loading_refuses_a_record_that_contradicts_itself(pruned, tmp_path, place, change, complaint):
    shutil.copytree(pruned, tmp_path, dirs_exist_ok=True)
    record = json.loads((pruned / RECORD).read_text())
    record[place][0] |= change
    (tmp_path / RECORD).write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"is not a pruning record: .*{complaint}"):
        load_pruned(tmp_path, SmallNetwork)


def test_what_is_written_holds_no_pickle(pruned):
    assert b"torch" not in (pruned / WEIGHTS).read_bytes()
    assert isinstance(json.loads((pruned / RECORD).read_text()), dict)
