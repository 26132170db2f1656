"""Labels of channels: what ties them, and how they are stored."""

import torch

from criteria.labels import STAYS, Ties, combined, compact, varying


def units(ties, labels):
    return ties.units()[labels.numpy()].tolist()


def test_labels_are_new_and_none_stays():
    ties = Ties()
    first, second = ties.fresh(3), ties.fresh(2)
    assert first.tolist() == [1, 2, 3]
    assert second.tolist() == [4, 5]
    assert STAYS not in first
    assert len(set(ties.units().tolist())) == 6


def test_ties_reach_further_than_one_step():
    ties = Ties()
    a, b, c = ties.fresh(2), ties.fresh(2), ties.fresh(2)
    ties.tie(a, b, "", "")
    ties.tie(b, c.flip(0), "", "")
    assert units(ties, a) == units(ties, b) == units(ties, c.flip(0))
    assert len(set(units(ties, a))) == 2
    assert not ties.pins


def test_what_meets_a_position_that_stays_has_to_stay_itself():
    ties = Ties()
    labels = ties.fresh(3)
    ties.tie(labels, torch.tensor([STAYS, 2, STAYS]), "sum", "meets zeros")
    (pin,) = ties.pins
    assert (pin.labels.tolist(), pin.layer, pin.reason) == ([1, 3], "sum", "meets zeros")
    assert len(set(units(ties, torch.tensor([STAYS, 1, 2, 3])))) == 4  # it is not one unit with all else that stays


def test_labels_are_stored_once_along_dimensions_where_they_do_not_vary():
    labels = torch.tensor([7, 8]).view(1, 2, 1, 1).expand(3, 2, 4, 4)
    assert compact(labels).shape == (1, 2, 1, 1)
    assert varying(compact(labels)) == [1]
    assert compact(torch.zeros(2, 3, dtype=torch.int64)).shape == (1, 1)


def test_combining_ties_element_by_element():
    ties = Ties()
    maps, gates = ties.fresh(4).view(1, 4, 1, 1), ties.fresh(4).view(1, 4, 1, 1)
    result = combined(ties, [(gates, (2, 4, 1, 1)), (maps, (2, 4, 8, 8))], "gate")
    assert torch.equal(result, maps)  # the larger operand's
    assert units(ties, maps.flatten()) == units(ties, gates.flatten())


def test_a_label_that_is_spread_over_channels_has_to_stay():
    ties = Ties()
    maps, attention = ties.fresh(4).view(1, 4, 1, 1), ties.fresh(1).view(1, 1, 1, 1)
    assert torch.equal(combined(ties, [(maps, (2, 4, 8, 8)), (attention, (2, 1, 8, 8))], "spatial"), maps)
    assert [pin.labels.tolist() for pin in ties.pins] == [[5]]
    rows, columns = ties.fresh(3).view(3, 1), ties.fresh(2).view(1, 2)
    assert not combined(ties, [(rows, (3, 1)), (columns, (1, 2))], "outer").any()
    assert [pin.labels.tolist() for pin in ties.pins[1:]] == [[9, 10], [6, 7, 8]]
