import pytest

from blend.runs.course import course_in_words, generation_record, say_when_dry
from search import Choice, Evolution, Real, Space
from search.archive import Evaluation

SPACE = Space(((Choice(2), Real(0.0, 1.0, 0.1)),))


def test_a_record_by_hand():
    strategy = Evolution(SPACE, population=4, seed=0, initial=[[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.5]])
    genomes = strategy.ask()
    strategy.tell(genomes, [1.0, 3.0, 1.0, 2.0])
    masks = [b"a", b"b", b"a", b"b"]
    batch = [
        Evaluation(i, "search", 0, tuple(genome), mask, 0.0, {"share": 0.5} if i in (1, 3) else {}, 0.0, i >= 2, None)
        for i, (genome, mask) in enumerate(zip(genomes, masks, strict=True))
    ]
    assert generation_record(strategy, batch) == {
        "generation": 0, "best": 3.0, "genomes": 0.75, "masks": 0.5, "new": 0.5, "given_up": 1,
        "entropy": pytest.approx(1.0), "spread": pytest.approx(0.4145781), "proposed": 0, "known": 0, "boost": 1.0,
    }  # fmt: skip


def test_it_is_told_when_proposals_run_dry_and_when_no_longer(capsys):
    record = {"generation": 6, "proposed": 20, "known": 15, "boost": 1.5}
    say_when_dry(record, 1.0)
    assert "in generation 7, 15 of 20 proposals were known already" in capsys.readouterr().err
    say_when_dry({**record, "boost": 2.25}, 1.5)
    say_when_dry({**record, "boost": 1.5}, 2.25)
    assert capsys.readouterr().err == ""
    say_when_dry({**record, "boost": 1.0}, 1.5)
    assert "generation 7 proposals bring something new again" in capsys.readouterr().err


def test_the_course_in_words():
    first = {"generation": 0, "genomes": 1.0, "masks": 1.0, "entropy": 0.9, "spread": 0.3, "proposed": 4, "known": 0}
    last = {"generation": 1, "genomes": 0.5, "masks": 0.25, "entropy": 0.1, "spread": 0.02, "proposed": 20, "known": 15}
    words = course_in_words([{**first, "boost": 1.0}, {**last, "boost": 1.5}])
    assert "different masks 25% (100%)" in words
    assert "15 of 24 proposals were known already, and varied more after 1 generation, first 2." in words
