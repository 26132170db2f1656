import gc
import weakref
from collections import Counter

import psutil
import pytest
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from criteria import collect
from criteria.views import NEEDS, bound_need
from tests.criteria_tests.tiny_networks import conv_net, graph, group, images, member, snapshot

CALLS, WARM_UP = 120, 20
EVERYTHING = {bound_need(need, {"probes": 1}) for need in NEEDS}  # a probe leaks what eight do
BATCH = images(384)


class Unreached(nn.Module):
    """What ``side`` reads and makes takes part in the graph of derivatives, but the loss does not depend on it."""

    def __init__(self):
        super().__init__()
        self.main, self.between, self.side = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x):
        self.side(self.between(self.main(x)))
        return self.main(x).mean((2, 3))


def unreached():
    groups = (group("main", 3, [member("main", 3)], [member("between", 3)]),
              group("between", 4, [member("between", 4)], [member("side", 4)]))  # fmt: skip
    return Unreached(), graph(*groups)


def raising(outputs, targets):
    raise ArithmeticError("no loss")


def no_more_classes_than_outputs(outputs, targets):
    return F.cross_entropy(outputs, targets % outputs.shape[1])


@pytest.mark.parametrize(
    ("build", "loss"),
    [(conv_net, F.cross_entropy), (unreached, no_more_classes_than_outputs), (conv_net, raising)],
    ids=["all statistics", "a layer beside the loss", "a loss that raises"],
)
def test_repeated_collection_does_not_grow(build, loss):
    networks = []
    for call in range(WARM_UP + CALLS):
        if call == WARM_UP:  # torch's kernels, caches and thread pools are set up, the allocator has what it needs
            before, memory = alive(), resident()
        model, net_graph = build()
        try:
            collect(model, net_graph, [BATCH], loss, EVERYTHING)
        except ArithmeticError:
            assert loss is raising
        assert not any(snapshot(model)["hooks"])
        networks.append(weakref.ref(model))
        del model, net_graph
    grown = resident() - memory
    assert not alive() - before
    assert not any(network() for network in networks)
    # To keep no more than each batch's inputs would take 13 MB; half of that is far above what the allocator adds by
    # itself, at most 2 MB in trials.
    kept = CALLS * BATCH[0].nbytes
    assert grown < kept / 2


def alive():
    """How many tensors, modules and hooks' handles there are."""
    gc.collect()
    kinds = (Tensor, nn.Module, RemovableHandle)
    return Counter(kind.__name__ for item in gc.get_objects() for kind in kinds if issubclass(type(item), kind))


def resident():
    return psutil.Process().memory_info().rss
