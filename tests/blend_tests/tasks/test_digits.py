import pytest
import torch
from torch import nn

from blend.checking import check_task
from blend.errors import InputError
from blend.task import load_task
from blend.tasks.digits import digits

UNTRAINED = {"epochs": "0", "width": "2"}


def test_the_splits_are_disjoint_standardised_and_never_change():
    task = load_task("digits", UNTRAINED, seed=0)
    splits = check_task(task)
    assert [len(split) for split in splits] == [256, 3 * 440, 500]
    assert splits.heldout.inputs.shape[1:] == (1, 16, 16)
    assert splits.test.targets.unique().tolist() == list(range(10))
    assert splits.test.inputs.mean().item() == pytest.approx(0, abs=0.05)
    assert splits.test.inputs.std().item() == pytest.approx(2**0.5, abs=0.05)  # the images' own 1 and the noise's 1
    again = check_task(load_task("digits", UNTRAINED, seed=5))
    assert [split.fingerprint() for split in again] == [split.fingerprint() for split in splits]
    assert task.name == "digits"
    assert len(task.finetune.train[0]) == 857


def test_noise_is_an_option_and_can_be_off():
    task = digits(noise=0, epochs=0, width=2)
    assert task.heldout[0].std().item() == pytest.approx(1, abs=0.05)


def test_a_small_network_learns_quickly():
    task = digits(width=4, epochs=4, noise=0.5)
    inputs, targets = task.test
    with torch.no_grad():
        assert task.metric(task.model(inputs), targets).mean() > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -1.0}, "noise must be >= 0, got -1"),
        ({"noise": float("nan")}, "noise must be >= 0, got nan"),
        ({"train_images": 858}, r"train_images must be in \[1, 857\], got 858"),
        ({"train_images": 0}, r"train_images must be in \[1, 857\], got 0"),
        ({"network": "resnet"}, "network must be one of"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        digits(**options)


@pytest.mark.parametrize(("network", "features"), [("resnet56", 32), ("vgg16_bn", 256), ("mobilenetv2", 640)])
def test_networks_are_half_as_wide_as_usual(network, features):
    model = digits(network=network, epochs=0).model
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    assert last.in_features == features
