import numpy as np
import pytest
import torch

from blend.checking import check_task
from blend.errors import InputError
from blend.task import load_task
from blend.tasks.textures import CLASSES, SHAPES, SIDE, TEXTURES, draw, textures

SMALL = {"train_images": 80, "heldout_images": 40, "test_images": 41, "epochs": 0, "width": 2}


def test_there_are_forty_classes_of_distinct_shapes_and_textures():
    axis = np.linspace(-1, 1, 33, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    masks = [shape(x, y) for shape in SHAPES]
    assert all(0.1 < mask.mean() < 0.65 for mask in masks)
    for i, a in enumerate(masks):
        assert all((a != b).mean() > 0.05 for b in masks[:i])
    patterns = [texture(4 * x, 4 * y) for texture in TEXTURES]
    assert all(np.abs(pattern).max() <= 1 and pattern.std() > 0.5 for pattern in patterns)
    assert CLASSES == 40


def test_images_depend_on_the_generator_only():
    classes = np.arange(80) % CLASSES
    first, again, other = (draw(classes, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (80, 3, SIDE, SIDE)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert (first != other).mean() > 0.9


def test_splits_are_balanced_disjoint_and_independent_of_the_run_seed():
    options = {name: str(value) for name, value in SMALL.items()}
    splits = check_task(load_task("textures", options, seed=0))
    assert [len(split) for split in splits] == [80, 40, 41]
    assert splits.calibration.targets.bincount().tolist() == [2] * 40
    assert splits.heldout.inputs.shape[1:] == (3, 32, 32)
    assert splits.calibration.inputs.mean((0, 2, 3)).abs().max() < 1e-5
    prints = [split.fingerprint() for split in splits]
    assert [s.fingerprint() for s in check_task(load_task("textures", options, seed=1))] == prints
    others = check_task(load_task("textures", options | {"data_seed": "1"}, seed=0))
    assert not {s.fingerprint() for s in others} & set(prints)


def test_images_are_cached_and_drawn_again_when_the_file_is_broken(cache, capsys):
    first = textures(**SMALL).heldout
    files = sorted((cache / "textures").iterdir())
    assert [file.name for file in files] == ["v1-0-heldout-40.npy", "v1-0-test-41.npy", "v1-0-train-80.npy"]
    stamps = [file.stat().st_mtime_ns for file in files]
    textures(**SMALL)
    assert [file.stat().st_mtime_ns for file in files] == stamps
    for content in (b"", files[0].read_bytes()[:500], files[1].read_bytes()):
        files[0].write_bytes(content)
        capsys.readouterr()
        assert torch.equal(textures(**SMALL).heldout[0], first[0])
        assert f"drawing again: the cached images {files[0]} cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_images": 0}, "test_images must be >= 1, got 0"),
        ({"data_seed": -1}, "data_seed must be >= 0, got -1"),
        ({"epochs": -1}, "epochs must be >= 0, got -1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        textures(**SMALL | options)
