import numpy as np
import pytest
import torch
from PIL import Image

from blend.checking import check_task
from blend.errors import InputError
from blend.task import load_task

OPTIONS = {"epochs": "0", "width": "2", "size": "8"}


def paint(folder, count, suffix="png", size=(12, 9), mode="RGB", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *str(folder).encode()])
    for number in range(count):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{number:02}.{suffix}")


def load(folder, **options):
    return load_task("images", {"data": str(folder), **OPTIONS, **options})


def test_class_folders_are_split_at_random_but_always_alike(tmp_path):
    paint(tmp_path / "cat", 20)
    paint(tmp_path / "dog", 10, suffix="jpg", mode="L", size=(30, 40))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    splits = check_task(load(tmp_path))
    assert [split.targets.bincount().tolist() for split in splits] == [[14, 6], [3, 2], [3, 2]]
    assert splits.test.inputs.shape[1:] == (3, 8, 8)
    assert splits.test.inputs.dtype == torch.float32
    prints = [split.fingerprint() for split in splits]
    assert [split.fingerprint() for split in check_task(load(tmp_path, seed="3"))] == prints
    assert [split.fingerprint() for split in check_task(load(tmp_path, data_seed="3"))] != prints


def test_given_splits_are_kept(tmp_path):
    for split, counts in (("train", (4, 5, 6)), ("heldout", (1, 2, 0)), ("test", (3, 0, 2))):
        for name, count in zip("abc", counts, strict=True):
            paint(tmp_path / split / name, count)
    task = load(tmp_path)
    assert task.calibration[1].bincount().tolist() == [4, 5, 6]
    assert task.heldout[1].bincount().tolist() == [1, 2]
    assert task.test[1].bincount().tolist() == [3, 0, 2]
    assert task.model.classifier.out_features == 3


def test_an_image_is_cut_to_its_central_square(tmp_path):
    for name in "ab":
        paint(tmp_path / name, 3)
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    for file in (tmp_path / "a").iterdir():
        Image.fromarray(wide).save(file)
    task = load(tmp_path)
    inputs, targets = task.heldout
    middle = inputs[targets == 0]
    assert middle.std((2, 3)).abs().max() < 1e-5
    assert (middle > 0).all()


def test_an_unreadable_image_is_named(tmp_path):
    for name in "ab":
        paint(tmp_path / name, 4)
    (tmp_path / "b" / "02.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"b/02\.png cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("folders", "options", "message"),
    [
        ({}, {}, "at least two classes, got none"),
        ({"a": 5}, {}, "at least two classes, got a"),
        ({"a": 5, "b": 2}, {}, "class b must have at least 3 images, one for each split, got 2"),
        ({"a": 5, "b": 5}, {"size": "4"}, "size must be >= 8 pixels, got 4"),
        ({"train/a": 5, "train/b": 5, "test/a": 2}, {}, "missing: heldout"),
        (
            {"train/cat": 2, "train/dog": 2, "heldout/cat": 2, "heldout/dogs": 2, "test/cat": 1, "test/dog": 1},
            {},
            "class dogs has no training images; did you mean 'dog'",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(tmp_path, folders, options, message):
    for folder, count in folders.items():
        paint(tmp_path / folder, count)
    with pytest.raises(InputError, match=message):
        load(tmp_path, **options)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"data must be a folder, got .*nowhere"):
        load(tmp_path / "nowhere")
