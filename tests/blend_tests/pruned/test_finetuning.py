"""Fine-tuning: what is learnt, what is kept, what stays untouched, and that going on is the same as never stopping."""

import copy
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blend import recalibrate
from blend.checking import check_task
from blend.errors import BlendError, InputError
from blend.identity import weight_hash
from blend.pruned.distillation import Teacher, is_logits
from blend.pruned.finetuning import Recipe, best_epoch, finetuned
from blend.pruned.training_data import InMemory
from blend.pruning import PrunedNetwork
from blend.task import FineTuning, Split
from criteria.graph import ChannelGraph

from ..task_file import small

RECIPE = Recipe(epochs=3, learning_rate=0.05, batch_size=32)


class Memory:
    """A checkpoint that outlives nothing; keeps what was saved after each epoch."""

    def __init__(self, saved=None):
        self.saved = [] if saved is None else [saved]

    def load(self):
        return copy.deepcopy(self.saved[-1]) if self.saved else None

    def save(self, tensors, state):
        self.saved.append(copy.deepcopy((tensors, state)))


@pytest.fixture(scope="module")
def pruned():
    """A task, its splits, and its network with half of all channels gone and a head that knows nothing."""
    task = small()
    task.model.zero_grad()
    graph = ChannelGraph.build(task.model, task.example_input)
    network = PrunedNetwork(task.model, graph).extract(np.arange(len(graph)) % 2 == 0)
    recalibrate(network, [task.calibration[0]])
    torch.manual_seed(1)
    network.head.reset_parameters()
    return task, check_task(task), network


def tuned(pruned, recipe=RECIPE, *, seed=0, **changes):
    task, splits, network = pruned
    given = {"network": network, "teacher": task.model, "task": task, "train": task.calibration, **changes}
    return finetuned(**given, heldout=splits.heldout, recipe=recipe, seed=seed)


def test_it_learns_and_keeps_the_best_epoch(pruned):
    task, splits, _ = pruned
    network, course = tuned(pruned)
    assert [row["epoch"] for row in course] == [0, 1, 2, 3]
    assert course[0]["loss"] is None
    best = course[best_epoch(course)]
    assert best["heldout_metric"] > course[0]["heldout_metric"] + 0.1
    with torch.no_grad():
        found = task.metric(network(splits.heldout.inputs), splits.heldout.targets).mean()
    assert float(found) == pytest.approx(best["heldout_metric"])
    assert not network.training


def test_a_network_that_only_gets_worse_stays_as_it_is(pruned):
    task, _, network = pruned
    wrong = (task.calibration[0], (task.calibration[1] + 1) % 4)
    kept, course = tuned(pruned, replace(RECIPE, distill=0.0), train=wrong)
    assert course[-1]["heldout_metric"] < course[0]["heldout_metric"]
    assert best_epoch(course) == 0
    assert weight_hash(kept) == weight_hash(network)


def test_of_equal_metrics_the_lower_loss_is_best_and_of_equal_losses_the_first():
    rows = [(0.8, 0.5), (0.9, 0.4), (0.9, 0.3), (0.9, 0.3), (0.7, 0.1)]
    course = [{"epoch": e, "heldout_metric": m, "heldout_loss": loss} for e, (m, loss) in enumerate(rows)]
    assert best_epoch(course) == 2


def test_nothing_outside_is_touched(pruned):
    task, _, network = pruned
    before = weight_hash(task.model), weight_hash(network), torch.get_rng_state(), random.getstate()
    numpy = np.random.get_state()[1].copy()
    tuned(pruned)
    assert (weight_hash(task.model), weight_hash(network)) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert random.getstate() == before[3]
    assert (np.random.get_state()[1] == numpy).all()
    assert all(parameter.grad is None for parameter in task.model.parameters())


class Dropping(nn.Module):
    """Dropout draws from the global generator."""

    def __init__(self, network):
        super().__init__()
        self.network, self.drop = network, nn.Dropout(0.2)

    def forward(self, x):
        return self.network(self.drop(x))


def test_the_seed_decides_alone(pruned):
    pruned = (*pruned[:2], Dropping(pruned[2]))
    first, _ = tuned(pruned, seed=1)
    torch.manual_seed(7)
    again, _ = tuned(pruned, seed=1)
    other, _ = tuned(pruned, seed=2)
    assert weight_hash(first) == weight_hash(again) != weight_hash(other)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_going_on_is_the_same_as_never_stopping(pruned, epoch):
    pruned = (*pruned[:2], Dropping(pruned[2]))
    memory = Memory()
    whole, course = tuned(pruned, checkpoint=memory)
    assert len(memory.saved) == 3
    resumed, its_course = tuned(pruned, checkpoint=Memory(memory.saved[epoch - 1]))
    assert its_course == course
    assert weight_hash(resumed) == weight_hash(whole)


def test_what_is_streamed_trains_and_goes_on_alike(pruned):
    train = DataLoader(TensorDataset(*pruned[0].calibration), batch_size=32, shuffle=True)
    memory = Memory()
    whole, course = tuned(pruned, train=train, checkpoint=memory)
    assert course[best_epoch(course)]["heldout_metric"] > course[0]["heldout_metric"] + 0.1
    resumed, _ = tuned(pruned, train=train, checkpoint=Memory(memory.saved[0]))
    assert weight_hash(resumed) == weight_hash(whole)


def test_what_the_teacher_says_is_remembered_where_examples_stay(pruned):
    task, _, _ = pruned
    inputs, targets = task.calibration
    data, teacher = InMemory(Split(inputs, targets, "training"), 32), Teacher(task.model, 4.0, 32)
    calls = []
    teacher.network.register_forward_hook(lambda *_: calls.append(1))
    rows = torch.tensor([5, 2, 77])
    for _ in range(2):
        outputs = teacher.outputs(inputs[rows], rows, data)
        assert len(calls) == 1 + 5  # one to see how much there is to remember, and five batches
    with torch.no_grad():
        torch.testing.assert_close(outputs, task.model(inputs[rows]))
    teacher.outputs(inputs[rows] + 1, None, data)
    assert len(calls) == 7


def test_divergence_names_the_learning_rate(pruned):
    with pytest.raises(BlendError, match=r"diverged in epoch \d.*; learning_rate 1e\+20 is too high for it"):
        tuned(pruned, replace(RECIPE, learning_rate=1e20))


def test_a_frozen_network_is_refused_and_frozen_layers_stay(pruned):
    task, splits, network = pruned
    half = copy.deepcopy(network)
    half.head.requires_grad_(False)
    kept, _ = tuned((task, splits, half))
    assert torch.equal(kept.head.weight, network.head.weight)
    assert not torch.equal(kept.features[0].weight, network.features[0].weight)
    with pytest.raises(InputError, match="all of the network's are frozen"):
        tuned((task, splits, copy.deepcopy(network).requires_grad_(False)))


def test_a_step_that_fails_says_so(pruned):
    inputs, targets = pruned[0].calibration
    with pytest.raises(InputError, match=r"a training step failed on a batch of shape \(32, 2, 8, 8\)"):
        tuned(pruned, train=(inputs.repeat(1, 2, 1, 1), targets))


def test_distillation_is_the_divergence_at_a_temperature():
    teacher = Teacher(nn.Identity(), temperature=2.0, batch_size=8)
    student, wanted = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3), 0.0]])
    # softmax(wanted / 2) is (3/4, 1/4), softmax(student / 2) is (1/2, 1/2)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(teacher.distance(student, wanted)) == pytest.approx(4 * divergence)
    assert float(teacher.distance(wanted, wanted)) == pytest.approx(0.0, abs=1e-7)


def test_what_is_no_logits_is_distilled_by_squared_error():
    teacher = Teacher(nn.Identity(), temperature=4.0, batch_size=8, logits=False)
    outputs, wanted = torch.zeros(2, 3), torch.full((2, 3), 2.0)
    assert float(teacher.distance(outputs, wanted)) == 4.0


def test_all_targets_together_tell_shares_from_several_classes_each():
    outputs, single = torch.zeros(1, 3), torch.eye(3)
    assert is_logits(outputs, torch.tensor([0, 2]))
    assert is_logits(outputs, single)
    assert not is_logits(outputs, torch.cat([single, torch.tensor([[1.0, 1.0, 0.0]])]))
    assert not is_logits(outputs, torch.zeros(2, 3))


def test_a_batch_with_one_class_each_is_distilled_like_all_others(pruned, capsys):
    task, splits, network = pruned
    train = (task.calibration[0][:8], F.one_hot(task.calibration[1][:8], 4).float())
    several = F.one_hot(splits.heldout.targets, 4).float()
    several[0] = 1.0
    heldout = Split(splits.heldout.inputs, several, "held-out")
    multi = replace(task, loss=F.binary_cross_entropy_with_logits, metric=lambda o, t: -(o.sigmoid() - t).abs().mean(1))
    recipe = replace(RECIPE, epochs=1)
    one, _ = finetuned(network, task.model, multi, train, heldout, recipe)
    assert capsys.readouterr().err.count("are not class logits: distilled by mean squared error") == 1
    shares = Split(heldout.inputs, several / several.sum(1, True), "held-out")
    two, _ = finetuned(network, task.model, multi, train, shares, recipe)
    assert "not class logits" not in capsys.readouterr().err
    assert weight_hash(one) != weight_hash(two)


def test_distillation_alone_needs_no_right_labels(pruned):
    """All labels wrong, but nobody looks at them."""
    task, _, _ = pruned
    wrong = (task.calibration[0], (task.calibration[1] + 1) % 4)
    _, course = tuned(pruned, replace(RECIPE, distill=1.0), train=wrong)
    assert course[-1]["heldout_metric"] > course[0]["heldout_metric"] + 0.1
    with pytest.raises(InputError, match="distill must be 0 where there is no unpruned network to learn from, got 1"):
        tuned(pruned, replace(RECIPE, distill=1.0), teacher=None)


def test_a_recipe_is_the_tasks_but_for_what_is_given():
    own = FineTuning((torch.zeros(1), torch.zeros(1)), epochs=7, learning_rate=0.5, momentum=0.0)
    recipe = Recipe.of(own, epochs=None, learning_rate=0.1, temperature=2.0)
    assert recipe == Recipe(epochs=7, learning_rate=0.1, momentum=0.0, temperature=2.0)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 2.0}, "epochs must be a whole number, got 2.0"),
        ({"learning_rate": "0.1"}, "learning_rate must be a number, got '0.1'"),
        ({"learning_rate": 0.0}, "learning_rate must be greater than 0, got 0"),
        ({"learning_rate": math.nan}, "learning_rate must be greater than 0, got nan"),
        ({"distill": 1.1}, r"distill must be in \[0, 1\], got 1.1"),
        ({"temperature": -1.0}, "temperature must be greater than 0, got -1"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1"),
    ],
)
def test_a_recipe_refuses(values, complaint):
    with pytest.raises(InputError, match=complaint):
        Recipe(**values)


def test_a_split_may_train(pruned):
    inputs, targets = pruned[0].calibration
    assert tuned(pruned, train=Split(inputs, targets, "training"))[1] == tuned(pruned)[1]
