"""`blend compare`: what it measures, what it says, and that the picture shows it."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from blend import problem
from blend.cli import run
from blend.comparison.compare import RANDOM_MASKS, Judged, _beats_random, compare
from blend.comparison.page import save_comparison
from blend.comparison.text import answer, print_comparison
from blend.config import search_config
from blend.evaluation import Judge, Settings

TASK = f"{Path(__file__).parents[1] / 'task_file.py'}:small"
CRITERIA = ("l1", "l2", "taylor_fo", "apoz", "random")


@pytest.fixture(scope="module")
def config():
    return search_config(task=TASK, criteria=CRITERIA, reduction=0.6, allocation="uniform")


@pytest.fixture(scope="module")
def report(config):
    return json.loads(json.dumps(compare(config)))  # what --json prints


def made(names, rho, *, heldout=None, same=()):
    """A report as if these correlations had been found; by default each criterion keeps less than the one before."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    heldout = heldout or [0.8 - 0.1 * i for i in range(len(names))]
    distance = 1 - np.array(rho, dtype=float)
    best = max(heldout)
    return {
        "task": "made", "reduction": 0.5, "cost": "macs", "allocation": "uniform", "transform": "none",
        "compensate": "none", "heldout_examples": 100, "criteria": list(names),
        "order": list(names), "mean_spearman": rho, "mean_tail_overlap": rho, "tail_share": 0.3, "groups": {},
        "notes": [], "linkage": linkage(squareform(distance), "average").tolist() if len(names) > 1 else [],
        "unpruned": {"heldout_metric": 0.9, "loss": 0.1, "reduction": 0.0},
        "random": {"heldout_metric": 0.2, "loss": 2.0, "reduction": 0.5},
        "results": [
            {"name": name, "seconds": 10.0**-i, "heldout_metric": value, "loss": 1.0, "reduction": 0.5,
             "behind_best": best - value, "ci95": [best - value - 0.05, best - value + 0.05], "note": ""}
            for i, (name, value) in enumerate(zip(names, heldout, strict=True))
        ],
        "same": [{"criteria": list(one), "lowest_rho": 0.876, "lowest_tail_overlap": 0.7} for one in same],
        "recommended": {"best": names[0], "not_told_apart": [], "cheapest": names[0], "beats_random": True},
    }  # fmt: skip


def test_every_criterion_has_its_cost_and_its_accuracy(report):
    assert [row["name"] for row in report["results"]] == list(CRITERIA)
    for row in report["results"]:
        assert row["seconds"] > 0
        assert 0.6 <= row["reduction"] < 0.75
        assert row["ci95"][0] <= row["behind_best"] <= row["ci95"][1]
    best = max(report["results"], key=lambda row: row["heldout_metric"])
    assert report["recommended"]["best"] == best["name"]
    assert best["behind_best"] == 0
    assert report["unpruned"]["reduction"] == 0
    assert report["unpruned"]["heldout_metric"] > report["random"]["heldout_metric"]


def test_the_accuracy_is_that_of_the_uniformly_pruned_recalibrated_network(config, report):
    prepared = problem.prepare(config)
    baseline = next(b for b in prepared.baselines if (b.name, b.allocation) == ("taylor_fo", "uniform"))
    task = prepared.task
    calibration = prepared.splits.calibration.inputs
    judge = Judge(task.model, prepared.graph, task.loss, task.metric, calibration, Settings())
    expected = judge.judge(baseline.masks[0], prepared.splits.heldout)
    row = next(row for row in report["results"] if row["name"] == "taylor_fo")
    assert row["heldout_metric"] == expected["metric"]
    assert row["loss"] == expected["loss"]
    assert row["reduction"] == expected["reduction"]


def test_scoring_separately_gives_the_very_same_table(config):
    together, apart = problem.prepare(config), problem.prepare(config, separately=True)
    assert together.table.to_dict() == apart.table.to_dict()
    assert set(apart.seconds) == set(CRITERIA)
    assert together.seconds == {}


def test_tails_are_those_of_the_channels_that_really_go(config, report):
    prepared = problem.prepare(config)
    masks = [m for b in prepared.baselines if b.allocation == "uniform" and b.kind != "uniform_blend" for m in b.masks]
    assert report["tail_share"] == pytest.approx(np.mean([np.mean(~mask) for mask in masks]))
    overlap = np.array(report["mean_tail_overlap"])
    assert np.allclose(np.diag(overlap), 1)
    assert np.allclose(overlap, overlap.T)
    tails = [np.array(group["tail_overlap"])[0, 1] for group in report["groups"].values()]
    assert overlap[0, 1] == pytest.approx(np.mean(tails))


def test_the_order_is_a_permutation_that_keeps_the_same_together(report):
    assert sorted(report["order"]) == sorted(CRITERIA)
    assert ["l1", "l2"] in [one["criteria"] for one in report["same"]]
    assert abs(report["order"].index("l1") - report["order"].index("l2")) == 1
    assert all(one["lowest_rho"] > 0.5 for one in report["same"])


def test_a_criterion_that_cannot_reach_the_reduction_has_no_numbers(tmp_path):
    source = (Path(__file__).parents[1] / "task_file.py").read_text()
    (tmp_path / "task.py").write_text(source.replace("nn.BatchNorm2d(16)", "nn.Identity()"))
    task = f"{tmp_path / 'task.py'}:small"
    config = search_config(task=task, criteria=("l1", "bn_scale"), reduction=0.85, allocation="uniform")
    report = compare(config)
    row = report["results"][1]
    assert (row["heldout_metric"], row["ci95"]) == (None, None)
    assert row["note"] == "cannot rank enough groups to reach the reduction"
    save_comparison(report, tmp_path / "it.svg")
    print_comparison(report)


def test_the_answer_names_the_best_and_the_same():
    rho = [[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]]
    use, same = answer(made(("a", "b", "c"), rho, same=[("a", "b")]))
    assert use == (
        "Use a on this network for 50% fewer MACs (0.800 held-out after recalibration, unpruned 0.900, "
        "random masks 0.200)."
    )
    assert same == "The same, so that one of each is enough: a and b (ρ ≥ 0.87). c says something of its own."


def test_the_answer_names_what_cannot_be_told_apart_and_the_cheapest():
    report = made(("a", "b", "c"), np.eye(3).tolist())
    report["recommended"] |= {"not_told_apart": ["b", "c"], "cheapest": "c"}
    use, same = answer(report)
    assert use.endswith("; 100 examples cannot tell it from b and c, of which c is the cheapest (0.01 s).")
    assert same == "No two of them are the same: none agree on the ranks at ρ ≥ 0.8."


def test_the_answer_is_plain_where_nothing_helps():
    report = made(("a", "b"), np.eye(2).tolist())
    report["recommended"]["beats_random"] = False
    assert next(answer(report)).startswith("None of them helps here: not even the best, a, beats random masks")
    report["recommended"] = None
    for row in report["results"]:
        row["note"] = "cannot rank enough groups"
    assert next(answer(report)) == "No criterion can be pruned by here: cannot rank enough groups."


def test_the_answer_says_how_the_reduction_was_spread():
    report = made(("a", "b"), np.eye(2).tolist()) | {"allocation": "global"}
    assert next(answer(report)).startswith("Use a on this network for 50% fewer MACs, one ranking over all layers (")
    report["transform"] = "balanced"
    assert "fewer MACs, one ranking of balanced scores over all layers (0.800 held-out" in next(answer(report))


def test_the_terminal_output_ends_with_the_answer(capsys, report):
    print_comparison(report)
    err = capsys.readouterr().err
    assert err.strip().splitlines()[-2:] == list(answer(report))
    for words in ("clusters of each group", "above the diagonal", "behind the best", "random masks (mean)", "unpruned"):
        assert words in err


def test_the_command_prints_json_and_draws(capsys, tmp_path):
    figure = tmp_path / "compare.svg"
    command = ["compare", TASK, "--criteria", "l1,l2,apoz", "--json", "--figure", str(figure)]
    assert run(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["reduction"] == 0.5
    root = ElementTree.fromstring(figure.read_text())
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"l1", "l2", "apoz", "unpruned", "random masks"} <= texts
    shown = next(row for row in report["results"] if row["name"] == "apoz")
    assert f"{shown['heldout_metric']:.3f}" in texts


def test_the_figure_shows_metrics_below_zero(tmp_path):
    report = made(("l1", "apoz"), [[1.0, 0.1], [0.1, 1.0]], heldout=[-0.125, -0.5])
    report["unpruned"]["heldout_metric"], report["random"]["heldout_metric"] = -0.1, -0.75
    save_comparison(report, tmp_path / "it.svg")
    root = ElementTree.parse(tmp_path / "it.svg")
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"-0.125", "-0.500", "unpruned", "random masks"} <= texts


@pytest.mark.parametrize("one", ["[160:161]", "[160:161].repeat_interleave(3, 0)"])
def test_a_single_held_out_example_is_no_ground_to_compare_on(capsys, tmp_path, one):
    source, draws = Path(TASK.partition(":")[0]).read_text(), 3 if "interleave" in one else 1
    one = f"heldout=(inputs{one}, targets{one}), heldout_draws={draws}"
    (tmp_path / "one.py").write_text(source.replace("heldout=splits[1]", one))
    assert run(["compare", f"{tmp_path / 'one.py'}:small", "--criteria", "l1,l2", "--json"]) == 2
    out, err = capsys.readouterr()
    assert (out, "heldout must have at least 2 examples" in err) == ("", True)


@pytest.mark.parametrize(
    ("figure", "complaint"),
    [
        ("it.jpg", "figure must end in .html, .png, .svg, .pdf, got"),
        ("nowhere/it.html", "must lie in an existing folder"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused_first(capsys, tmp_path, figure, complaint):
    assert run(["compare", "textures", "--figure", str(tmp_path / figure)]) == 2
    assert complaint in capsys.readouterr().err


def test_the_same_report_draws_the_same_bytes(report, tmp_path):
    for name in ("one.svg", "two.svg"):
        save_comparison(report, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@pytest.mark.parametrize("count", [1, 2, 32])
def test_any_number_of_criteria_fits(tmp_path, count):
    names = [f"criterion_{i}" for i in range(count)]
    save_comparison(made(names, np.eye(count).tolist(), heldout=[0.5] * count), tmp_path / "it.png")
    width, height = Image.open(tmp_path / "it.png").size
    assert 1000 < width < 6000
    assert 400 < height < 3000


def drawn(rng, contenders, better=0.0, examples=300):
    """The best of some masks that are drawn like the random ones, by a network that does better or worse by mask."""

    def accuracy(count):
        return np.clip(rng.normal(0.6, 0.04, count), 0, 1)

    def values(share):
        return (rng.random(examples) < share).astype(float)

    random = [values(share) for share in accuracy(RANDOM_MASKS)]
    best = max((values(share + better) for share in accuracy(contenders)), key=np.mean)
    spread = float(np.std([some.mean() for some in random], ddof=1))
    return Judged(best, 0.0, 0.5), Judged(np.mean(random, axis=0), 0.0, 0.5, spread)


@pytest.mark.parametrize("contenders", [1, 12])
def test_the_best_of_many_coins_is_hardly_ever_better_than_chance(contenders):
    rng = np.random.default_rng(0)
    assert np.mean([_beats_random(*drawn(rng, contenders), contenders) for _ in range(500)]) < 0.05
    assert np.mean([_beats_random(*drawn(rng, contenders, better=0.25), contenders) for _ in range(500)]) > 0.9


def test_examples_that_are_there_twice_count_once(config, tmp_path):
    source = Path(TASK.partition(":")[0]).read_text()
    twice = "heldout=(splits[1][0].repeat(2, 1, 1, 1), splits[1][1].repeat(2)), heldout_draws=2"
    (tmp_path / "twice.py").write_text(source.replace("heldout=splits[1]", twice))
    once, again = (
        compare(config.model_copy(update={"task": task, "criteria": ("l1", "apoz")}))
        for task in (TASK, f"{tmp_path / 'twice.py'}:small")
    )
    assert once["heldout_examples"] == again["heldout_examples"] == 160
    for row, other in zip(once["results"], again["results"], strict=True):
        assert row["ci95"] == pytest.approx(other["ci95"])


def test_a_range_of_reductions_is_refused(capsys):
    assert run(["compare", TASK, "--reduction", "0.3:0.7"]) == 2
    assert capsys.readouterr().err == "error: reduction must be a number in (0, 1), got '0.3:0.7'\n"
