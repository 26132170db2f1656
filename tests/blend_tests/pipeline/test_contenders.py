from types import SimpleNamespace

import pytest
import torch

from blend.pipeline.contenders import warn_of_collapse
from blend.task import accuracy
from search.archive import Archive, Evaluation


def problem_with(targets, metric=accuracy, fitness="loss"):
    return SimpleNamespace(
        splits=SimpleNamespace(heldout=SimpleNamespace(targets=torch.tensor(targets))),
        config=SimpleNamespace(reduction=0.5, fitness=fitness),
        task=SimpleNamespace(metric=metric),
    )


def baselines_with(*metrics):
    """The unpruned network first."""
    return Archive(
        Evaluation(
            number=number, phase="baseline", generation=0, genome=None, phenotype=bytes([number]), fitness=-1.0,
            details={"metric": metric, "reduction": 0.5 if number else 0.0}, seconds=0.1, cached=False, error=None,
        )
        for number, metric in enumerate(metrics)
    )  # fmt: skip


HALVES, MOSTLY_ONE = [0, 1] * 10, [0] * 16 + [1] * 4


@pytest.mark.parametrize(
    ("targets", "metrics", "options", "warnings"),
    [
        (HALVES, (0.9, 0.8, 0.7), {}, []),
        (HALVES, (0.9, 0.58, 0.5), {}, ["at reduction 0.5 even the best baseline falls to 0.580 (unpruned 0.900)"]),
        (HALVES, (0.9, 0.58, 0.5), {"fitness": "metric"}, []),
        (HALVES, (0.5, 0.5, 0.5), {}, ["has an accuracy of 0.500, and one answer for all 0.500: has it its trained"]),
        (MOSTLY_ONE, (0.75, 0.7, 0.7), {"fitness": "metric"}, ["accuracy of 0.750, and one answer for all 0.800"]),
        (MOSTLY_ONE, (0.75, 0.7, 0.7), {"metric": lambda outputs, targets: outputs[:, 0]}, []),
        ([0.5] * 20, (0.0, 0.0, 0.0), {}, []),
        (HALVES, (-0.44, -0.59, -0.7), {"metric": lambda outputs, targets: -outputs[:, 0]}, []),
    ],
)
def test_networks_at_chance_are_told_of(targets, metrics, options, warnings, capsys):
    warn_of_collapse(problem_with(targets, **options), baselines_with(*metrics))
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("warning") == len(warnings)
    assert all(warning in said for warning in warnings)
