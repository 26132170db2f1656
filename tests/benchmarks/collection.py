"""What statistics cost, against a plain forward and backward pass and against torch-pruning, over the same images."""

import subprocess
import sys

import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from criteria import CRITERIA, ChannelGraph
from tests.benchmarks.timing import Row, paired
from tests.benchmarks.workload import BATCH, IMAGES, Workload, in_the_sweep

MEMORY = 500e6  # bytes beyond those of a plain forward and backward pass
THEIRS = ("l1", "fpgm", "bn_scale", "lamp", "taylor_l1")
REMARKS = {
    "loss_ablation": ", its default sample of 128 images, a pass for each channel",
    "accuracy_ablation": ", its default sample of 128 images, a pass for each channel",
    "learned_scale": ", its default 30 steps of a batch each",
    "se_gate": ", its default 30 steps of a batch each",
    "obd": ", its default 8 probes",
    "taylor_so": ", its default 8 probes",
}
LONG = {"loss_ablation", "accuracy_ablation", "obd", "taylor_so"}
"""So slow that they are timed once."""


def rows() -> list[Row]:
    """The sweep against both, its memory, then one row for each criterion that is not in it."""
    work = Workload()
    together = in_the_sweep()
    plain = f"plain forward + backward, {IMAGES:,} images by {BATCH}"
    beyond = [criterion.name for criterion in CRITERIA if criterion not in together]
    return [
        paired(
            f"sweep of all {len(together)} weight, BN, activation, first-order criteria (limit 3)",
            lambda: work.score(*together), work.plain, plain,
        ),
        paired(
            f"the same {len(together)} criteria, with the graph",
            lambda: (_graph(work), work.score(*together)), lambda: _by_torch_pruning(work),
            "torch-pruning's L1, FPGM, BN scale, LAMP, Taylor, with the graph",
        ),
        paired(
            f"{', '.join(THEIRS)}, with the graph",
            lambda: (_graph(work), work.score(*THEIRS)), lambda: _by_torch_pruning(work),
            "torch-pruning's L1, FPGM, BN scale, LAMP, Taylor, with the graph",
        ),
        _memory(len(together)),
        *(
            paired(
                name + REMARKS.get(name, ""), lambda name=name: work.score(name), work.plain, plain,
                rounds=1 if name in LONG else 5, warm_up=name not in LONG,
            )
            for name in beyond
        ),
    ]  # fmt: skip


def _graph(work: Workload) -> ChannelGraph:
    return ChannelGraph.build(work.model, work.images[:2])


def _by_torch_pruning(work: Workload) -> None:
    """One importance after another for every group, after adding up the gradients that the last of them needs."""
    dependencies = tp.DependencyGraph().build_dependency(work.model, work.images[:2], verbose=False)
    for batch, labels in work.batches:
        F.cross_entropy(work.model(batch), labels).backward()
    importances = (
        tp.importance.MagnitudeImportance(p=1),
        tp.importance.FPGMImportance(),
        tp.importance.BNScaleImportance(),
        tp.importance.LAMPImportance(),
        tp.importance.TaylorImportance(),
    )
    layers = [nn.Conv2d, nn.Linear]
    groups = list(dependencies.get_all_groups(ignored_layers=[work.model.classifier], root_module_types=layers))
    for importance in importances:
        for group in groups:
            importance(group)
    work.model.zero_grad(set_to_none=True)


def _memory(count: int) -> Row:
    """Peaks of two fresh processes that differ in what they do only."""
    plain, sweep = (
        float(subprocess.check_output([sys.executable, "-m", "tests.benchmarks.workload", what], text=True))
        for what in ("plain", "sweep")
    )
    extra = sweep - plain
    what = f"sweep of all {count} criteria: peak memory beyond a plain forward + backward"
    return Row(what, extra / 1e6, MEMORY / 1e6, extra / MEMORY, "MB", "limit")
