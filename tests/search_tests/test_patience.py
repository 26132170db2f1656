from search.patience import Patience, Trouble, hangs
from search.worker import Failure


def test_the_limit_follows_the_median():
    patience = Patience(None)
    assert patience.limit == 3600
    for seconds in (1.0, 2.0, 1000.0):
        patience.took(seconds)
    assert patience.limit == 300
    for seconds in (20.0, 30.0, 40.0, 50.0):
        patience.took(seconds)
    assert patience.limit == 100 * 30.0
    assert Patience(7.0).limit == 7.0


def test_a_failure_says_how_often_it_was_tried_where_that_counts():
    assert hangs(2.5).final(2) == Failure("no answer within 2.5 s (2 of 2 tries)")
    assert Trouble("ValueError: odd").final(2) == Failure("ValueError: odd")
