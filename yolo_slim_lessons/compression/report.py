"""The report on a compression: what was done, what it cost, what came out, as one page of HTML and one of Markdown.

The HTML page is a single file with its pictures inside, to be mailed or printed; the Markdown page has them in a folder
beside it. Used in lesson 10. Leaves out: what the results mean, which the author writes.
"""

import base64
import datetime
import html
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import mistune
import yaml

from yolo_slim_lessons.compression.results import Compression
from yolo_slim_lessons.files import write_atomically
from yolo_slim_lessons.measurement import Scorecard

PACKAGES = ("torch", "ultralytics", "onnxruntime", "numpy")
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:52em;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}th,td{border:1px solid #bbb;padding:.25em .6em}"
    "th{background:#eee;text-align:left}img{max-width:100%}pre{background:#f4f4f4;padding:.6em;overflow-x:auto}"
    "td code{overflow-wrap:anywhere}"
)


def write_report(
    folder: str | Path,
    result: Compression,
    *,
    title: str,
    card: str,
    introduction: str = "",
    scorecards: Mapping[str, Scorecard] | None = None,
    tables: Mapping[str, Sequence[Sequence[object]]] | None = None,
    figures: Mapping[str, bytes] | None = None,
    test_looks: int | None = None,
    notes: Iterable[str] = (),
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md`` into ``folder``, and the pictures of the latter into ``folder/figures``.

    Args:
        folder: made if need be; files of an earlier report are replaced.
        result: from ``compress``.
        title: of the page; as in the other plain texts, no character is taken for Markdown or HTML.
        card: from ``model_card``, as Markdown; it also lists the files made.
        introduction: what it is about; an empty line begins a new paragraph.
        scorecards: name → scorecard, side by side, such as before and after.
        tables: title → rows; the first row is the head.
        figures: what it shows, in a sentence → PNG; the sentence stands below, and for readers who do not see it.
        test_looks: how often test images were looked at before the end; ``None`` if nobody has counted.
        notes: one sentence each.

    Returns:
        The paths of both pages: HTML, Markdown.

    Raises:
        ValueError: ``title`` or ``card`` is empty, a table has no row, or a figure is no PNG.
    """
    for name, text in {"title": title, "card": card}.items():
        if not text.strip():
            raise ValueError(f"{name}={text!r}: expected a text")
    for name, rows in (tables or {}).items():
        if len(rows) == 0:
            raise ValueError(f"tables: {name!r} has no row: expected at least a head")
    for sentence, picture in (figures or {}).items():
        if not bytes(picture).startswith(b"\x89PNG"):
            raise ValueError(f"figures: {sentence!r} is no PNG: expected its bytes, such as plots.png(figure) returns")
    folder = Path(folder)
    pictures = {f"figures/{number}.png": picture for number, picture in enumerate((figures or {}).values(), start=1)}
    sections = {
        "": [*map(_plain, introduction.split("\n\n")), _circumstances()],
        "What was asked": [_plain(str(target)) for target in result.targets],
        "Stages": [
            _table([result.head(), *result.rows()]),
            "*Times smaller*: than the weights of the first model at 4 bytes each. Accuracies are on val, by which all "
            "was chosen.",
        ],
        "Before and after": _side_by_side(scorecards or {}),
        **{name: [_table(rows)] for name, rows in (tables or {}).items()},
        "Figures": [
            f"![{_plain(sentence)}]({name})\n\n*{_plain(sentence)}*"
            for name, sentence in zip(pictures, figures or {}, strict=True)
        ],
        "How honest the numbers are": [_looks_at_test(test_looks), *map(_plain, notes)],
        "Model card": [re.sub(r"^(#+ )", r"##\1", card.strip(), flags=re.MULTILINE)],
        "Recipe": ["```yaml\n" + yaml.safe_dump(dict(result.recipe), sort_keys=False, allow_unicode=True) + "```"],
    }
    text = _page(title, sections)
    for name, picture in pictures.items():
        write_atomically(folder / name, lambda file, picture=picture: file.write_bytes(picture))
    markdown, page = folder / "report.md", folder / "report.html"
    write_atomically(markdown, lambda file: file.write_text(text, encoding="utf-8"))
    write_atomically(page, lambda file: file.write_text(_as_html(title, text, pictures), encoding="utf-8"))
    return page, markdown


def _page(title: str, sections: Mapping[str, Sequence[str]]) -> str:
    lines = [f"# {_plain(title)}"]
    for name, paragraphs in sections.items():
        if paragraphs := [paragraph for paragraph in paragraphs if paragraph.strip()]:
            lines += [f"## {_plain(name)}"] if name else []
            lines += paragraphs
    return "\n\n".join(lines) + "\n"


def _as_html(title: str, text: str, pictures: Mapping[str, bytes]) -> str:
    body = mistune.create_markdown(escape=True, plugins=["table"])(text)
    for name, picture in pictures.items():
        body = body.replace(f'src="{name}"', f'src="data:image/png;base64,{base64.b64encode(picture).decode()}"')
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n{body}</body>\n</html>\n"
    )


def _plain(text: str) -> str:
    """``text`` as Markdown that shows just these characters, in one line."""
    line = re.sub(r"([\\`*_{}\[\]<>|~&])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^(\d*)([#+=.)-]+)(?=\s|$)", r"\1\\\2", line)  # would begin a heading or a list


def _table(rows: Sequence[Sequence[object]]) -> str:
    head, *body = ["| " + " | ".join(_plain(str(cell)) for cell in row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def _side_by_side(scorecards: Mapping[str, Scorecard]) -> list[str]:
    columns = [dict(scorecard.rows()) for scorecard in scorecards.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, *(column.get(name, "") for column in columns)) for name in names]
    return [_table([("", *scorecards), *rows])] if rows else []


def _looks_at_test(count: int | None) -> str:
    if count is None:
        return "Nobody has counted how often test images were looked at before the end."
    times = {0: "not looked at", 1: "looked at once"}.get(count, f"looked at {count:,} times")
    bias = " What was chosen in between may suit them better than it will suit new images." if count else ""
    return f"Test images were {times} before the end.{bias}"


def _circumstances() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"Written on {datetime.date.today():%d %B %Y}, with Python {platform.python_version()}, {_plain(versions)}."
