from blend.transfer.places import FROZEN, RECOMPUTED
from blend.transfer.text import unit_of


def task(metric):
    judged = {"heldout_metric": metric, "test_metric": metric, "margin": {}}
    unpruned = {"heldout_metric": 0.9, "test_metric": 0.9}
    return {"unpruned": unpruned, "results": [{FROZEN: judged, RECOMPUTED: {"reason": "other layout"}}]}


def test_one_unit_for_all_that_is_told_together():
    assert unit_of([task(0.5), task(0.7)]).name == "points"
    assert unit_of([task(0.5), task(-0.2)]).name == ""
