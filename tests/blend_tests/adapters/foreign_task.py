"""A task whose file makes an importance of Torch-Pruning a criterion."""

import torch_pruning as tp

from blend.adapters.torch_pruning import register_importance
from tests.blend_tests.task_file import small

register_importance("tp_lamp", tp.importance.LAMPImportance())

__all__ = ["small"]
