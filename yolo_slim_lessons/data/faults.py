"""Why a file is no readable picture, told from its first and last bytes, and what to do about it.

Leaves out: whether it is readable, which only reading it shows (``pictures.py``).
"""

from __future__ import annotations

import codecs
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError, features

HEAD = 512  # bytes that are enough to know any kind
HEIF_PACKAGE, HEIF_READER = "pi-heif", "pi_heif"  # the one that Ultralytics uses, too
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}

# How the files of each kind begin; kinds of pictures first, whose readers are asked before anybody looks here.
STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"version https://git-lfs": "Git LFS",
    b"/annex/objects/": "git-annex",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"%PDF": "PDF",
    b"PK\x03\x04": "archive",
    b"\x1f\x8b": "archive",
    b"7z\xbc\xaf": "archive",
    b"Rar!": "archive",
    b"\x93NUMPY": "NumPy",
}

COPY_AGAIN = "copy or download it again"
DAMAGED_KINDS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "JPEG 2000", "WebP", "AVIF", "HEIC")
OTHER_KINDS = {
    "Git LFS": ("a Git LFS pointer in place of the picture", "fetch the pictures with 'git lfs pull'"),
    "git-annex": ("a git-annex pointer in place of the picture", "fetch the pictures with 'git annex get .'"),
    "HTML": ("an HTML page, such as a server sends in place of a picture", "download the picture again"),
    "SVG": ("an SVG drawing, which has no pixels", "export it as PNG"),
    "XML": ("an XML file, such as a server's answer", "download the picture again"),
    "JPEG XL": ("a JPEG XL picture, which Pillow cannot read", "save it as JPEG or PNG"),
    "PDF": ("a PDF document", "save its picture as JPEG or PNG"),
    "video": ("a video", "save pictures of it as JPEG or PNG"),
    "archive": ("an archive", "unpack it, and put its pictures in its place"),
    "NumPy": ("a NumPy array", "save it as PNG"),
}


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file, in a few words, and the way out.

    Attributes:
        cause: the same words for the same fault, so that equal ones can be counted.
        detail: what is particular to this file.
        advice: the way out.
        lasting: the file itself is at fault; otherwise the system could not read it just now.
    """

    cause: str
    advice: str
    detail: str = ""
    lasting: bool = True

    def __str__(self) -> str:
        return f"{self.cause}{self.detail and f' ({self.detail})'}; {self.advice}"


class UnsuitableError(Exception):
    """A picture that is whole, but no picture for a network; it carries its ``Fault``."""

    def __init__(self, fault: Fault):
        super().__init__(str(fault))
        self.fault = fault


def fault_of(path: Path, file: BinaryIO, error: Exception) -> Fault:
    """Why reading the picture in ``file`` ended in ``error``."""
    if isinstance(error, UnsuitableError):
        return error.fault
    if isinstance(error, MemoryError):
        return Fault("more pixels than the memory holds", "save a smaller copy", lasting=False)
    if isinstance(error, OSError) and error.errno is not None:
        return unreachable(error)
    if isinstance(error, Image.DecompressionBombError):
        return Fault(
            "too many pixels",
            "save a smaller copy, or set PIL.Image.MAX_IMAGE_PIXELS = None first if you trust the file",
            str(error).split(", could")[0],
        )
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return Fault("empty", COPY_AGAIN)
    file.seek(0)
    head = file.read(HEAD)
    file.seek(-min(size, 12), os.SEEK_END)
    return _fault_of_bytes(head, file.read(), size, path.suffix, error)


def unreachable(error: OSError) -> Fault:
    """The fault of a file that the system does not give."""
    return Fault("cannot be opened", "check its permissions and the disk", error.strerror or str(error), lasting=False)


def kind_of(head: bytes) -> str:
    """The kind of file that begins with the bytes ``head``; ``""`` for none that is known."""
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "AVIF" if brand in (b"avif", b"avis") else "HEIC" if brand in HEIF_BRANDS else "video"
    if head[:4] == b"RIFF":
        return "WebP" if head[8:12] == b"WEBP" else "video"
    for start, kind in STARTS.items():
        if head.startswith(start):
            return kind
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if begin.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "HTML"
    if begin.startswith((b"<svg", b"<?xml")):
        return "SVG" if b"<svg" in begin else "HTML" if b"<html" in begin else "XML"
    return ""


def _fault_of_bytes(head: bytes, tail: bytes, size: int, ending: str, error: Exception) -> Fault:
    kind = kind_of(head)
    if kind in OTHER_KINDS:
        return Fault(*OTHER_KINDS[kind])
    unknown = isinstance(error, UnidentifiedImageError | ImportError)  # an ImportError by Ultralytics' Image.open
    if kind == "HEIC" and importlib.util.find_spec(HEIF_READER) is None:
        return Fault(
            "a HEIC picture, for which no reader is installed", f"pip install {HEIF_PACKAGE}", f"named {ending}"
        )
    if kind == "AVIF" and not features.check("avif"):
        return Fault("an AVIF picture, too new for this Pillow", "pip install --upgrade pillow", f"named {ending}")
    if not any(head):
        return Fault("nothing but zeros, as after a copy that was broken off", COPY_AGAIN, f"{size:,} bytes")
    if kind and _is_cut_short(kind, head, tail, size, error):
        return Fault("cut short", COPY_AGAIN, "" if unknown else str(error))
    if kind in DAMAGED_KINDS:
        return Fault(f"a damaged {kind}", COPY_AGAIN, "" if unknown else str(error) or type(error).__name__)
    text = _as_text(head)
    if text is not None:
        what = "a JSON file" if text.startswith(("{", "[")) else "a text file"
        return Fault(what, "put the picture in its place, or delete it", f"it begins with {text[:30]!r}")
    if unknown:
        return Fault("no kind of picture that is known", "save it as JPEG or PNG, or delete it")
    return Fault("damaged", COPY_AGAIN, str(error) or type(error).__name__)


def _is_cut_short(kind: str, head: bytes, tail: bytes, size: int, error: Exception) -> bool:
    if kind == "PNG":
        return b"IEND" not in tail
    if kind == "WebP":
        return int.from_bytes(head[4:8], "little") + 8 > size
    if kind == "BMP":
        return int.from_bytes(head[2:6], "little") > size
    if kind == "JPEG":
        return not tail.endswith(b"\xff\xd9")
    return "truncated" in str(error).lower()


def _as_text(head: bytes) -> str | None:
    """``head`` as text if it is some."""
    if any(byte < 32 and byte not in b"\t\n\r\f" for byte in head):
        return None
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(head).strip()  # its end may cut a character in two
    except UnicodeDecodeError:
        return None
