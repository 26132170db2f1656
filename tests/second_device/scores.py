"""Prints, as JSON, by which criteria channels are scored otherwise on the device than on the CPU, or not at all."""

import copy
import json

import numpy as np

from blend.device import on_cpu
from criteria import CRITERIA, ChannelGraph, score

from . import NAME
from .task import small

task = small()
moved = copy.deepcopy(task.model).to(NAME)
graph = ChannelGraph.build(task.model, task.example_input)
batches = [tuple(part[:32] for part in task.calibration)]
scored, wrong = [], []
for criterion in CRITERIA:
    if criterion.name == "se_gate":  # the network has none
        continue
    here, there = (
        score(model, graph, batches, on_cpu(task.loss), [criterion], metric=on_cpu(task.metric), seed=0)
        for model in (task.model, moved)
    )
    groups = [group for group in here.groups if here.get(criterion.name, group) is not None]
    pairs = [(here.get(criterion.name, group), there.get(criterion.name, group)) for group in groups]
    scored += [criterion.name] if pairs else []
    same = all(b is not None and np.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in pairs)
    if not same or here.notes != there.notes:
        wrong.append(criterion.name)
print(json.dumps({"scored": scored, "wrong": wrong}))
