"""Networks in other formats. What is loaded here was written a moment before."""

import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from blend import load_pruned
from blend.cli import run
from blend.errors import BlendError, InputError
from blend.pruned import parity
from blend.pruned.exports import (
    FORMATS,
    PROGRAM,
    TORCHSCRIPT,
    export,
    export_program,
    export_torchscript,
    parse_formats,
    try_formats,
)
from criteria import ChannelGraph

from ..adapters.blends import blend_for
from ..task_file import SmallNetwork, small
from .test_smaller import TASK

WRITERS = {"TorchScript": export_torchscript, "torch.export": export_program}


def loaded(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(path) if path.name == TORCHSCRIPT else torch.export.load(path).module()


def test_command_writes_what_computes_the_same(capsys, tmp_path):
    out = tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code = run(["prune", "l1", TASK, "--out", str(out), "--compensate", "patch", "--format", "torchscript,export"])
    told = capsys.readouterr().err
    assert code == 0, told
    assert "deprecated" not in told
    inputs = small().heldout[0][:5]
    with torch.no_grad():
        expected = load_pruned(out, SmallNetwork)(inputs)
        for file in (TORCHSCRIPT, PROGRAM):
            assert f"{file} differs from PyTorch by at most" in told
            torch.testing.assert_close(loaded(out / file)(inputs), expected, rtol=0, atol=1e-4)


class ByValue(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class BySize(nn.Module):
    """Right for the number of examples that it is exported with alone."""

    def forward(self, x):
        return x.flatten(1) * torch.arange(1.0, 9.0)[:, None][: len(x)].flip(0) if len(x) == 8 else x.flatten(1)


@pytest.mark.parametrize(
    ("format", "complaint"),
    [
        ("TorchScript", r"cannot be exported to TorchScript: what it does at .*test_exports\.py:\d+ depends on its"),
        ("torch.export", r"cannot be exported to torch\.export: GuardOnDataDependentSymNode"),
    ],
)
def test_decisions_by_value_are_refused_with_the_place(capfd, tmp_path, format, complaint):
    with pytest.raises(BlendError, match=complaint):
        WRITERS[format](ByValue(), torch.randn(8, 3), tmp_path / "it")
    assert list(tmp_path.iterdir()) == []
    out, err = capfd.readouterr()
    assert out == err == ""


@pytest.mark.parametrize("format", WRITERS)
def test_what_holds_for_one_number_of_examples_is_refused(tmp_path, format):
    with pytest.raises(BlendError, match=f"exported to {format}"):
        WRITERS[format](BySize(), torch.randn(8, 3), tmp_path / "it")


@pytest.mark.parametrize("format", WRITERS)
def test_what_computes_something_else_is_refused(monkeypatch, tmp_path, format):
    monkeypatch.setattr(parity, "tolerance", lambda _: -1.0)
    with pytest.raises(BlendError, match=f"exported to {format} computes something else: outputs differ by 0"):
        WRITERS[format](nn.Linear(3, 2).eval(), torch.randn(8, 3), tmp_path / "it")


def test_command_leaves_nothing_of_a_network_that_cannot_be_exported(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(parity, "tolerance", lambda _: -1.0)
    code = run(["prune", "l1", TASK, "--out", str(tmp_path / "out"), "--format", "export"])
    assert code == 3
    assert "exported to torch.export computes something else" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


BRANCHING = """
class Branching(SmallNetwork):
    def forward(self, x):
        return super().forward(x if x.sum() < 1e9 else 0 * x)
"""


@pytest.mark.parametrize("by", ["l1", "file"])
def test_a_network_that_cannot_be_exported_is_refused_before_any_work(capsys, monkeypatch, tmp_path, by):
    source = Path(TASK.partition(":")[0]).read_text().replace("= SmallNetwork()", "= Branching()")
    (tmp_path / "task.py").write_text(source + BRANCHING)
    task = small()
    if by == "file":
        by = str(tmp_path / "it.blend.json")
        blend_for(task.model, ChannelGraph.build(task.model, task.example_input)).save(by)
    for later in ("blend.problem.scored_by", "blend.pruned.smaller.Steps", "blend.pruned.smaller.Stages"):
        monkeypatch.setattr(later, None)
    before = {path.name for path in tmp_path.iterdir()}
    asked = ["prune", by, f"{tmp_path / 'task.py'}:small", "--out", str(tmp_path / "out")]
    assert run([*asked, "--format", "torchscript"]) == 3
    told = capsys.readouterr().err
    assert "error: the network cannot be exported to TorchScript: what it does at" in told.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == before


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_precisions_that_onnx_runtime_does_not_have_are_refused_in_a_line(capsys, tmp_path, dtype):
    pytest.importorskip("onnxruntime")
    source, cast = Path(TASK.partition(":")[0]).read_text(), f"to(torch.{dtype})"
    source = source.replace("    splits = ", f"    model, inputs = model.{cast}, inputs.{cast}\n    splits = ")
    (tmp_path / "task.py").write_text(source)
    code = run(["prune", "l1", f"{tmp_path / 'task.py'}:small", "--out", str(tmp_path / "out"), "--onnx"])
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert code == 3
    assert told.splitlines()[-1].startswith("error: the network cannot be exported to ONNX: ")
    assert not (tmp_path / "out").exists()


def test_trying_leaves_the_network_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    network = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train()
    try_formats(("torchscript", "export"), network, torch.randn(8, 3))
    assert network.training
    assert list(tmp_path.iterdir()) == []


def test_trying_where_nothing_can_be_written_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(BlendError, match="format 'export' could not be tried in a temporary folder: FileNotFoundError"):
        try_formats(("export",), nn.Linear(3, 2), torch.randn(8, 3))


def test_formats_are_named_once_and_known():
    assert parse_formats(" torchscript, onnx,torchscript", onnx=True) == ("torchscript", "onnx")
    assert parse_formats("") == ()
    with pytest.raises(InputError, match="must be one or more of onnx, torchscript, export, got 'torchscrip'; did you"):
        parse_formats("onnx,torchscrip")
    assert len({it.file for it in FORMATS.values()}) == len(FORMATS)


def test_nothing_is_written_unasked(tmp_path):
    export((), nn.Linear(3, 2), torch.randn(8, 3), tmp_path)
    assert list(tmp_path.iterdir()) == []
