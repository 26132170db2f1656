"""What a network does not save survives an interruption, and is refused where a saved network would need it."""

import re

import pytest
import torch
from torch import nn

from blend.checking import check_task
from blend.cli import run
from blend.errors import InputError
from blend.identity import weight_hash
from blend.pruned.buffers import all_tensors, check_unsaved, put_tensors
from blend.pruned.finetuning import Recipe, finetuned
from blend.pruned.training_data import training_data

from ..task_file import SmallNetwork, small, tunable
from .test_finetuning import Memory


class Averaging(SmallNetwork):
    """Keeps a running mean of its inputs in a buffer that it does not save, and takes it away from them."""

    def __init__(self, always=True):
        super().__init__()
        self.always = always
        self.register_buffer("mean", torch.zeros(1), persistent=False)
        self.register_buffer("largest", None, persistent=False)

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean() + 0.01)
            self.largest = x.detach().amax((0, 1))
        return super().forward(x - self.mean if self.always or self.training else x)


def tuned(network, checkpoint):
    task = small()
    recipe = Recipe(epochs=3, learning_rate=0.05, batch_size=32, distill=0.0)
    return finetuned(network, None, task, task.calibration, check_task(task).heldout, recipe, checkpoint=checkpoint)


def test_a_checkpoint_holds_what_is_not_saved():
    torch.manual_seed(0)
    network, memory = Averaging(), Memory()
    whole, course = tuned(network, memory)
    for epoch in (0, 1):
        resumed, its_course = tuned(network, Memory(memory.saved[epoch]))
        assert its_course == course
        assert weight_hash(resumed) == weight_hash(whole)
        assert torch.equal(resumed.mean, whole.mean)
        assert torch.equal(resumed.largest, whole.largest)
    assert float(network.mean) == 0


def test_tensors_are_given_back_with_their_names_and_places():
    first, second, shared = Averaging().train(), Averaging(), torch.zeros(1)
    first(torch.ones(4, 1, 8, 8))
    for name in ("one", "other"):
        second.add_module(name, nn.Module())
        second.get_submodule(name).register_buffer("shared", shared, persistent=False)
    tensors = {**all_tensors(first), "one.shared": torch.ones(1), "other.shared": torch.ones(1)}
    put_tensors(second, tensors)
    found = all_tensors(second)
    assert found.keys() == tensors.keys() >= {"mean", "largest", "head.weight"}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert second.one.shared is second.other.shared is shared
    with pytest.raises(RuntimeError, match="Unexpected key"):
        put_tensors(second, {**tensors, "nowhere": torch.ones(1)})


def test_what_a_saved_network_would_lack_is_refused():
    data = training_data(small().calibration, 32)
    with pytest.raises(InputError, match=re.escape("buffer 'mean' must be persistent for fine-tuning: training chan")):
        check_unsaved(Averaging(), data)
    model = Averaging(always=False)  # nothing but training needs it
    check_unsaved(model, data)
    assert float(model.mean) == 0
    assert model.largest is None
    check_unsaved(SmallNetwork(), data)


@pytest.mark.parametrize(("always", "code"), [(True, 2), (False, 0)])
def test_command_says_so_before_it_works(capsys, tmp_path, always, code):
    file, out = tmp_path / "task.py", tmp_path / "out"
    file.write_text(
        f"from {__name__} import Averaging\nfrom {tunable.__module__} import tunable\n"
        f"def task():\n    found = tunable()\n    found.model = Averaging({always}).eval()\n    return found\n"
    )
    command = ["prune", "l1", f"{file}:task", "--finetune", "2", "--iterative", "2", "--out", str(out)]
    assert run(command) == code
    told = capsys.readouterr().err
    assert out.exists() == (not code)
    assert ("buffer 'mean' must be persistent" in told) == bool(code)
    assert ("fine-tuning, step" in told) == (not code)
