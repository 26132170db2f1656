import numpy as np
import pytest
import torch
from torch import nn

from criteria import CRITERIA, ChannelGraph, CriterionError, GroupStats, activation, collect

from .tiny_networks import conv_net, graph, group, images, member


def test_means_and_shares_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(inplace=True), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))
    inputs = torch.tensor([[1.0, -1.0], [3.0, 0.0]]).view(1, 1, 2, 2)
    net_graph = graph(group("g", 2, [member("0", 2)], [member("2", 2)]))
    (_, consumer) = collect(model, net_graph, [(inputs, inputs)], None, {"activation"})["g"]
    assert activation.mean_activation(consumer).tolist() == [1, 0.5]  # (1, 0, 3, 0) and (0, 2, 0, 0)
    assert activation.apoz(consumer).tolist() == [0.5, 0.25]


def test_hrank_by_hand():
    eye, outer, zero = torch.eye(3), torch.ones(3, 3), torch.zeros(3, 3)
    maps = torch.stack([torch.stack([eye, outer, zero]), torch.stack([outer, outer, zero])])
    scores = activation.hrank(GroupStats("g", "conv", 3, side="consumer", maps=maps))
    assert scores.tolist() == [2, 1, 0]  # of ranks 3 and 1, 1 and 1, 0 and 0


def test_hrank_where_no_maps_are_read():
    model, net_graph = conv_net()
    views = collect(model, net_graph, [images()], None, {"maps"})
    CRITERIA.get("hrank")(views["stem"][1])
    with pytest.raises(CriterionError, match="criterion 'hrank' needs the maps read by 'head'; it reads none"):
        CRITERIA.get("hrank")(views["conv"][1])


def test_network_statistics_against_numpy():
    model, net_graph = conv_net()
    inputs, targets = images()
    views = collect(model, net_graph, [(inputs, targets)], None, {"activation", "maps"}, map_images=100)
    with torch.no_grad():
        read = model.eval()[:4](inputs).numpy()
    stem = views["stem"][1]
    np.testing.assert_allclose(activation.mean_activation(stem), read.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(activation.apoz(stem), (read != 0).mean((0, 2, 3)), rtol=1e-5)
    ranks = [[np.linalg.matrix_rank(channel) for channel in image] for image in read]
    np.testing.assert_allclose(activation.hrank(stem), np.mean(ranks, 0), rtol=1e-5)


def test_flattened_channels_are_read_as_a_whole():
    model, net_graph = conv_net()
    inputs, targets = images()
    head = collect(model, net_graph, [(inputs, targets)], None, {"activation"})["conv"][1]
    with torch.no_grad():
        read = model.eval()[:6](inputs).numpy()
    np.testing.assert_allclose(head.activation_mean, read.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)


def consumer(size, **statistics):
    return GroupStats("g", "conv", size, side="consumer", **statistics)


def test_entropy_by_hand():
    # Of four images: all in one bin, two in each of two, and one in each of four bins.
    means = torch.tensor([[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 2.0, 4.0]])
    scores = activation.entropy(consumer(3, image_means=means), bins=4)
    assert scores.tolist() == pytest.approx([0, np.log(2), np.log(4)])


def test_entropy_of_what_changes_by_rounding_alone():
    means = torch.tensor([[0.3, 0.3, 0.3, 0.3], [0.3, 0.3, 0.3, 0.4]], dtype=torch.float64)
    means[0] *= 1 + 1e-15 * torch.arange(4)
    scores = activation.entropy(consumer(2, image_means=means))
    assert scores.tolist() == pytest.approx([0, -0.75 * np.log(0.75) - 0.25 * np.log(0.25)])


@pytest.mark.parametrize("bins", [2, 20, 31])
def test_entropy_against_numpy(bins):
    means = torch.randn(6, 200, generator=torch.Generator().manual_seed(0))

    def by_numpy(values):
        counts, _ = np.histogram(values, bins=bins)
        shares = counts[counts > 0] / counts.sum()
        return -(shares * np.log(shares)).sum()

    scores = activation.entropy(consumer(6, image_means=means), bins=bins)
    np.testing.assert_allclose(scores, [by_numpy(row.astype(np.float64)) for row in means.numpy()], rtol=1e-12)


def test_entropy_needs_bins():
    with pytest.raises(ValueError, match="parameter 'bins' of 'entropy' must be at least 2, got 1"):
        CRITERIA.get("entropy:bins=1")(consumer(2, image_means=torch.ones(2, 3)))


def test_image_means_are_those_of_each_image_whatever_the_split():
    model, net_graph = conv_net()
    inputs, targets = images(20)
    with torch.no_grad():
        read = model.eval()[:4](inputs)
    for sizes in (20, 7, 1):
        batches = zip(inputs.split(sizes), targets.split(sizes), strict=True)
        views = collect(model, net_graph, batches, None, {"image_means"})
        torch.testing.assert_close(views["stem"][1].image_means, read.mean((2, 3)).T)
        assert views["conv"][1].image_means.shape == (3, 20)


def test_image_means_of_a_long_stream_are_a_bounded_sample(monkeypatch):
    monkeypatch.setattr("criteria.consumers.IMAGE_MEANS", 5)
    model, net_graph = conv_net()
    inputs, targets = images(20)
    with torch.no_grad():
        read = model.eval()[:4](inputs).mean((2, 3)).T
    found = []
    for sizes in (20, 6):
        batches = zip(inputs.split(sizes), targets.split(sizes), strict=True)
        sample = collect(model, net_graph, batches, None, {"image_means"})["stem"][1].image_means
        assert sample.shape == (4, 5)
        nearest = (sample[:, :, None] - read[:, None, :]).abs().amax(0)
        assert nearest.amin(1).max() < 1e-6
        found.append(nearest.argmin(1).tolist())
    assert found[0] == found[1]
    assert len(set(found[0])) == 5


def test_chip_by_hand():
    # Rows (3, 0), (0, 4) and (0, 0): singular values 3 and 4. With a row (0, 3) instead of zeros: 3 and 5.
    first = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    second = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 3.0]])
    maps = torch.stack([first, second])[:, :, :, None]
    np.testing.assert_allclose(activation.chip(consumer(3, maps=maps)), [3, (4 + 2) / 2, 1 / 2], atol=1e-7)


@pytest.mark.parametrize(("channels", "side"), [(4, 3), (12, 3), (9, 3)])
def test_chip_against_numpy(channels, side):
    maps = torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(0)).relu()

    def without(image, channel):
        matrix = image.reshape(channels, -1).copy()
        if channel is not None:
            matrix[channel] = 0
        return np.linalg.svd(matrix, compute_uv=False).sum()

    images_ = maps.double().numpy()
    expected = [np.mean([without(i, None) - without(i, channel) for i in images_]) for channel in range(channels)]
    np.testing.assert_allclose(activation.chip(consumer(channels, maps=maps)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("channels", "side"), [(6, 3), (12, 3)])
def test_chip_holds_a_few_gram_matrices_at_a_time(channels, side, monkeypatch):
    maps = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    whole, eigvalsh, held = activation.chip(consumer(channels, maps=maps)), torch.linalg.eigvalsh, []
    smaller = min(channels, side**2)
    monkeypatch.setattr(activation, "_HELD", 4 * smaller**2 + 1)
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda gram: held.append(gram.numel()) or eigvalsh(gram))
    assert torch.equal(activation.chip(consumer(channels, maps=maps)), whole)
    assert max(held) == 4 * smaller**2
    monkeypatch.setattr(activation, "_HELD", 1)
    assert torch.equal(activation.chip(consumer(channels, maps=maps)), whole)


def class_net():
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2).view(2, 2, 1, 1))
    return model, graph(group("g", 2, [member("0", 2)], [member("1", 2)]))


def test_discriminant_by_hand():
    # Channel 0: means 1, 3 of one class and 7, 9 of the other: 9 between, 1 within. Channel 1: none between.
    model, net_graph = class_net()
    rows = torch.tensor([[1.0, 0.0], [7.0, 2.0], [3.0, 2.0], [9.0, 0.0]])
    inputs = rows[:, :, None, None] + torch.tensor([[1.0, -1.0]])  # positions differ, their mean does not
    labels = torch.tensor([5, -1, 5, -1])
    for size in (4, 1, 3):
        batches = list(zip(inputs.split(size), labels.split(size), strict=True))
        (_, view) = collect(model, net_graph, batches, None, {"classes"})["g"]
        np.testing.assert_allclose(CRITERIA.get("discriminant")(view), [9 / 1.05, 0], atol=1e-9)
        np.testing.assert_allclose(CRITERIA.get("discriminant:damping=1")(view), [4.5, 0], atol=1e-9)


def test_discriminant_counts_classes_by_their_images():
    model, net_graph = class_net()
    values, labels = torch.tensor([0.0, 0.0, 3.0, 6.0]), torch.tensor([0, 0, 0, 1])
    inputs = values.view(4, 1, 1, 1).expand(4, 2, 2, 2)
    (_, view) = collect(model, net_graph, [(inputs, labels)], None, {"classes"})["g"]
    # Class means 1 and 6, mean 2.25: (3 · 1.25² + 3.75²) / 4 between, and (1 + 1 + 4) / 4 within.
    assert view.between_class_variance.tolist() == pytest.approx([4.6875] * 2)
    assert view.within_class_variance.tolist() == pytest.approx([1.5] * 2)


def test_discriminant_without_classes():
    model, net_graph = class_net()
    inputs = torch.ones(3, 2, 2, 2)
    for targets in (torch.zeros(3), torch.zeros(3, 2, 2, dtype=torch.long)):
        (_, view) = collect(model, net_graph, [(inputs, targets)], None, {"classes"})["g"]
        with pytest.raises(CriterionError, match="needs the activations by class read by '1'; targets are not one int"):
            CRITERIA.get("discriminant")(view)


class Frames(nn.Module):
    """A network of images that takes each frame of an example for one."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


class TokensFirst(nn.Module):
    """What its linear layers read has the tokens first, and then the examples."""

    def __init__(self, stem, head):
        super().__init__()
        self.stem, self.head = stem, head

    def forward(self, x):
        return self.head(self.stem(x).flatten(2).permute(2, 0, 1)).mean(0)


def test_of_fewer_rows_than_examples_there_are_no_means_of_examples():
    torch.manual_seed(0)
    model = TokensFirst(nn.Conv2d(1, 3, 2, 2), nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))).eval()
    graph = ChannelGraph.build(model, torch.randn(2, 1, 4, 4))
    batches = [(torch.randn(count, 1, 4, 4), torch.zeros(count, dtype=torch.long)) for count in (7, 3)]
    views = collect(model, graph, batches, None, {"image_means", "activation"})
    assert views
    for view in (view for views in views.values() for view in views if view.side == "consumer"):
        assert view.activation_mean is not None
        with pytest.raises(CriterionError, match="needs "):
            CRITERIA.get("entropy")(view)


@pytest.mark.parametrize("need", ["maps", "image_means"])
def test_of_frames_that_were_folded_into_the_batch_the_first_of_each_example_counts(need):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    videos, targets = torch.randn(8, 4, 1, 8, 8), torch.zeros(8, dtype=torch.long)
    (name,) = (group.name for group in ChannelGraph.build(model.eval(), videos[:, 0]).groups)
    found = collect(model, ChannelGraph.build(model, videos[:, 0]), [(videos[:, 0], targets)], None, {need})[name][1]
    folded = Frames(model).eval()
    graph = ChannelGraph.build(folded, videos)
    (of_videos,) = collect(folded, graph, [(videos, targets)], None, {need}).values()
    torch.testing.assert_close(getattr(of_videos[1], need), getattr(found, need))
