"""The wheel: what is in it, and that a stranger's twenty lines work with it from another directory."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STRANGERS_TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from strangers_network import StrangersNetwork
from blend import Task

def stripes(examples: int = 300, seed: int = 0):
    torch.manual_seed(seed)
    targets = torch.arange(examples) % 3
    inputs = torch.randn(examples, 3, 12, 12)
    for image, target in zip(inputs, targets):
        image[target] += 0.5
    third = examples // 3
    calibration, heldout, test = (
        TensorDataset(inputs[i * third : (i + 1) * third], targets[i * third : (i + 1) * third]) for i in range(3)
    )
    model = StrangersNetwork()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs[:third]), targets[:third]).backward()
        optimiser.step()
    return Task(model, inputs[:2], calibration, heldout, test)
"""

STRANGERS_NETWORK = """
from torch import nn

class StrangersNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.two, self.head = nn.Conv2d(8, 10, 3), nn.Linear(10, 3)

    def forward(self, x):
        return self.head(self.two(self.norm(self.one(x)).relu()).relu().mean((2, 3)))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_wheel_holds_the_three_packages_and_nothing_of_tests_or_runs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"blend", "criteria", "search"}
    assert {f"{package}/py.typed" for package in tops} <= set(names)
    for package in tops:
        sources = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert sources == {name for name in names if name.startswith(f"{package}/") and name.endswith(".py")}


def test_a_strangers_task_works_from_another_directory(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel]
    subprocess.run(pip, check=True, capture_output=True)
    (elsewhere / "task.py").write_text(STRANGERS_TASK)
    (elsewhere / "strangers_network.py").write_text(STRANGERS_NETWORK)
    environment = os.environ | {"PYTHONPATH": str(site)}

    def run(*arguments):
        command = [sys.executable, "-m", "blend", *arguments]
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)

    where = subprocess.run(
        [sys.executable, "-c", "import blend; print(blend.__file__)"],
        cwd=elsewhere, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(site))
    options = ["-o", "examples=240", "--evaluations", "24", "--population", "8", "--workers", "2", "--name", "mine"]
    done = run("search", "task.py:stripes", *options, "--json")
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert (about["status"], about["evaluations"]) == ("finished", 24)
    assert 0.5 <= about["achieved_reduction"] < 0.6
    assert run("export", "mine", "mine.blend.json").returncode == 0
    exported = json.loads((elsewhere / "mine.blend.json").read_text())
    assert [group["name"] for group in exported["groups"]] == ["one", "two"]
    assert str(tmp_path) not in json.dumps(exported)
