"""A blend with random factors for any network, for the adapters' tests."""

import numpy as np

from blend.blended import BlendedCriterion, BlendedGroup, CriterionRecord, Spokesman, layer_names, library_versions
from blend.blended.formula import Blender, GroupFormula
from blend.identity import NetworkIdentity, weight_hash
from criteria import ScoreTable


def blend_for(model, graph, criteria=("one", "two"), table=None, seed=0, **changes):
    """Scores of two random criteria, or of a table, with random offsets."""
    rng = np.random.default_rng(seed)
    if table is None:
        drawn = {(name, g.name): rng.random(g.size) for name in criteria for g in graph.groups}
        table = ScoreTable(list(criteria), [g.name for g in graph.groups], drawn, [])
    formula = {
        g.name: GroupFormula(((criteria[0], 0.75), (criteria[1], 0.25)), float(rng.uniform(-0.2, 0.2)))
        for g in graph.groups
    }
    scores, layers = Blender(table).scores(formula), layer_names(graph)
    groups = tuple(
        BlendedGroup(
            name=name, size=len(scores[name]), layers=layers[name], clusters=(), offset=part.offset,
            candidates=tuple(Spokesman(criterion=c, factor=f) for c, f in part.factors),
            scores=tuple(scores[name].tolist()),
        )
        for name, part in formula.items()
    )  # fmt: skip
    values = {
        "groups": groups, "normalisation": "rank", "allocation": "global", "reduction": 0.5, "cost": "macs",
        "criteria": tuple(CriterionRecord(name=c, family="", reference="", parameters={}) for c in criteria),
        "task": {"name": "none", "ignore": []}, "seed": 0, "metrics": {}, "versions": library_versions(),
        "network": NetworkIdentity(layout=graph.fingerprint, weights=weight_hash(model), shapes=graph.shapes),
    }  # fmt: skip
    return BlendedCriterion(**values | changes)
