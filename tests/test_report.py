"""The report says what was measured, on a page that any browser reads, whatever characters its texts hold."""

import base64
import dataclasses
import re
from html.parser import HTMLParser
from importlib.metadata import version

import pytest
import yaml

import yolo_slim_lessons as slim
from yolo_slim_lessons.compression import Target
from yolo_slim_lessons.compression.report import write_report
from yolo_slim_lessons.teaching import plots

VOID = {"meta", "img", "br", "hr", "link"}
NASTY = 'Zellen & Größen <script>alert("1")</script> *太陽電池* | `x` [a](b) #1'


class Page(HTMLParser):
    """Text, pictures and tables of a page; complains about tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.images, self.rows, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def few(data):
    return dataclasses.replace(data.take(train=40, val=40), test=data.test.take(40))


@pytest.fixture(scope="module")
def result(nano, few):
    stages = [{"prune_channels": {"prune_rate": 0.5}}, {"quantize_integer": {"bits": 4}}]
    made = slim.compress(nano, few, {"seed": 3, "stages": stages}, progress=False)
    return dataclasses.replace(made, targets=(Target("target_bytes", 1_000, made.stages[-1].packed_bytes),))


@pytest.fixture
def picture():
    figure, axes = plots.new_figure(size=(1, 1))
    axes.plot([0, 1])
    return plots.png(figure)


def read(pages):
    html, markdown = (path.read_text(encoding="utf-8") for path in pages)
    return Page(html), html, markdown


def test_stages_and_targets_are_those_of_the_result(result, tmp_path):
    pages = write_report(tmp_path / "new" / "folder", result, title="Report", card="# Card\n\n## Limits\n\nMany.")
    page, html, markdown = read(pages)
    assert [path.name for path in pages] == ["report.html", "report.md"]
    assert page.rows[: len(result.rows()) + 1] == [list(result.head()), *map(list, result.rows())]
    last = result.stages[-1]
    assert f"target_bytes NOT met: {last.packed_bytes:,}, allowed 1,000" in page.text
    assert f"{slim.packed_sizes(last.model).file:,}" in page.rows[3]
    assert html.startswith("<!DOCTYPE html>")
    assert 'charset="utf-8"' in html
    assert f"torch {version('torch')}" in page.text
    assert yaml.safe_load(re.search("```yaml\n(.*?)```", markdown, re.DOTALL).group(1)) == result.recipe
    assert "### Card" in markdown  # below "## Model card"
    assert "#### Limits" in markdown
    assert page.tags.count("h1") == 1


def test_html_needs_no_other_file_and_markdown_has_its_pictures_beside_it(result, tmp_path, picture):
    pages = write_report(tmp_path, result, title="Report", card="Card.", figures={"A line | that rises": picture})
    page, html, markdown = read(pages)
    assert [image["alt"] for image in page.images] == ["A line | that rises"]
    kind, content = page.images[0]["src"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == picture
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    ((name),) = re.findall(r"\]\((.*?)\)", markdown)
    assert (tmp_path / name).read_bytes() == picture


def test_any_text_is_shown_as_it_is(result, tmp_path, picture):
    pages = write_report(
        tmp_path / "отчёт 報告",
        result,
        title=NASTY,
        card="Card.",
        introduction=f"{NASTY}\n\n1. no list\n\n# no heading",
        tables={NASTY: [(NASTY, "b"), ("-0.5", NASTY)]},
        figures={NASTY: picture},
        notes=[NASTY, "- no item", "12. no item", "==="],
    )
    page, html, _ = read(pages)
    assert "<script" not in html
    assert page.text.count(NASTY) == 8  # title and h1, introduction, h2, two cells, below the figure, note
    assert page.images[0]["alt"] == NASTY
    assert [NASTY, "b"] in page.rows
    assert ["-0.5", NASTY] in page.rows
    for text in ("1. no list", "# no heading", "- no item", "12. no item", "==="):
        assert text in page.text
    assert not {"ol", "ul", "li", "strong"} & set(page.tags)
    assert page.tags.count("h1") == 1


def test_scorecards_stand_side_by_side(result, nano, few, tmp_path):
    before, after = slim.measure(nano, few.test, repeats=1), slim.measure(result.model, repeats=1)
    page, *_ = read(write_report(tmp_path, result, title="R", card="C", scorecards={"before": before, "after": after}))
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows[""] == ["before", "after"]
    assert rows["top-1"] == [dict(before.rows())["top-1"], ""]  # the second was given no images
    assert rows["weights at FP32"] == [f"{card.bytes / 1e6:.3f} MB" for card in (before, after)]


@pytest.mark.parametrize(
    ("looks", "words"),
    [
        (None, "Nobody has counted"),
        (0, "were not looked at before the end"),
        (1, "were looked at once before the end"),
        (12, "were looked at 12 times before the end"),
    ],
)
def test_says_how_often_test_images_were_looked_at(result, tmp_path, looks, words):
    page, *_ = read(write_report(tmp_path, result, title="R", card="C", test_looks=looks))
    assert words in page.text


def test_a_report_that_is_written_again_replaces_the_old_one(result, tmp_path):
    for title in ("First", "Second"):
        page, *_ = read(write_report(tmp_path, result, title=title, card="C"))
    assert "Second" in page.text
    assert "First" not in page.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("title", " ", "title=' '"),
        ("card", "", "card=''"),
        ("tables", {"empty": []}, "'empty' has no row"),
        ("figures", {"a photo": b"GIF89a"}, "'a photo' is no PNG"),
    ],
)
def test_what_cannot_be_reported_is_named(result, tmp_path, argument, value, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        write_report(tmp_path, result, **{"title": "R", "card": "C"} | {argument: value})
    assert list(tmp_path.iterdir()) == []
