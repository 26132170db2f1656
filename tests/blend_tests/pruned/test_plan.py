"""What the options of fine-tuning and iterative pruning mean, and what they refuse."""

from dataclasses import replace

import pytest

from blend.errors import InputError
from blend.pruned.plan import Plan, Training, plan

from ..task_file import small, tunable


def test_schedules_end_at_the_reduction():
    assert Plan(4, "linear").reductions(0.8) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert Plan(4).reductions(0.64) == pytest.approx([0.37, 0.56, 0.63, 0.64])
    for final in (0.1, 0.3, 0.7):
        assert Plan(7).reductions(final)[-1] == Plan(7, "linear").reductions(final)[-1] == final
    assert Plan().reductions(0.5) == [0.5]


def test_epochs_are_divided_among_the_steps():
    task = tunable()
    recipes = Plan(3, training=Training(epochs=8, distill=0.0)).recipes(task)
    assert [recipe.epochs for recipe in recipes] == [2, 2, 4]
    assert all(replace(recipe, epochs=2) == recipes[0] for recipe in recipes)
    assert (recipes[0].learning_rate, recipes[0].distill, recipes[0].temperature) == (0.05, 0.0, 4.0)
    assert [recipe.epochs for recipe in Plan(training=Training()).recipes(task)] == [2]
    with pytest.raises(InputError, match="finetune must be at least one epoch for each of the 3 steps, got 2"):
        Plan(3, training=Training()).recipes(task)
    with pytest.raises(InputError, match="must say what to fine-tune on, got no finetune"):
        Plan(training=Training()).recipes(small())
    assert Plan(3).recipes(small()) is None


def test_options_as_they_are_typed():
    assert plan() == Plan()
    assert plan(finetune="task") == Plan(training=Training())
    training = {"finetune": "5", "learning_rate": "0.1", "distill": "0", "temperature": "2"}
    assert plan(**training, iterative="3", schedule="linear") == Plan(3, "linear", Training(5, 0.1, 0.0, 2.0))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"finetune": "many"}, "finetune must be a whole number, or 'task' for the task's own, got 'many'"),
        ({"finetune": "1.5"}, "finetune must be a whole number, or 'task' for the task's own, got '1.5'"),
        ({"finetune": "0"}, "finetune must be at least 1 epoch, or left out, got 0"),
        ({"finetune": "1", "learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
        ({"finetune": "1", "learning_rate": "-1"}, "learning_rate must be greater than 0, got -1"),
        ({"finetune": "1", "distill": "70"}, r"distill must be in \[0, 1\], got 70"),
        ({"finetune": "1", "temperature": "0"}, "temperature must be greater than 0, got 0"),
        ({"learning_rate": "0.1"}, "learning_rate must be left out without --finetune, got 0.1"),
        ({"distill": "0"}, "distill must be left out without --finetune, got 0"),
        ({"temperature": "3"}, "temperature must be left out without --finetune, got 3"),
        ({"iterative": "0"}, "iterative must be at least 1 step, got 0"),
        ({"iterative": "few"}, "iterative must be a whole number, got 'few'"),
        ({"iterative": "2", "schedule": "cubed"}, "schedule must be one of cubic, linear, got 'cubed'; did you mean"),
        ({"schedule": "cubic"}, "schedule must be left out without --iterative, got 'cubic'"),
    ],
)
def test_refused(options, complaint):
    with pytest.raises(InputError, match=complaint):
        plan(**options)
