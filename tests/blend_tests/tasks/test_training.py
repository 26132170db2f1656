import numpy as np
import pytest
import torch

from blend.errors import BlendError, InputError
from blend.tasks.training import Recipe, _augmented, _cycle, standardised, trained_network, trained_task

ARGUMENTS = {"in_channels": 1, "classes": 2, "width": 4}


def bars(n=60, seed=0):
    """Horizontal against vertical stripes."""
    rng = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % 2
    stripe = torch.tensor([1.0, 1.0, -1.0, -1.0] * 2)
    inputs = torch.where(targets.view(-1, 1, 1, 1) == 0, stripe.view(1, 1, 1, 8), stripe.view(1, 1, 8, 1))
    return inputs + 0.1 * torch.randn(n, 1, 8, 8, generator=rng), targets


def train(recipe=None, seed=0, data=None, **changed):
    recipe = recipe or Recipe(3, batch_size=16, shift=1, noise=0.1)
    return trained_network("bars", data or bars(), "resnet20", ARGUMENTS | changed, recipe, seed)


def same(a, b):
    state = b.state_dict()
    return all(torch.equal(value, state[name]) for name, value in a.state_dict().items())


def test_training_learns_and_ends_in_evaluation_mode():
    network = train(Recipe(6, batch_size=16))
    inputs, targets = bars(40, seed=1)
    assert not any(module.training for module in network.modules())
    assert all(weight.grad is None for weight in network.parameters())
    with torch.no_grad():
        assert (network(inputs).argmax(1) == targets).float().mean() > 0.9


def test_training_repeats_itself_and_leaves_the_random_state_alone(monkeypatch, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = train()
    monkeypatch.setenv("BLEND_CACHE_DIR", str(tmp_path / "elsewhere"))
    torch.rand(5)
    assert same(first, train())
    torch.manual_seed(3)
    train(seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_cache_is_said_and_used(cache, capsys):
    first = train()
    (path,) = (cache / "networks").iterdir()
    assert path.name.startswith("bars-resnet20-")
    assert f"cached the trained resnet20 in {path}" in capsys.readouterr().err
    assert same(first, train())
    shown = capsys.readouterr().err
    assert "training" not in shown
    assert str(path) in shown


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"recipe": Recipe(2, batch_size=16)},
        {"data": bars(seed=2)},
        {"stem_stride": 2},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_whatever_determines_the_weights_is_part_of_the_key(cache, changed):
    quick = {"recipe": Recipe(1, batch_size=64)}
    train(**quick)
    train(**quick | changed)
    assert len(list((cache / "networks").iterdir())) == 2


def damaged(path, how):
    from safetensors.torch import load_file, save_file

    if how == "cut short":
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        state = {name: value + 1 for name, value in load_file(path).items()}
        save_file(state | {"classifier.weight": torch.zeros(3, 3)}, path)


@pytest.mark.parametrize("how", ["cut short", "empty", "another network"])
def test_a_broken_cache_file_is_trained_again(cache, capsys, how):
    first = train()
    (path,) = (cache / "networks").iterdir()
    damaged(path, how)
    capsys.readouterr()
    assert same(first, train())
    assert f"training again: the cached network {path} cannot be read" in capsys.readouterr().err
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert same(first, train())
    assert "training again" not in capsys.readouterr().err


def test_divergence_is_an_error_and_is_not_cached(cache):
    with pytest.raises(BlendError, match="training resnet20 on bars diverged: learning_rate 1e\\+20 is too high"):
        train(Recipe(2, learning_rate=1e20, batch_size=16))
    assert list((cache / "networks").iterdir()) == []


def test_no_epochs_give_the_untrained_network():
    network = train(Recipe(0))
    assert network.stem[1].num_batches_tracked == 0


def test_every_number_of_steps_can_be_trained():
    for n in (2, 4, 17):  # 1, 1 and 2 batches; the last of them would be a single image if batches were not even
        train(Recipe(1, batch_size=16), data=bars(n))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": -1}, "epochs must be >= 0, got -1"),
        ({"epochs": 1, "learning_rate": 0.0}, "learning_rate must be > 0, got 0"),
        ({"epochs": 1, "batch_size": 0}, "batch_size must be >= 1, got 0"),
    ],
)
def test_a_recipe_refuses_what_cannot_be(values, message):
    with pytest.raises(InputError, match=message):
        Recipe(**values)


def test_the_learning_rate_rises_for_a_quarter_and_falls_to_nothing():
    assert [_cycle(share) for share in (0, 0.125, 0.25, 0.625, 1)] == pytest.approx([0.04, 0.52, 1, 0.5, 0])


def test_augmentation_mirrors_and_moves_each_image_by_itself():
    images = torch.zeros(200, 1, 5, 5)
    images[:, :, 2, 3] = 1
    moved = _augmented(images, Recipe(1, flip=True, shift=1), torch.Generator().manual_seed(0))
    assert moved.sum((1, 2, 3)).tolist() == [1] * 200
    _, _, rows, columns = moved.nonzero(as_tuple=True)
    assert set(rows.tolist()) == {1, 2, 3}
    assert set(columns.tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(_augmented(images, Recipe(1), torch.Generator()), images)


def test_standardisation_takes_its_numbers_from_the_first_part():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (50, 3, 4, 4), np.uint8)
    first[:, 2] = 9
    train_part, other = standardised(first, np.full((2, 3, 4, 4), 9, np.uint8))
    assert train_part.dtype == torch.float32
    assert train_part.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert train_part.std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 0], abs=1e-5)
    expected = (9 - first[:, 0].mean()) / first[:, 0].std()
    assert other[0, 0, 0, 0].item() == pytest.approx(expected, rel=1e-5)


def test_a_task_does_not_keep_the_training_images_alive_through_its_calibration():
    task = trained_task(
        "bars", bars(), bars(seed=1), bars(seed=2), classes=2, network="resnet20", width=4, recipe=Recipe(0), seed=0,
        calibration=10,
    )  # fmt: skip
    assert len(task.calibration[0]) == 10
    assert task.calibration[0].untyped_storage().nbytes() == 10 * 64 * 4
