"""What our importance costs a pruner of Torch-Pruning, against its own magnitude."""

import copy

import torch
import torch_pruning as tp

from blend.adapters.torch_pruning import BlendedImportance
from blend.tasks.networks import build_network
from criteria import ChannelGraph
from tests.benchmarks.timing import Row, paired
from tests.blend_tests.adapters.blends import blend_for


def rows() -> list[Row]:
    """Pruning half of the channels of a ResNet-56 in one global step: making the importance, the pruner, and the step.

    The step alone is measured as well, since an importance is made once and may serve many steps.
    """
    torch.manual_seed(0)
    model, example = build_network("resnet56", in_channels=3, classes=10).eval(), torch.randn(1, 3, 32, 32)
    blend = blend_for(model, ChannelGraph.build(model, example))

    def pruner(importance_of: object) -> tp.pruner.BasePruner:
        copied = copy.deepcopy(model)
        return tp.pruner.BasePruner(
            copied, example, importance_of(copied), pruning_ratio=0.5, global_pruning=True,
            ignored_layers=[copied.classifier], pruning_ratio_dict={}, customized_pruners={},
        )  # fmt: skip

    def ours(copied: torch.nn.Module) -> BlendedImportance:
        return BlendedImportance(blend, copied, example)

    def theirs(_: torch.nn.Module) -> tp.importance.MagnitudeImportance:
        return tp.importance.MagnitudeImportance()

    against = "the same with its own magnitude importance"
    whole = paired(
        "torch-pruning: pruner made and one global step with our importance, ResNet-56",
        lambda: pruner(ours).step(), lambda: pruner(theirs).step(), against, rounds=5,
    )  # fmt: skip
    waiting = {kind: [pruner(kind) for _ in range(6)] for kind in (ours, theirs)}
    step = paired(
        "torch-pruning: one global step with our importance, ResNet-56",
        lambda: waiting[ours].pop().step(), lambda: waiting[theirs].pop().step(), against, rounds=5,
    )  # fmt: skip
    return [whole, step]
