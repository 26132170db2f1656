"""What a task must be, and how it is told where it is not."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blend.checking import check_task, first_judgement
from blend.errors import InputError
from blend.task import Task, accuracy

from .small_networks import labelled


@pytest.fixture
def task():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    return Task(model, torch.zeros(1, 3, 8, 8), labelled(20, 1), labelled(70, 2), labelled(30, 3))


def test_a_sound_task_passes_and_is_left_as_it_was(task):
    task.model.train()
    task.model[1].eval()
    state = {name: value.clone() for name, value in task.model.state_dict().items()}
    splits = check_task(task)
    assert [split.name for split in splits] == ["calibration", "held-out", "test"]
    assert [len(split) for split in splits] == [20, 70, 30]
    assert task.model.training
    assert not task.model[1].training
    assert all(weight.grad is None for weight in task.model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in task.model.state_dict().items())


def with_weight(task, value):
    with torch.no_grad():
        task.model[5].weight[1, 2] = value
    return task


def with_double_classifier(task):
    task.model[5].double()
    return task


def made_for_inference(task):
    with torch.inference_mode():
        task.model[5].weight = nn.Parameter(torch.zeros(4, 6))
    return task


class Shifting(nn.Identity):
    """Writes to what its caller gets of the input."""

    def __init__(self, seen=lambda x: x):
        super().__init__()
        self.seen = seen

    def forward(self, x):
        self.seen(x).sub_(0.5)
        return x


def as_workers_have_it(images):
    return images.to(memory_format=torch.channels_last)


class Squeeze(nn.Identity):
    def forward(self, x):
        return x.squeeze()


class Ends(nn.Identity):
    """Reads the second image, if there is more than the example."""

    def forward(self, x):
        return x if x.abs().sum() == 0 else x - x[1]


def quantised():
    model = nn.Module()
    model.register_buffer("weight", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
    return model


def exported():
    return torch.export.export(nn.Conv2d(1, 4, 1).eval(), (torch.zeros(2, 1, 4, 4),)).module()


class Noisy(nn.Identity):
    def forward(self, x):
        return x + torch.rand_like(x)


class Pair(nn.Identity):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda t: replace(t, model="net"), "model must be a torch.nn.Module, got str"),
        (lambda t: with_weight(t, float("nan")), "weights of the model must be finite, .* in 5.weight"),
        (made_for_inference, r"must not be made in torch.inference_mode\(\), got such as 5.weight"),
        (lambda t: replace(t, model=torch.jit.trace(t.model, t.example_input)), "before torch.jit, got TopLevelTraced"),
        (
            lambda t: replace(t, model=nn.Sequential(t.model, torch.jit.script(nn.ReLU()))),
            "before torch.jit, got RecursiveScriptModule in '1'",
        ),
        (with_double_classifier, "must have one dtype, got float32 and float64"),
        (lambda t: replace(t, example_input=torch.zeros(0, 3, 8, 8)), r"at least one input, got shape \(0, 3, 8, 8\)"),
        (lambda t: replace(t, example_input=[1]), "example_input must be a batch .* got list"),
        (
            lambda t: replace(t, example_input=torch.zeros(1, 5, 8, 8)),
            r"model failed on example_input, shape \(1, 5, 8, 8\): RuntimeError",
        ),
        (lambda t: replace(t, heldout=[]), "held-out split must have at least one"),
        (
            lambda t: replace(t, test=(torch.zeros(5, 3, 2, 2), torch.zeros(5))),
            "the model failed on the first test batch",
        ),
        (
            lambda t: replace(t, loss=lambda o, y: o.sum() * float("nan")),
            "loss returned nan on the first held-out batch; it must be finite",
        ),
        (
            lambda t: replace(t, loss=lambda o, y: F.cross_entropy(o, y, reduction="none")),
            r"loss must return a scalar tensor, .* got shape \(64,\)",
        ),
        (lambda t: replace(t, loss=lambda o, y: F.cross_entropy(o, y)[None]), r"loss must .* got shape \(1,\)"),
        (lambda t: replace(t, loss=lambda o, y: 1.0), "loss must return a scalar tensor, .* got float"),
        (lambda t: replace(t, loss=lambda o, y: o @ o), "loss failed on the first held-out batch, .* RuntimeError"),
        (
            lambda t: replace(t, metric=lambda o, y: accuracy(o, y).mean()),
            r"metric must return one score per example, shape \(64,\), got shape \(\)",
        ),
        (lambda t: replace(t, metric=lambda o, y: o[:, 0] / 0), "metric must return finite scores"),
        (lambda t: replace(t, metric=lambda o, y: 1 / 0), "metric failed on the first .*: ZeroDivisionError"),
        (
            lambda t: replace(t, model=nn.Sequential(Shifting(), t.model)),
            r"must not write to its input, and does on example_input: x = x - 0.5 leaves it",
        ),
        (
            lambda t: replace(t, model=nn.Sequential(Shifting(as_workers_have_it), t.model)),
            "must not write to its input, and does on example_input",
        ),
        (lambda t: replace(t, model=nn.Sequential(Shifting(lambda x: x.data), t.model)), "must not write to its input"),
        (
            lambda t: replace(t, model=nn.Sequential(*t.model[:4], Squeeze(), t.model[5])),
            r"must take a single input, shape \(1, 3, 8, 8\); got shape \(4,\) of it, and shape \(64, 4\) of the batch",
        ),
        (
            lambda t: replace(t, model=nn.Sequential(Ends(), t.model)),
            r"must take a single input, shape \(1, 3, 8, 8\), and it failed: IndexError.*; x.squeeze\(\) takes",
        ),
        (
            lambda t: replace(t, model=nn.Sequential(Noisy(), t.model)),
            r"must make the same of the same input each time .* does not of example_input, .*: got -?\d",
        ),
        (
            lambda t: replace(t, loss=lambda o, y: F.cross_entropy(o, y, reduction="sum")),
            r"loss must be the mean over the batch, got a sum on the first held-out batch: \d",
        ),
        (
            lambda t: replace(t, heldout=(t.heldout[0], t.heldout[1][:, None].expand(-1, 4).float())),
            r"metric \(by default the share of right classes; metric= takes another\) failed on the first held-out",
        ),
        (
            lambda t: replace(t, heldout=(t.heldout[0], t.heldout[1][:, None])),
            r"loss \(by default cross-entropy; loss= takes another\) failed on the first held-out batch",
        ),
        (lambda t: replace(t, model=torch.jit.script(t.model)), r"must be as it was before torch.jit, got \w+$"),
        (lambda t: replace(t, model=Pair()), "model must return one tensor, got tuple on the first held-out batch"),
        (lambda t: replace(t, model=nn.Sequential(nn.LazyConv2d(3, 1), t.model)), "must have values, got 0.weight"),
        (lambda t: replace(t, model=nn.Conv2d(1, 4, 1, dtype=torch.complex64)), "real numbers, got complex weight"),
        (lambda t: replace(t, model=quantised()), "must be as it was before quantisation, got quantised weight"),
        (lambda t: replace(t, model=exported()), "must have an evaluation mode, got NotImpl"),
        (
            lambda t: replace(t, calibration=tuple(some[:1] for some in t.calibration)),
            "the calibration split must have at least 2 examples, or BatchNorm has no variance, got 1",
        ),
        (lambda t: replace(t, heldout_draws=3), r"heldout_draws must divide the \d+ held-out examples, got 3"),
        (
            lambda t: replace(t, heldout=tuple(x.repeat_interleave(2, 0) for x in t.heldout), heldout_draws=2),
            "heldout_draws must say how often all held-out examples are there, .* got 2 copies whose targets differ",
        ),
        (lambda t: replace(t, finetune=t.heldout), r"finetune must be a blend.FineTuning\(train\), got tuple"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_broken_task_is_refused_in_one_line(task, broken, message):
    with pytest.raises(InputError, match=message) as caught:
        check_task(broken(task))
    assert "\n" not in str(caught.value)


def test_the_mode_is_restored_after_a_failure(task):
    task.model.train()
    with pytest.raises(InputError):
        check_task(replace(task, metric=lambda o, y: 1 / 0))
    assert all(module.training for module in task.model.modules())


@pytest.mark.parametrize(
    ("cut", "is_fine"),
    [
        (lambda x: (x[:30], x[30:60]), True),
        (lambda x: (x[0::2], x[1::2]), True),
        (lambda x: (x[:30], x[29:60]), False),
        (lambda x: (x[0:60:3], x[1:60:2]), False),
        (lambda x: (x[:30], x[:30]), False),
        (lambda x: (x[:30, :, :4], x[30:60, :, :4]), True),
        (lambda x: (x.movedim(1, 3)[:30].movedim(3, 1), x[10:20]), False),
    ],
)
def test_only_splits_that_overlap_in_memory_are_refused(task, cut, is_fine):
    inputs, targets = labelled(60, 9)
    a, b = cut(inputs)
    task = replace(task, calibration=(a, targets[: len(a)]), test=(b, targets[: len(b)] + 0))
    if is_fine:
        check_task(task)
    else:
        with pytest.raises(InputError, match=r"calibration and test splits must be disjoint, got .* same memory"):
            check_task(task)


def test_more_than_one_percent_of_common_examples_is_refused(task):
    (inputs, targets), (others, other_targets) = labelled(300, 4), labelled(200, 5)
    others[:3], other_targets[:3] = inputs[7:10], targets[7:10]
    task = replace(task, heldout=(inputs, targets), test=(others, other_targets))
    with pytest.raises(InputError, match=r"held-out and test .* 3 of the 200 test examples are also in the held-out"):
        check_task(task)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.float32])
def test_common_examples_are_found_whatever_type_their_targets_have(task, kind):
    inputs, targets = labelled(60, 4)
    task = replace(task, heldout=(inputs, targets), test=(inputs + 0, targets.to(kind)))
    with pytest.raises(InputError, match=r"60 of the 60 .* examples are also in"):
        check_task(task)


def test_common_examples_are_found_by_their_inputs_where_targets_are_of_another_kind(task):
    inputs, targets = labelled(60, 4)
    task = replace(task, heldout=(inputs, targets), test=(inputs + 0, F.one_hot(targets, 4).float()))
    with pytest.raises(InputError, match=r"60 of the 60 .* examples are also in"):
        check_task(task)


def test_fewer_common_examples_are_noted(task, capsys):
    (inputs, targets), (others, other_targets) = labelled(300, 4), labelled(200, 5)
    others[:2], other_targets[:2] = inputs[7:9], targets[7:9]
    check_task(replace(task, heldout=(inputs, targets), test=(others, other_targets)))
    assert "note: 2 of the 200 test examples are also in the held-out split" in capsys.readouterr().err


def test_equal_inputs_with_other_targets_are_other_examples(task):
    inputs, targets = labelled(50, 4)
    check_task(replace(task, heldout=(inputs, targets), test=(inputs.clone(), (targets + 1) % 4)))


def test_the_first_judgement_is_that_of_the_first_heldout_batch(task):
    task.model.train()
    task.metric = lambda outputs, targets: outputs.argmax(1) == targets
    found = first_judgement(task, check_task(task).heldout)
    assert task.model.training
    inputs, targets = (part[:64] for part in labelled(70, 2))
    outputs = task.model.eval()(inputs)
    assert found == {
        "loss": float(F.cross_entropy(outputs, targets)),
        "metric": float((outputs.argmax(1) == targets).double().mean()),
    }
