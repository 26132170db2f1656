"""A task as a user writes it; the tests copy this file to other places and break it in every way."""

import torch
from torch import nn

from blend import Task
from blend.task import FineTuning


class SmallNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2),
        )  # fmt: skip
        self.head = nn.Linear(16 * 4, 4)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


def small(seed: int = 0, steps: int = 30):
    """Four classes told apart by the quadrant that is bright."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(480) % 4
    inputs = torch.randn(480, 1, 8, 8, generator=generator)
    for image, quadrant in zip(inputs, targets.tolist(), strict=True):
        row, column = divmod(quadrant, 2)
        image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.6
    torch.manual_seed(seed)
    model = SmallNetwork()
    parameters = list(model.parameters())
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    for _ in range(steps):  # SGD by hand: to import torch.optim's compiler takes seconds, in every process
        gradients = torch.autograd.grad(nn.functional.cross_entropy(model(inputs[:160]), targets[:160]), parameters)
        for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
            parameter.data.sub_(velocity.mul_(0.9).add_(gradient), alpha=0.1)
    splits = [(inputs[i : i + 160], targets[i : i + 160]) for i in (0, 160, 320)]
    return Task(model.eval(), inputs[:2], calibration=splits[0], heldout=splits[1], test=splits[2])


def tunable(seed: int = 0):
    """The same, to be trained on."""
    task = small(seed)
    task.finetune = FineTuning(task.calibration, epochs=2, learning_rate=0.05, batch_size=32)
    return task
