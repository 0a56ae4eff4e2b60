"""Lessons without a kernel: converted to HTML they show every figure, and above every slider what it would show.

``jupyter nbconvert --to html --template classic`` is what the test does. (The default template of nbconvert 7 leaves
alternative texts out.) The page holds all figures itself. From the network it would take the typesetting of formulas,
and the sliders' look, which without a kernel cannot move anyway; without network formulas stay as they are written.
"""

import base64
import re

import nbconvert
import pytest
from bs4 import BeautifulSoup
from test_notebooks import NOTEBOOKS, calls, code_cells, read

EXPORTER = nbconvert.HTMLExporter(template_name="classic")
PICTURE = re.compile(r"data:image/png;base64,(.+)", re.DOTALL)


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def lesson(request):
    """(the notebook, its page)."""
    page, _ = EXPORTER.from_filename(str(request.param))
    return read(request.param), BeautifulSoup(page, "html.parser")


def test_every_figure_is_in_the_page_with_its_text(lesson):
    notebook, page = lesson
    figures = [
        output.metadata["image/png"]["alt"]
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    pictures = page.find_all("img")
    assert [picture["alt"] for picture in pictures] == figures
    for picture in pictures:
        assert base64.b64decode(PICTURE.fullmatch(picture["src"])[1]).startswith(b"\x89PNG")


def test_right_above_every_slider_stands_a_figure(lesson):
    """The nearest output above that is no plain text: a picture, or a drawing in HTML."""
    notebook, _ = lesson
    above = None
    for cell in code_cells(notebook):
        if calls(cell.source, "explore"):
            assert above is not None, f"no figure above:\n{cell.source}"
            assert "application/vnd.jupyter.widget-view+json" not in above, f"another slider above:\n{cell.source}"
        for output in cell.outputs:
            if {"image/png", "application/vnd.jupyter.widget-view+json"} & output.get("data", {}).keys():
                above = output.data


def test_what_is_drawn_by_html_is_in_the_page_itself(lesson):
    """No picture, style or frame of the page is fetched; scripts are, and the lesson is readable without them."""
    _, page = lesson
    for element in page.find_all(["img", "link", "iframe", "object", "video", "source"]):
        address = element.get("src") or element.get("href") or ""
        assert not re.match(r"(https?:)?//", address), element
    fetched = [script["src"] for script in page.find_all("script", src=True)]
    assert all("mathjax" in address or "require" in address or "jquery" in address for address in fetched), fetched
