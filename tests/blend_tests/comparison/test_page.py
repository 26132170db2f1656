"""The page of a comparison, read as a browser would: it holds all, is whole, and asks for nothing else."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from blend.cli import run
from blend.comparison.compare import compare
from blend.comparison.page import page, save_comparison
from blend.config import search_config
from blend.errors import InputError

from .test_compare import TASK, made

VOID = {"meta", "br", "hr", "img", "link", "input"}
CRITERIA = ("l1", "l2", "taylor_fo", "apoz", "random")


class Reader(HTMLParser):
    """Every element as (tag, attributes, text of its own), the tree checked on the way."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {[tag for tag, *_ in self.open]}"

    def handle_starttag(self, tag, attributes):
        element = (tag, dict(attributes), [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.open[-1][2].append(data)

    def texts(self, tag):
        return ["".join(text).strip() for name, _, text in self.elements if name == tag]


@pytest.fixture(scope="module")
def report():
    config = search_config(task=TASK, criteria=CRITERIA, reduction=0.6, allocation="uniform")
    return json.loads(json.dumps(compare(config)))


@pytest.fixture(scope="module")
def read(report):
    return Reader(page(report))


def test_it_asks_for_nothing_else(report, read):
    for tag, attributes, text in read.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "img", "base"}
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}:
                assert value.startswith(("#", "data:")), f"<{tag} {name}={value[:60]}>"
            assert not name.startswith("on")
        if tag == "style":
            assert "url(" not in "".join(text)
            assert "@import" not in "".join(text)
    assert "http:" not in page(report)
    assert "https:" not in page(report)


def test_the_picture_is_in_it_with_all_five_panels(report, read):
    (svg,) = [attributes for tag, attributes, _ in read.elements if tag == "svg"]
    assert svg["role"] == "img"
    texts = read.texts("text")
    assert set(CRITERIA) <= set(texts)
    for words in ("rank agreement", "overlap of the pruned", "held-out metric", "time to score", "branches join"):
        assert any(words in text for text in texts), words
    ids = [attributes["id"] for _, attributes, _ in read.elements if "id" in attributes]
    assert {"figure", "results", "groups"} <= set(ids)


def test_accuracy_and_cost_of_every_criterion_stand_in_a_table(report, read):
    cells = read.texts("td")
    for row in report["results"]:
        at = cells.index(row["name"])
        assert cells[at + 1] == f"{row['heldout_metric']:.3f}"
        assert cells[at + 4 : at + 7] == [f"{row[key]:.3f}" for key in ("loss", "reduction", "seconds")]
    for label, key in (("random masks (mean)", "random"), ("unpruned", "unpruned")):
        assert cells[cells.index(label) + 1] == f"{report[key]['heldout_metric']:.3f}"


def test_every_group_has_its_matrices_and_clusters(report):
    for name, group in report["groups"].items():
        alone = Reader(page(report | {"groups": {name: group}}))
        (summary,) = (i for i, (tag, *_) in enumerate(alone.elements) if tag == "summary")
        words = "".join(alone.elements[summary][2]) + "".join(alone.elements[summary + 1][2])
        assert name in words
        for cluster in group["clusters"]:
            assert ", ".join(cluster["criteria"]) in words
        order = [criterion for cluster in group["clusters"] for criterion in cluster["criteria"]]
        assert sorted(order) == sorted(group["criteria"])
        where = [group["criteria"].index(criterion) for criterion in order]
        for letter, key in (("r", "spearman"), ("o", "tail_overlap")):
            shown = [
                "".join(text)
                for tag, attributes, text in alone.elements
                if tag == "td" and attributes.get("class", "").startswith(letter)
            ]
            matrix = np.array(group[key])[np.ix_(where, where)]
            assert shown == [f"{value:.2f}" for value in matrix.ravel()]


def test_cells_have_the_colour_of_their_value(report, read):
    style = read.texts("style")[0]  # the other one is the picture's
    classes = {
        (attributes["class"], float("".join(text)))
        for tag, attributes, text in read.elements
        if tag == "td" and attributes.get("class", "")[:1] in ("r", "o")
    }
    assert {name for name, value in classes if value == 1.0} == {"r20", "o20"}
    assert all(f".{name} {{ background: #" in style for name, _ in classes)
    for name, value in classes:
        low = -1 if name[0] == "r" else 0
        assert abs(int(name[1:]) - (value - low) / (1 - low) * 20) <= 0.6


def test_names_are_text_whatever_they_hold():
    wicked = made(("<b>a</b>", "x&y"), np.eye(2).tolist())
    wicked["task"] = "</title><script>alert(1)</script>"
    wicked["notes"] = [{"criterion": "<i>", "group": "<img src=x>", "reason": "</li>"}]
    read = Reader(page(wicked))
    assert not {"script", "img", "i"} & {tag for tag, *_ in read.elements}
    assert "<b>a</b>" in read.texts("td")
    assert "<i> in <img src=x>: </li>" in read.texts("li")


def test_what_could_not_be_pruned_by_is_in_the_table_with_its_reason():
    found = made(("a", "b"), np.eye(2).tolist())
    found["results"][1] |= dict.fromkeys(("heldout_metric", "loss", "reduction", "behind_best", "ci95"))
    found["results"][1]["note"] = "cannot rank enough groups"
    cells = Reader(page(found)).texts("td")
    at = cells.index("b")
    assert cells[at : at + 8] == ["b", *"–––––", "0.100", "cannot rank enough groups"]


def test_a_group_that_nothing_can_rank_says_so():
    found = made(("a", "b"), np.eye(2).tolist())
    found["groups"] = {"g": {"criteria": [], "spearman": [], "tail_overlap": [], "clusters": []}}
    assert "No criterion can rank it." in Reader(page(found)).texts("p")


def test_the_command_writes_it(capsys, tmp_path):
    file = tmp_path / "it.html"
    assert run(["compare", TASK, "--criteria", "l1,apoz", "--json", "--figure", str(file)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["groups"]) == 2
    for group in printed["groups"].values():
        size = len(group["criteria"])
        assert np.array(group["spearman"]).shape == np.array(group["tail_overlap"]).shape == (size, size)
        assert np.allclose(np.diag(group["spearman"]), 1)
    assert len([tag for tag, *_ in Reader(file.read_text()).elements if tag == "details"]) == 2


def test_the_same_report_gives_the_same_bytes(report):
    assert page(report) == page(report)


def test_a_page_that_cannot_be_written_is_an_error(report, tmp_path):
    (tmp_path / "it.html").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        save_comparison(report, tmp_path / "it.html")
