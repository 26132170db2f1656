"""How far a run is that is not finished, in the table of runs and in words."""

import pytest

from blend.config import search_config
from blend.report import print_result, runs_table, summary
from blend.runs import Run


@pytest.mark.parametrize(
    ("limits", "generations"),
    [
        ({"evaluations": 40}, 10),
        ({"generations": 7}, 7),
        ({"generations": 1000, "evaluations": 40}, 10),
        ({"time": "1h"}, None),
        ({"time": "1h", "evaluations": 40}, 10),
        ({"time": "1h", "generations": 7}, 7),
    ],
)
def test_of_how_many_generations(tmp_path, capsys, limits, generations):
    run = Run.create(tmp_path / "it", search_config(task="digits", population=4, **limits))
    about = summary(run)
    assert about["generations"] == generations
    assert list(runs_table([about]).columns[4].cells) == [f"0/{generations or '?'}"]
    print_result(run)
    assert f"Generation 0{f' of {generations}' if generations else ''}, 0 evaluations" in capsys.readouterr().err
