import numpy as np
import pytest
import torch

from blend.checking import check_task
from blend.errors import InputError
from blend.task import load_task

OPTIONS = {"epochs": "0", "width": "2"}


def write(path, label_columns, seed):
    """Write records of the binary distribution and return their pixels (n, 3, 32, 32)."""
    n = len(label_columns[0])
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 3072), np.uint8)
    path.write_bytes(np.column_stack([*np.array(label_columns, np.uint8), pixels]).tobytes())
    return pixels.reshape(n, 3, 32, 32)


@pytest.fixture
def cifar10(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for part in range(1, 6):
        write(folder / f"data_batch_{part}.bin", [[part] * 4], seed=part)
    write(folder / "test_batch.bin", [[9, 0, 3]], seed=9)
    return folder


def test_cifar10_is_read_in_order(cifar10):
    task = load_task("cifar10", {"data": str(cifar10), **OPTIONS})
    splits = check_task(task)
    assert splits.calibration.targets.tolist() == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 2
    assert splits.heldout.targets.tolist() == [5, 5]
    assert splits.test.targets.tolist() == [9, 0, 3]
    train = np.concatenate([_pixels(cifar10 / f"data_batch_{part}.bin") for part in range(1, 6)])[:18].astype(float)
    test = _pixels(cifar10 / "test_batch.bin").astype(float)
    axes = {"axis": (0, 2, 3), "keepdims": True}
    expected = (test - train.mean(**axes)) / train.std(**axes)
    assert splits.test.inputs.dtype == torch.float32
    np.testing.assert_allclose(splits.test.inputs.numpy(), expected, atol=1e-5)
    assert task.model.classifier.out_features == 10


def _pixels(path):
    return np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 3073)[:, 1:].reshape(-1, 3, 32, 32)


def test_cifar100_takes_the_fine_label(tmp_path):
    write(tmp_path / "train.bin", [[19] * 20, range(80, 100)], seed=1)
    write(tmp_path / "test.bin", [[3, 3], [99, 0]], seed=2)
    task = load_task("cifar100", {"data": str(tmp_path), **OPTIONS})
    assert task.calibration[1].tolist() == list(range(80, 98))
    assert task.heldout[1].tolist() == [98, 99]
    assert task.test[1].tolist() == [99, 0]
    assert task.model.classifier.out_features == 100


def test_the_folder_is_required():
    with pytest.raises(InputError, match="task cifar10 needs the option data"):
        load_task("cifar10")


def test_a_missing_file_is_named(cifar10):
    (cifar10 / "data_batch_4.bin").unlink()
    with pytest.raises(InputError, match=r"data_batch_4\.bin does not exist"):
        load_task("cifar10", {"data": str(cifar10)})


@pytest.mark.parametrize("content", [b"", b"x" * 3074])
def test_a_file_of_the_wrong_size_is_named(cifar10, content):
    (cifar10 / "test_batch.bin").write_bytes(content)
    with pytest.raises(InputError, match=rf"test_batch\.bin must be a multiple of 3073 bytes, got {len(content)}"):
        load_task("cifar10", {"data": str(cifar10)})


def test_a_label_out_of_range_is_refused(cifar10):
    write(cifar10 / "test_batch.bin", [[1, 10]], seed=0)
    with pytest.raises(InputError, match=r"the labels in .*test_batch\.bin must be below 10, got 10"):
        load_task("cifar10", {"data": str(cifar10)})
