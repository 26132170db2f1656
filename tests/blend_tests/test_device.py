"""Networks elsewhere than on the CPU: on a device that computes like it and refuses its tensors, and on a GPU."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import blend.device
from blend.blended import BlendedCriterion
from blend.config import search_config
from blend.device import check_device, device_count, own_device
from blend.errors import InputError
from blend.pipeline import start
from blend.runs import EXPORT
from criteria import CRITERIA
from tests import second_device

from .pipeline.test_pipeline import TASK

SECOND = "tests.second_device.task"
SEARCH = (
    "--evaluations", "24", "--population", "8", "--criteria", "l1,bn_scale,taylor_fo,apoz,cap", "--workers", "2",
    "--no-random-search", "--precision", "bf16", "--compensate", "patch",
)  # fmt: skip
PRUNE = ("--finetune", "2", "--iterative", "2", "--compensate", "channel")


class TestNames:
    def test_cpu_is_always_there(self):
        check_device("cpu")
        assert device_count("cpu") == 1
        assert own_device("cpu") == torch.device("cpu")

    @pytest.mark.parametrize("name", ["gpu", "cuda", "cuda:7", "privateuseone"])
    def test_what_is_not_there_is_refused(self, name):
        if name == "cuda" and torch.cuda.is_available():
            pytest.skip("it is")
        with pytest.raises(InputError, match=f"^device must be .*, got '{name}'$"):
            check_device(name)
        assert device_count(name) == 0

    @pytest.mark.parametrize("name", ["", "CUDA", "cuda:", "cuda:x", "cpu:0", "cuda 1"])
    def test_what_is_no_name_is_refused(self, name):
        with pytest.raises(InputError, match=f"^device must be cpu, or an accelerator's kind.*, got {name!r}$"):
            search_config(task="digits", device=name)
        assert device_count(name) == (name == "cpu:0")

    def test_a_search_without_the_device_leaves_nothing(self, tmp_path):
        with pytest.raises(InputError, match="device must be 'cpu'"):
            start(search_config(task=TASK, device="xpu"), tmp_path / "run")
        assert not list(tmp_path.iterdir())


class ThreeOfAKind:
    """What torch tells of accelerators."""

    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 3)
    get_device_properties = staticmethod(lambda index: object())


class TestSeveral:
    @pytest.fixture(autouse=True)
    def three(self, monkeypatch, tmp_path):
        monkeypatch.setattr(blend.device, "_module", lambda kind: ThreeOfAKind)
        monkeypatch.setattr(blend.device, "_held", [])
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        own_device.cache_clear()
        yield
        for lock in blend.device._held:
            os.close(lock)
        own_device.cache_clear()

    def test_a_process_takes_one_that_is_free_and_keeps_it(self):
        assert own_device("cuda") == own_device("cuda") == torch.device("cuda:0")
        own_device.cache_clear()  # as another process would ask
        assert own_device("cuda") == torch.device("cuda:1")

    def test_more_processes_than_devices_share(self):
        found = []
        for _ in range(4):
            found.append(own_device("cuda").index)
            own_device.cache_clear()
        assert found == [0, 1, 2, os.getpid() % 3]

    def test_one_that_was_asked_for_by_number_is_taken_as_it_is(self):
        assert own_device("cuda:2") == torch.device("cuda:2")
        assert not blend.device._held
        check_device("cuda:2")
        with pytest.raises(InputError, match=r"must be one of the 3 that there are, from 'cuda:0' on, got 'cuda:3'$"):
            check_device("cuda:3")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    build = tmp_path_factory.mktemp("build")

    def run(module, *arguments):
        command = [sys.executable, "-m", module, *map(str, arguments)]
        built = {**os.environ, second_device.BUILD: str(build)}
        ran = subprocess.run(command, env=built, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


@pytest.fixture(scope="module")
def blend_on_it(run):
    return lambda *arguments: run("tests.second_device", *arguments)


@pytest.fixture(scope="module")
def exports(blend_on_it, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for device in ("cpu", second_device.NAME):
        search = ("search", f"{SECOND}:small", *SEARCH, "--device", device, "--name", device, "--runs-dir", folder)
        blend_on_it(*search)
    return folder / "cpu" / EXPORT, folder / second_device.NAME / EXPORT


@pytest.mark.skipif(not second_device.BUILDABLE, reason="a C++ compiler and ninja are needed to build the device")
class TestOnASecondDevice:
    """Everything is as on the CPU, bit for bit, and nothing is left behind there: the device would refuse it."""

    def test_every_criterion_scores(self, run):
        answer = json.loads(run("tests.second_device.scores"))
        assert not answer["wrong"]
        assert len(answer["scored"]) == len(list(CRITERIA)) - 1

    def test_a_search_in_half_precision_with_compensation(self, exports):
        here, there = exports
        assert here.read_bytes() == there.read_bytes()

    def test_a_network_is_pruned_and_trained(self, blend_on_it, exports, tmp_path):
        for device in ("cpu", second_device.NAME):
            where = ("--device", device, "--out", tmp_path / device)
            blend_on_it("prune", exports[0], f"{SECOND}:tunable", *PRUNE, *where)
        here, there = (next((tmp_path / d).glob("*.safetensors")) for d in ("cpu", second_device.NAME))
        assert here.read_bytes() == there.read_bytes()

    @pytest.mark.slow
    def test_comparison_and_transfer(self, blend_on_it, exports):
        def without_times(text):
            timed = ("seconds", "cheapest")
            return json.loads(text, object_hook=lambda found: {k: v for k, v in found.items() if k not in timed})

        for command in (
            ("compare", f"{SECOND}:small", "--compensate", "channel", "--json"),
            ("transfer", exports[0], f"{SECOND}:small,seed=1", "--json"),
        ):
            here, there = (without_times(blend_on_it(*command, "--device", d)) for d in ("cpu", second_device.NAME))
            assert here == there


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
class TestOnAGpu:
    def test_a_search_is_reproducible_and_near_to_that_of_the_cpu(self, tmp_path):
        few = {"task": TASK, "evaluations": 24, "population": 8, "random_search": False, "precision": "fp32"}
        exports = []
        for name, device in (("first", "cuda"), ("again", "cuda"), ("cpu", "cpu")):
            start(search_config(**few, device=device), tmp_path / name)
            exports.append(tmp_path / name / EXPORT)
        assert exports[0].read_bytes() == exports[1].read_bytes()
        gpu, cpu = (BlendedCriterion.load(path).metrics["unpruned"]["heldout_loss"] for path in exports[1:])
        assert np.isclose(gpu, cpu, rtol=1e-3)
