"""`blend doctor`: what it looks at, what it says, its exit code, and a stranger's package with broken criteria."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from blend.cli import run
from blend.doctor import environment
from blend.doctor.environment import Finding, attempt
from blend.doctor.examination import examine, failed, findings_table, is_foreign, verdict
from blend.progress import console
from criteria import CRITERIA
from tests.criteria_tests import broken_criteria

ROOT = Path(__file__).parents[3]

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "strangers-criteria"
version = "1"
[project.entry-points."blend.criteria"]
strangers = "strangers_criteria"
[tool.setuptools]
py-modules = ["strangers_criteria"]
"""

REGISTERED = """
from criteria import register

def sound(stats):
    "The L1 norm once more."
    return stats.weight.abs().sum(1)

for function in (sound, not_a_number, wrong_length, ties, sign_error, leaking_state, leftover_hook, modified_grad):
    register(function.__name__, family="strange", needs={"weight"}, reference="none")(function)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with a stranger's package really installed in it."""
    project, folder = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site")
    source = Path(broken_criteria.__file__).read_text()
    (project / "strangers_criteria.py").write_text(source[: source.index("BROKEN = ")] + REGISTERED)
    (project / "pyproject.toml").write_text(PYPROJECT)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", folder, project], check=True, capture_output=True)
    return folder


def test_a_strangers_broken_criteria_are_each_found(site, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "blend", "doctor", "--json"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{site}:{ROOT}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] is False
    found = {(finding["area"], finding["name"]) for finding in report["findings"] if finding["outcome"] == "fail"}
    for function, (check, _) in broken_criteria.BROKEN.items():
        assert (f"criterion {function.__name__}", check) in found
    assert not [area for area, _ in found if area == "criterion sound"]
    assert {finding["area"] for finding in report["findings"]} == {
        "environment", "folders", "workers", "criterion sound",
        *(f"criterion {function.__name__}" for function in broken_criteria.BROKEN),
    }  # fmt: skip


def test_a_package_that_does_not_load_is_named(tmp_path):
    info = tmp_path / "lost-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lost\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[blend.criteria]\nlost = no_such_module\n")
    done = subprocess.run(
        [sys.executable, "-m", "blend", "doctor"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 3
    assert "entry point 'lost' = 'no_such_module'" in done.stderr.splitlines()[-1]


def test_all_is_well_here(capsys, tmp_path):
    assert run(["doctor", "--json", "--runs-dir", str(tmp_path / "runs")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    names = [finding["name"] for finding in report["findings"]]
    assert names == ["Python", "packages", "extras", "torch", "cache", "runs", "SQLite", "answer", "die", "third-party"]
    assert not (tmp_path / "runs").exists()


def test_the_table_is_for_people_and_all_tries_the_built_in_criteria(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(CRITERIA, "_criteria", {name: CRITERIA.get(name) for name in ("l1", "fpgm")})
    assert run(["doctor", "--all", "--runs-dir", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    for words in ("Python", "SQLite", "criterion fpgm", "criterion l1", "forward + backward"):
        assert words in " ".join(err.split())


def test_a_folder_that_cannot_be_written_fails(capsys):
    assert run(["doctor", "--runs-dir", "/proc/runs"]) == 3
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint.startswith("error: 2 of the checks failed: folders, runs: ")
    assert complaint.endswith("; 1 more")


def test_criteria_are_not_tried_where_the_environment_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "_torch", lambda: 1 / 0)
    findings = list(examine(tmp_path, built_in=True))
    assert failed(findings) == [Finding("environment", "torch", "fail", "ZeroDivisionError: division by zero")]
    assert all(not finding.area.startswith("criteri") for finding in findings)
    assert verdict(failed(findings)).startswith("1 of the checks failed: environment, torch: ZeroDivisionError")


def test_versions_are_held_against_what_is_asked_for(monkeypatch):
    monkeypatch.setattr(environment, "requires", lambda name: ["numpy>=1000", 'pytest; extra == "dev"'])
    assert attempt("a", "b", environment._packages).reason.startswith("RuntimeError: numpy>=1000 must be")
    monkeypatch.setattr(environment, "requires", lambda name: ["no-such-package-here>=1"])
    assert attempt("a", "b", environment._packages).reason.endswith("no-such-package-here>=1 must be installed")
    monkeypatch.setattr(environment, "_metadata", lambda key: ">=99")
    assert "Python must be >=99" in attempt("a", "b", environment._python).reason


def test_extras_that_are_not_installed_are_told_with_what_they_lack(monkeypatch):
    asked = ['joblib>=1; extra == "dask"', 'joblib>=1000; extra == "ray"', 'no-such-package>=1; extra == "onnx"']
    monkeypatch.setattr(environment, "requires", lambda name: ["numpy>=1", *asked])
    finding = attempt("a", "b", environment._extras)
    assert finding.outcome == "pass"
    there, lacking = finding.reason.split("; not there: ")
    assert "dask" in there.split(", ")
    assert lacking == f"onnx (no-such-package>=1), ray (joblib>=1000, got {version('joblib')})"


def test_without_an_installed_distribution_versions_are_not_applicable(monkeypatch):
    monkeypatch.setattr(environment, "DISTRIBUTION", "no-such-package-here")
    assert attempt("a", "b", environment._python).outcome == "not applicable"
    assert attempt("a", "b", environment._packages).outcome == "not applicable"
    assert attempt("a", "b", environment._extras).outcome == "not applicable"


def test_a_worker_that_stays_is_found(monkeypatch):
    monkeypatch.setattr(environment, "GRACE", 0.1)
    monkeypatch.setattr(environment, "_who", lambda _: (1, "1"))  # process 1 always runs
    assert "worker process 1 must end with the executor" in attempt("a", "b", environment._worker_answers).reason


def test_a_death_that_is_not_told_of_is_found(monkeypatch):
    monkeypatch.setattr(environment, "_die_or_answer", lambda die: "alive")
    assert attempt("a", "b", environment._worker_dies).reason.startswith("RuntimeError: a killed worker must be")


def test_what_looks_like_markup_is_shown_as_it_is(capsys):
    console().print(findings_table([Finding("a", "b", "fail", "numpy[extra] [bold] [/tmp/labels.txt]")]))
    assert "numpy[extra] [bold] [/tmp/labels.txt]" in capsys.readouterr().err


def test_built_in_criteria_are_not_foreign():
    assert not any(is_foreign(criterion) for criterion in CRITERIA)
