"""Training data of every form: shuffled by the seed alone, streamed where they need not be in memory, and checked."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from blend.errors import InputError
from blend.pruned.training_data import InMemory, Streamed, seeded, training_data
from blend.task import Split

INPUTS, TARGETS = torch.arange(20.0).view(20, 1), torch.arange(20) % 3


class Noisy(Dataset):
    """Draws anew whenever it is asked, as an augmentation does; counts how often."""

    reads = 0

    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, index):
        self.reads += 1
        return INPUTS[index] + torch.rand(1) / 2, int(TARGETS[index])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(INPUTS, TARGETS, strict=True))


def shuffling_loader(generator=None):
    return DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=8, shuffle=True, generator=generator)


def gone_through(data, seed):
    with seeded(seed):
        return [inputs.clone() for inputs, _, _ in data.epoch(seed)]


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        (lambda: (INPUTS, TARGETS), InMemory),
        (lambda: Split(INPUTS, TARGETS, "any"), InMemory),
        (lambda: [(INPUTS[:12], TARGETS[:12]), (INPUTS[12:], TARGETS[12:])], InMemory),
        (lambda: iter(shuffling_loader()), InMemory),
        (Noisy, Streamed),
        (Stream, Streamed),
        (shuffling_loader, Streamed),
        (lambda: shuffling_loader(torch.Generator().manual_seed(3)), Streamed),
    ],
)
def test_every_form_gives_all_examples_in_an_order_of_the_seed(form, kind):
    data = training_data(form(), batch_size=8)
    assert isinstance(data, kind)
    assert data.batches == 3
    first, again, other = (gone_through(data, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.cat(first).floor().flatten().sort().values.tolist() == INPUTS.flatten().tolist()
    shuffled = form is not Stream  # whose order is its own
    assert torch.equal(torch.cat(first), torch.cat(other)) != shuffled
    assert training_data(form(), batch_size=8).fingerprint == data.fingerprint


def test_a_dataset_is_not_kept_in_memory():
    dataset = Noisy()
    data = training_data(dataset, batch_size=6)
    assert dataset.reads == 20 + 20  # once to count them, and the first ones again
    dataset.reads = 0
    batches = iter(data.epoch(0))
    assert len(next(batches)[0]) == 5  # four batches of equal size, not three of six and one of two
    assert dataset.reads < 20


def test_the_generator_of_a_loader_is_given_back():
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    gone_through(training_data(shuffling_loader(generator), 8), 1)
    assert torch.equal(generator.get_state(), state)


def test_the_fingerprint_tells_other_examples():
    other = INPUTS.clone()
    other[7] += 1
    for form in (lambda inputs: (inputs, TARGETS), lambda inputs: TensorDataset(inputs, TARGETS)):
        assert training_data(form(INPUTS), 8).fingerprint != training_data(form(other), 8).fingerprint


class Augmented(Noisy):
    """Has a generator of its own, as most libraries for augmentation do."""

    def __init__(self, size=20):
        self.random, self.size = np.random.default_rng(), size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return INPUTS[index] + float(self.random.uniform(0, 0.5)), int(TARGETS[index])


def test_what_differs_each_time_is_known_by_its_form(capsys):
    first, again, fewer = (training_data(Augmented(size), 3) for size in (20, 20, 19))
    assert capsys.readouterr().err.count("note: the training data differ each time they are read") == 3
    assert first.fingerprint == again.fingerprint != fewer.fingerprint
    training_data(Noisy(), 3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("form", [lambda x, y: (x.clone(), y), TensorDataset])
def test_overlap_with_another_split_is_refused(form):
    heldout = Split(INPUTS[15:].clone(), TARGETS[15:], "held-out")
    with pytest.raises(InputError, match="must be disjoint, but 5 of the 5 held-out examples are also in the training"):
        training_data(form(INPUTS, TARGETS), 8, [heldout])
    training_data(form(INPUTS[:15], TARGETS[:15]), 8, [heldout])


def test_memory_shared_with_another_split_is_refused():
    with pytest.raises(InputError, match="training and held-out splits must be disjoint, got inputs in the same"):
        training_data((INPUTS, TARGETS), 8, [Split(INPUTS[15:], TARGETS[15:], "held-out")])


class Failing(Noisy):
    def __getitem__(self, index):
        raise OSError("disk on fire")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (Failing(), "the training split failed while it was read: OSError: disk on fire"),
        (TensorDataset(INPUTS), r"must give pairs \(inputs, targets\) of tensors, got list as batch 0"),
        (TensorDataset(INPUTS * torch.nan, TARGETS), "the inputs of the training split must be finite, got NaN"),
        (TensorDataset(INPUTS[:0], TARGETS[:0]), "the training split must have at least one example, got none"),
        (3, "the training split must be a pair of tensors, a Dataset or an iterable"),
    ],
)
def test_what_cannot_train_is_refused(data, complaint):
    with pytest.raises(InputError, match=complaint):
        training_data(data, 8)
