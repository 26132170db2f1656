import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from blend.errors import BlendError, InputError
from blend.task import (
    BUILTIN_TASKS,
    Split,
    Task,
    accuracy,
    load_task,
    materialise,
    task_function,
)

from .small_networks import labelled

# ---------------------------------------------------------------- splits


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*labelled(20, 1), strict=True)


@pytest.mark.parametrize(
    "form",
    [
        lambda pair: pair,
        lambda pair: list(pair),
        lambda pair: Split(*pair, "other"),
        lambda pair: TensorDataset(*pair),
        lambda pair: Stream(),
        lambda pair: DataLoader(TensorDataset(*pair), batch_size=3),
        lambda pair: [(pair[0][:2], pair[1][:2]), (pair[0][2:], pair[1][2:])],
        lambda pair: (batch for batch in Split(*pair, "").batches(7)),
    ],
    ids=["pair", "list", "split", "dataset", "stream", "loader", "two batches", "generator"],
)
def test_every_form_of_data_gives_the_same_split(form):
    inputs, targets = labelled(20, 1)
    split = materialise(form((inputs, targets)), "test")
    assert torch.equal(split.inputs, inputs)
    assert torch.equal(split.targets, targets)
    assert split.name == "test"
    assert len(split) == 20


def test_a_pair_is_not_copied():
    inputs, targets = labelled(5, 0)
    assert materialise((inputs, targets), "test").inputs.data_ptr() == inputs.data_ptr()


def test_gradients_can_be_taken_of_data_made_for_inference():
    with torch.inference_mode():
        inputs, targets = labelled(20, 1)
    split = materialise((inputs, targets), "test")
    assert torch.equal(split.inputs, inputs)
    weight = torch.ones(8, requires_grad=True)
    (split.inputs * weight).sum().backward()
    assert weight.grad is not None


def test_a_shuffling_loader_gives_one_order_and_leaves_the_random_state_alone():
    loader = DataLoader(TensorDataset(*labelled(50, 0)), batch_size=8, shuffle=True)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = materialise(loader, "test")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert materialise(loader, "test").fingerprint() == first.fingerprint()


class Broken(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise KeyError("no such image")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.zeros(0, 3), torch.zeros(0)), "held-out split must have at least one example, got none"),
        ([], "held-out split must have at least one example, got none"),
        ((torch.zeros(4, 3), torch.zeros(3)), r"one target for each input, got inputs of shape \(4, 3\) and .* \(3,\)"),
        ((torch.zeros(4, 3), torch.tensor(1)), r"one target for each input, .* targets of shape \(\)"),
        (7, "held-out split must be a pair of tensors, .* got int"),
        ([torch.zeros(3)], r"must give pairs \(inputs, targets\) of tensors, got Tensor as batch 0"),
        ([(torch.zeros(3), [1, 2, 3])], r"must give pairs .* got \(Tensor, list\) as batch 0"),
        ([(torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(2, 4), torch.zeros(2))], "must have equal shapes"),
        ((torch.tensor([[0.0], [float("nan")]]), torch.zeros(2)), "inputs .* must be finite, .* in 1 of 2 examples"),
        ((torch.tensor([float("inf"), 0, 0]), torch.zeros(3)), "inputs .* must be finite, .* in 1 of 3 examples"),
        ((torch.zeros(2, 1), torch.tensor([float("nan")] * 2)), "targets .* must be finite, .* in 2 of 2 examples"),
        (Broken(), "held-out split failed while it was read: KeyError: 'no such image'"),
    ],
)
def test_unusable_data_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        materialise(data, "held-out")


def test_batches_are_in_order_and_complete():
    split = materialise(labelled(10, 0), "test")
    batches = list(split.batches(4))
    assert [len(inputs) for inputs, _ in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([targets for _, targets in batches]), split.targets)


def test_the_fingerprint_follows_bytes_shapes_and_types():
    inputs, targets = torch.zeros(4, 2, 3), torch.zeros(4, dtype=torch.int64)
    changed = inputs.clone()
    changed[3, 1, 2] = 1e-30
    variants = [inputs, changed, inputs.view(4, 3, 2), inputs.view(torch.int32), inputs.bfloat16()]
    prints = {Split(variant, targets, "test").fingerprint() for variant in variants}
    assert len(prints) == len(variants)
    assert Split(inputs.clone(), targets, "other name").fingerprint() in prints


def test_accuracy_is_per_example():
    outputs = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert accuracy(outputs, torch.tensor([1, 1, 1])).tolist() == [1, 0, 1]


# ---------------------------------------------------------------- load_task

TASK_FILE = """
from pathlib import Path
import torch
from torch import nn
from neighbour_of_task import CHANNELS
from blend.task import Task

class Net(nn.Linear):
    pass

def make(size: int = 3, rate: float = 0.5, flag: bool = False, folder: Path | None = None, seed=7, label="x"):
    task = Task(Net(CHANNELS, 2), torch.zeros(1, CHANNELS), None, None, None)
    task.got = (size, rate, flag, folder, seed, label)
    return task

def needs(data: str):
    return make(label=data)

def anything(**options):
    return make(label=options)

def wrong():
    return {"model": None}

def leaves():
    raise SystemExit("no data here")

def fails():
    raise KeyError("the data\\n are gone")

def compiled():
    task = make()
    task.model = torch.compile(task.model)
    return task

def compiled_in_place():
    task = make()
    task.model.compile()
    return task

def parallel():
    task = make()
    task.model = nn.DataParallel(task.model)
    return task

def refuses():
    from blend.errors import BlendError
    raise BlendError("out of luck")
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "neighbour_of_task", raising=False)
    (tmp_path / "neighbour_of_task.py").write_text("CHANNELS = 5\n")
    path = tmp_path / "my_task.py"
    path.write_text(TASK_FILE)
    return path


def test_options_take_the_types_of_their_parameters(file):
    options = {"size": "4", "rate": "1e-3", "flag": "Yes", "folder": "a/b", "label": "12"}
    task = load_task(f"{file}:make", options, seed=11)
    assert task.got == (4, 1e-3, True, Path("a/b"), 11, "12")
    assert task.name == f"{file.stem}:make"  # no folder of anyone's machine gets into an exported file
    assert load_task(f"{file}:make", {"seed": "3", "folder": "none"}, seed=11).got == (3, 0.5, False, None, 3, "x")
    assert load_task(f"{file}:needs", {"data": "d"}).got[-1] == "d"
    assert load_task(f"{file}:anything", {"b": "1"}).got[-1] == {"b": "1"}


def test_an_annotation_that_is_none_leaves_the_default_to_tell(file):
    file.write_text(f"from __future__ import annotations\n{TASK_FILE}".replace("size: int", "size: torch.Intt"))
    assert load_task(f"{file}:make", {"size": "4"}).got[0] == 4


def test_a_network_defined_in_a_task_file_can_be_pickled(file):
    model = load_task(f"{file}:make").model
    assert pickle.loads(pickle.dumps(model)).weight.shape == (2, 5)
    assert task_function(f"{file}:make") is task_function(f"{file}:make")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "before"),
    [("compiled", "torch.compile"), ("compiled_in_place", "torch.compile"), ("parallel", "DataParallel")],
)
def test_a_network_that_would_run_in_another_way_runs_as_it_was_before(name, before, file, capsys):
    model = load_task(f"{file}:{name}").model
    assert type(model).__name__ == "Net"
    assert model._compiled_call_impl is None
    assert f"note: the network runs as it was before {before}" in capsys.readouterr().err


def test_a_module_of_the_working_folder_is_found(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    try:
        assert load_task("my_task:make", {"size": "1"}).got[0] == 1
    finally:
        sys.modules.pop("my_task", None)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("make", {"sise": "1"}, "no option 'sise'; did you mean 'size'.*it takes size, rate, flag"),
        ("make", {"size": "1.5"}, "option size of task .* must be a whole number, got '1.5'"),
        ("make", {"rate": "fast"}, "option rate of task .* must be a number, got 'fast'"),
        ("make", {"flag": "maybe"}, "option flag of task .* must be true or false, got 'maybe'"),
        ("make", {"seed": "x"}, "option seed of task .* must be a whole number"),
        ("needs", {}, "needs the option data: -o data="),
        ("mkae", {}, "has no function 'mkae'; did you mean 'make'"),
        ("wrong", {}, "must return a blend.task.Task, got dict"),
        ("leaves", {}, r"task .* failed: SystemExit: no data here"),
        ("fails", {}, r"task .* failed: KeyError: 'the data\\n are gone'"),
    ],
)
def test_a_wrong_use_of_a_task_file_says_so(file, name, options, message):
    with pytest.raises(InputError, match=message) as caught:
        load_task(f"{file}:{name}", options)
    assert "\n" not in str(caught.value)


def test_an_error_of_ours_passes_unchanged(file):
    with pytest.raises(BlendError, match=r"^out of luck$"):
        load_task(f"{file}:refuses")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "task must be one of digits, .* got 'digit'; did you mean 'digits'"),
        ("nothing/like/it.py:make", "task file nothing/like/it.py does not exist"),
        ("tasks.py", "must name a function of the file: tasks.py:FUNCTION"),
        ("no_such_package.tasks:make", "no_such_package.tasks failed to import: ModuleNotFoundError"),
        ("blend.task:load_tusk", "has no function 'load_tusk'; did you mean 'load_task'"),
    ],
)
def test_an_unknown_task_says_what_is_near(spec, message):
    with pytest.raises(InputError, match=message):
        load_task(spec)


@pytest.mark.parametrize(
    ("code", "reason"),
    [("def make(:\n", "SyntaxError"), ("import sys\nsys.exit(0)\n", "SystemExit: 0"), ("raise OSError\n", "OSError")],
)
def test_a_file_that_fails_to_import_can_be_mended(file, code, reason):
    broken = file.with_name("broken.py")
    broken.write_text(code)
    with pytest.raises(InputError, match=f"failed to import: {reason}"):
        load_task(f"{broken}:make")
    broken.write_text(TASK_FILE)
    assert isinstance(load_task(f"{broken}:make"), Task)


@pytest.mark.parametrize("name", BUILTIN_TASKS)
def test_builtin_tasks_exist(name):
    assert task_function(name).__name__ == name
