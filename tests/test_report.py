"""The page: self-contained, escaped, in order, with anchors that resolve, tables and figures that can be read aloud."""

import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
import xarray as xr
from matplotlib.figure import Figure
from report_trees import report_groups, report_tree
from trees import all_groups

from pyrovae.reporting.report import render_report, write_report
from pyrovae.reporting.report_links import Place, linked
from pyrovae.reporting.svg import inline_svg, page_style
from pyrovae.results import build_tree
from pyrovae.results.advice import advice
from pyrovae.results.headline import headline
from pyrovae.results.summary import summary
from pyrovae.results.verdicts import verdict_sentences

HOSTILE = "<script>alert(1)</script>\"'$x_1$</style>"


class Page(HTMLParser):
    """All tags with their attributes, and the text outside of styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag == name]

    @property
    def ids(self) -> Counter[str | None]:
        return Counter(attrs["id"] for _, attrs in self.tags if "id" in attrs)


@pytest.fixture(scope="module")
def text() -> str:
    return render_report(report_tree())


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def outside(page: Page) -> list[str]:
    """Everything on a page that would leave it or run."""
    found = [
        tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "embed", "base", "form")
    ]
    for _, attrs in page.tags:
        found += [name for name in attrs if name.startswith("on") or name in ("src", "srcset", "action")]
        links = [attrs[name] or "" for name in ("href", "xlink:href") if name in attrs]
        found += [link for link in links if not link.startswith(("#", "data:image/png;base64,"))]
    return found


def test_the_page_loads_nothing_and_runs_nothing(text: str, page: Page) -> None:
    assert not outside(page)
    assert not re.search(r"@import|url\((?!#)", text)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_the_check_sees_what_leaves_a_page() -> None:
    """Planted: a script, a handler, and a picture from elsewhere."""
    bad = '<script>1</script><p onclick="x">a</p><a href="https://a.example">b</a><img src="b.png">'
    assert sorted(outside(Page(bad))) == ["https://a.example", "onclick", "script", "src"]


def counted(page: Page) -> Counter[str]:
    """Tags but for those that the layout of a figure makes more or fewer of."""
    return Counter(tag for tag, _ in page.tags if tag not in ("g", "text", "tspan", "use", "path", "defs"))


@pytest.mark.slow
def test_what_people_named_is_text(page: Page) -> None:
    hostile = Page(render_report(report_tree(HOSTILE)))
    assert not outside(hostile)
    assert counted(hostile) == counted(page)
    for place in ("/data/", "no ", "left out ", "R-hat of "):  # attribute, stage, note, reason
        assert place + HOSTILE in hostile.text
    assert f"{HOSTILE}[0]" in hostile.text  # a latent site, in sentences and in figures


def test_every_id_is_there_once_and_every_link_has_its_end(page: Page) -> None:
    assert page.ids.most_common(1)[0][1] == 1
    ends = [attrs["href"][1:] for attrs in page.all("a") if attrs["href"]]
    ends += [link[1:] for _, attrs in page.tags if (link := attrs.get("xlink:href") or "").startswith("#")]
    ends += re.findall(r"url\(#([^)]*)\)", " ".join(str(a) for _, a in page.tags))
    named = [a[key] or "" for _, a in page.tags for key in ("aria-labelledby",) if key in a]
    ends += " ".join(named).split()
    assert len(ends) > 100
    assert not {end for end in ends if end not in page.ids}


def test_figures_with_one_prefix_would_share_ids() -> None:
    """Planted: what the prefix is for."""
    with page_style():
        same, other = (Page(inline_svg(Figure(), "a", "") + inline_svg(Figure(), b, "")) for b in ("a", "b"))
    assert same.ids["a-figure_1"] == 2
    assert set(other.ids.values()) == {1}


def test_the_numbers_and_the_sentences_are_those_of_the_library(page: Page) -> None:
    tree = report_tree()
    assert headline(tree) in page.text
    for sentence in [*verdict_sentences(tree), *advice(tree)]:
        assert " ".join(sentence.split()) in page.text
    few = [quantity for quantity in summary(tree).index if not re.search(r"(draws|temperatures)$", quantity)]
    assert len(few) > 15
    assert all(quantity in page.text for quantity in few)


def test_sections_come_in_order_and_headings_do_not_skip(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    sections = [attrs["id"] for attrs in page.all("h2")]
    assert sections[:5] == ["numbers", "findings", "advice", "evidence", "figures"]
    assert sections[5:] == ["refused", "missing", "settings", "reproduce"]


def test_tables_and_figures_can_be_read_aloud(page: Page) -> None:
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.all("th"))
    assert len(page.all("table")) == len(page.all("caption"))
    svgs = page.all("svg")
    assert len(page.all("figure")) == len(page.all("figcaption")) == 8
    assert len(svgs) == 2 * 8  # each laid out for narrow screens too
    assert all(
        row.get("role") == "row" for row in page.all("tr")
    )  # which a table laid out in lines would lose
    assert all(attrs["role"] == "img" and len(attrs["aria-label"] or "") > 40 for attrs in svgs)
    assert all("viewbox" in attrs and "width" not in attrs for attrs in svgs)


def test_each_figure_is_well_formed_and_follows_the_page(text: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    for figure in figures:
        ElementTree.fromstring(figure)
        assert not re.search(r"(fill|stroke): #(000000|ffffff)", figure)
        assert "<style" not in figure
    assert "<text" in "".join(figures)


def test_refusals_and_what_was_not_measured_are_told_with_their_reasons(page: Page) -> None:
    assert "reference posterior no verdict R-hat of z above 1.01 2 0–1" in page.text
    assert "calibration on data simulated from the model (skipped: no z): pyrovae audit RUN" in page.text
    assert "bias, variance and cost of gradient estimators: pyrovae gradients RUN" in page.text


def test_a_figure_that_refuses_is_told() -> None:
    groups = report_groups()
    alone = groups["evidence"].isel(method=[0])
    tree = build_tree({"evidence": alone, "history": groups["history"]})
    assert (
        "No figure “Estimates of log p(x)”: the figure needs 'elbo' and another method"
        in Page(render_report(tree)).text
    )


def test_a_figure_that_fails_leaves_its_reason_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = report_groups()
    tree = build_tree({name: groups[name] for name in ("history", "gaps", "decomposition")})
    monkeypatch.setattr("pyrovae.reporting.report_figures.plot_gaps", _divide)
    text = Page(render_report(tree)).text
    reason = "No figure “Where the ELBO loses”: drawing it failed (ZeroDivisionError: by zero)."
    assert text.index("Figure 1.") < text.index(reason) < text.index("Figure 2. The ELBO is")
    assert "Figure 3." not in text


def _divide(_: object) -> None:
    raise ZeroDivisionError("by zero")


def test_sentences_and_advice_link_to_the_rows_of_their_numbers(text: str) -> None:
    rows = dict(re.findall(r'id="(number-\d+)".*?</th><td[^>]*>(.*?)</td>', text))
    said = re.findall(r"<li>(.*?)</li>", text)
    linked = [
        (sentence, rows[row]) for sentence in said for row in re.findall(r'href="#(number-\d+)"', sentence)
    ]
    assert len(linked) > 8
    assert all(value in sentence for sentence, value in linked)
    width = next(sentence for sentence in said if sentence.startswith("The guide is too narrow"))
    assert re.search(
        r'href="#number-\d+">row \d+</a>, <a class="source" href="#figure-draws">figure \d</a>', width
    )
    advised = text[text.index('class="advice"') :]
    assert "number-" in advised[: advised.index("</ul>")]


def test_a_number_is_known_as_a_whole() -> None:
    """Planted: the same digits with others before or behind them."""
    numbers = {"0.8 ± 0.1": Place("number-1", "row 1")}
    for near in ("10.8 ± 0.1", "-0.8 ± 0.1", "0.8 ± 0.12"):
        assert linked(f"It is {near} nats.", "", numbers, []).places == [Place("numbers", "the numbers")]
    assert linked("It is 0.8 ± 0.1 nats.", "", numbers, []).places == [Place("number-1", "row 1")]


def test_what_made_the_numbers_is_told_only_where_it_is_known() -> None:
    assert "Which command made these numbers is not recorded." in Page(render_report(build_tree({}))).text
    known = build_tree({}, {"command": '{"command": "audit", "num_data": 16, "model": "ab", "seed": 3}'})
    assert "pyrovae audit RUN --num-data 16 --seed 3" in Page(render_report(known)).text


def test_the_same_tree_gives_the_same_page_and_it_is_small(text: str) -> None:
    groups = report_groups()
    some = build_tree({name: groups[name] for name in ("history", "gaps", "guide")})
    assert render_report(some) == render_report(some)
    assert len(text) < 1_500_000


@pytest.mark.parametrize("groups", [{}, {"history": all_groups()["history"]}])
def test_little_makes_a_page_too(groups: dict[str, xr.Dataset], tmp_path: Path) -> None:
    write_report(build_tree(groups), tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert "How good the inference is was not measured." in page.text
    assert "No advice: nothing was measured that it could rest on." in page.text


def test_a_failure_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr("pyrovae.reporting.report.os.replace", _fail)
    with pytest.raises(OSError, match="full"):
        write_report(build_tree({}), path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(ValueError, match=r"written as \.html, got 'report\.pdf'"):
        write_report(build_tree({}), tmp_path / "report.pdf")


def _fail(*_: object) -> None:
    raise OSError("the disk is full")
