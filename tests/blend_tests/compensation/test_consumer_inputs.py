"""How many images sequential compensation takes."""

import pytest
import torch

from blend.cli import run
from blend.compensation import consumer_inputs, sequential
from blend.compensation.consumer_inputs import held_images
from blend.compensation.live_memory import live_bytes

from ..small_networks import tiny, tiny_images
from ..task_file import small

TASK = f"{__file__.rpartition('/compensation/')[0]}/task_file.py:small"


@pytest.mark.parametrize(("held", "number"), [(0, 4), (5, 5), (7.9, 7), (8, 8), (100, 8)])
def test_as_many_images_as_there_is_memory_for(monkeypatch, held, number):
    model, images = tiny(), tiny_images(8)
    each = 2 * live_bytes(model, images[:1])
    monkeypatch.setattr(consumer_inputs, "LEAST_IMAGES", 4)
    monkeypatch.setattr(consumer_inputs, "HELD", int(held * each))
    taken, notes = held_images(model, images)
    assert torch.equal(taken, images[:number])
    assert [note.partition(": ")[0] for note in notes] == (
        [] if number == 8 else [f"compensated from {number} of 8 images"]
    )


@pytest.mark.parametrize(("grade", "number"), [("sequential", 32), ("patch", 100)])
def test_command_says_how_many_it_takes_and_how_far_it_is(capsys, monkeypatch, tmp_path, grade, number):
    monkeypatch.setattr(consumer_inputs, "HELD", 2**18)
    seen, walk = [], sequential._walk

    def walking(original, pruned, names, batches, *rest):
        seen.append(sum(map(len, batches)))
        walk(original, pruned, names, batches, *rest)

    monkeypatch.setattr(sequential, "_walk", walking)
    asked = ["--compensate", grade, "--recalibration-images", "100"]
    assert run(["prune", "l1", TASK, "--out", str(tmp_path / "out"), *asked]) == 0
    told = capsys.readouterr().err
    each = 2 * live_bytes(small().model, small().example_input[:1]) / 2**20
    note = f"note: compensated from 32 of 100 images: 'sequential' holds {each:.3g} MiB of activations for each at once"
    assert told.count(note) == (number == 32)
    if number == 32:
        assert seen == [32]
        assert "refitting consumers  100%  2/2" in told
    else:
        assert "reading what consumers read  100%  100/100" in told
        assert "correcting consumers  100%  2/2" in told
