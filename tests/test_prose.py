"""Truth check: no prose holds a measured number that nobody can trace.

Whatever looks like a measurement (27 %, 3 ms, 1.4 MB, 2 ×, half a point) must stand in ``prose_numbers.yaml`` with its
source. Measured numbers belong into the output of a cell, or into a table that a script writes, such as the README's.
"""

import importlib
import re
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
SOURCES = yaml.safe_load(Path(__file__).with_name("prose_numbers.yaml").read_text(encoding="utf-8"))
EVERYWHERE = SOURCES.pop("everywhere")
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
    *sorted((ROOT / "notebooks").glob("*.md")),
]

NUMBER = (
    r"(?:(?<![\w.,])\d[\d.,]*|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty"
    r"|(?:and )?a half|half an?|tenth of a|hundred|thousand))"
)
UNIT = (
    r"(?:%|‰|×(?!\s?(?:\d|[A-Z]\b))|(?:per ?cent|ms|µs|seconds?|minutes?|hours?|[kKMG]i?B|(?:kilo|mega)?bytes?|dB"
    r"|\w*watts?|\w*joules?|times|fold|points?|images a second|fps)\b)"
)
MEASUREMENT = re.compile(rf"{NUMBER}[\s-]*{UNIT}")
GENERATED = re.compile(r"<!-- results -->\n(.*)<!-- end of results -->", re.DOTALL)


def prose_of(path):
    """The text of a document as one line, without code and without what a script has written."""
    if path.suffix == ".ipynb":
        notebook = nbformat.read(path, as_version=4)
        text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    else:
        text = GENERATED.sub("", path.read_text(encoding="utf-8"))
    return " ".join(re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE).split())


def spans(phrase, text):
    return [match.span() for match in re.finditer(re.escape(phrase), text)]


@pytest.fixture(params=DOCUMENTS, ids=lambda path: path.stem)
def document(request):
    return request.param


def test_numbers_that_look_measured_have_a_source(document):
    text, sources = prose_of(document), EVERYWHERE | SOURCES.get(document.stem, {})
    allowed = [span for phrase in sources for span in spans(phrase, text)]
    unknown = [
        text[max(0, match.start() - 60) : match.end() + 30]
        for match in MEASUREMENT.finditer(text)
        if not any(start <= match.start() and match.end() <= end for start, end in allowed)
    ]
    assert unknown == [], "let a cell print these, or name their source in tests/prose_numbers.yaml"


def test_the_list_holds_nothing_that_no_document_says():
    texts = {document.stem: prose_of(document) for document in DOCUMENTS}
    assert SOURCES.keys() <= texts.keys()
    for name, sources in SOURCES.items():
        for phrase, source in sources.items():
            assert MEASUREMENT.search(phrase), f"{phrase!r} holds no number"
            assert spans(phrase, texts[name]), f"{name} does not say {phrase!r}"
            assert len(source) > 5, f"{phrase!r} has no source"


def test_the_readme_shows_what_the_result_files_hold(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    summary = importlib.import_module("summary")
    assert GENERATED.search((ROOT / "README.md").read_text(encoding="utf-8"))[1] == summary.section()


@pytest.mark.parametrize(
    "claim",
    [
        "it keeps 93.4 % of",
        "1.3ms a picture",
        "in 2 × less",
        "2.5× faster",
        "saves 1,024 bytes",
        "half a point",
        "four-fold",
    ],
)
def test_measurements_are_recognized(claim):
    assert MEASUREMENT.search(claim)


@pytest.mark.parametrize("text", ["3 × 3 windows", "1×1 convolution", "N×3×H×W", "8 bits", "2,000 images", "lesson 08"])
def test_other_numbers_are_let_through(text):
    assert not MEASUREMENT.search(text)
