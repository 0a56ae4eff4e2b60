"""The bytes of a ``.slim`` file: a frame with a checksum around four sections, written and read with distrust.

All numbers are little-endian::

    "SLIM"  version  SHA-256 of all that follows  lengths of the four sections
    description   JSON, compressed: the structure, and how each part is encoded
    tables        how often each symbol of each part occurs, roughly; compressed
    plain         bits that are stored as they are
    coded         the symbols of all parts, one stream

A checksum finds what happened by accident; who means harm computes it anew. So a reader believes no number before it
has compared it with the others, and takes no memory that the length of the file does not account for.
"""

import hashlib
import json
import struct
import zlib
from dataclasses import astuple, dataclass

import numpy as np
import torch

from yolo_slim_lessons.packing.entropy_coder import MAX_SYMBOLS, coded_bits, decode, encode, frequencies
from yolo_slim_lessons.packing.values import (
    FLOATS,
    EncodedValues,
    Encoding,
    decode_values,
    inflate,
    packed_bytes,
    read_levels,
    write_levels,
)

MAGIC, VERSION = b"SLIM", 1
_HEAD = struct.Struct("<4sH32s")
_LENGTHS = struct.Struct("<4I")
FRAME_BYTES = _HEAD.size + _LENGTHS.size
_MOST_JSON = 1 << 20  # bytes of the description, unpacked
# Values that are all alike cost nothing, so a few bytes could ask for any number of them. Honest files are far from
# this: biases alone take a byte for every few hundred weights.
_FREE_VALUES, _VALUES_PER_BYTE = 4_000_000, 1000


@dataclass(frozen=True)
class StoredValues:
    """One part as it was found in a file, decoded up to its symbols."""

    encoding: Encoding
    dtype: torch.dtype
    count: int
    tables: list[np.ndarray]
    symbols: list[np.ndarray]
    plain: memoryview

    def tensor(self) -> torch.Tensor:
        """The flat tensor; ``ValueError`` if the pieces contradict each other."""
        return decode_values(self.encoding, self.symbols, self.plain, self.dtype, self.count)

    def coded_bits(self) -> float:
        """Bits of the coded stream that belong to this part."""
        return sum(
            coded_bits(np.bincount(symbols, minlength=len(table)), table)
            for symbols, table in zip(self.symbols, self.tables, strict=True)
        )


def write(structure: dict, parts: list[EncodedValues]) -> bytes:
    """The whole file; ``ValueError`` if a reader would not believe it: a huge structure, or too many equal values."""
    description = {"structure": structure, "parts": [astuple(part.encoding) for part in parts]}
    text = json.dumps(description, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > _MOST_JSON:
        raise ValueError(f"the names and structure of the model take {len(text):,} bytes: expected under a megabyte")
    levels = [table for part in parts for table in part.levels]
    symbols = [array for part in parts for array in part.symbols]
    sections = [
        zlib.compress(text, 9),
        write_levels(levels),
        b"".join(part.plain for part in parts),
        encode(symbols, [frequencies(table) for table in levels]),
    ]
    _check_total(sum(len(part.symbols[0]) for part in parts), sections)
    return frame(sections)


def frame(sections: list[bytes]) -> bytes:
    """Sections with a head in front."""
    content = _LENGTHS.pack(*map(len, sections)) + b"".join(sections)
    return _HEAD.pack(MAGIC, VERSION, hashlib.sha256(content).digest()) + content


def unframe(data: bytes) -> list[memoryview]:
    """The four sections; ``ValueError`` if a single bit of the file differs from what was written."""
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("it does not begin like a .slim file")
    if len(data) < FRAME_BYTES:
        raise ValueError(f"it ends after {len(data)} bytes")
    _, version, digest = _HEAD.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"it has version {version}, and this package reads version {VERSION}")
    lengths = _LENGTHS.unpack_from(data, _HEAD.size)
    if len(data) != FRAME_BYTES + sum(lengths):
        raise ValueError(f"it has {len(data):,} bytes where its head announces {FRAME_BYTES + sum(lengths):,}")
    content = memoryview(data)[_HEAD.size :]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum is wrong: bytes were changed")
    ends = np.cumsum(lengths) + _LENGTHS.size
    return [content[end - length : end] for end, length in zip(ends.tolist(), lengths, strict=True)]


def read_description(section: memoryview) -> tuple[dict, list[Encoding]]:
    """(structure, encodings), of the right types; whether they make sense is for others to say."""
    try:
        text = inflate(section, _MOST_JSON).decode()
        description = json.loads(text, object_pairs_hook=_without_repetition, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # wrong UTF-8 and wrong JSON are ValueErrors, too
        raise ValueError(f"its description is no JSON ({error})") from None
    if not isinstance(description, dict) or description.keys() != {"structure", "parts"}:
        raise ValueError("its description lacks the structure or the parts")
    structure, rows = description["structure"], description["parts"]
    if not isinstance(structure, dict) or not isinstance(rows, list):
        raise ValueError("its structure or its parts are of a wrong type")
    for row in rows:
        if not isinstance(row, list) or [type(number) for number in row] != [int] * 5:
            raise ValueError(f"a part is encoded as {row!r:.80}: expected 5 integers")
    return structure, [Encoding(*row) for row in rows]


def read_parts(
    encodings: list[Encoding], layout: list[tuple[torch.dtype, int]], sections: list[memoryview]
) -> list[StoredValues]:
    """Take the tables, plain and coded sections apart; ``layout`` is the type and number of values of each part."""
    if len(encodings) != len(layout):
        raise ValueError(f"it has {len(encodings)} parts, and its structure has {len(layout)}")
    _check_total(sum(count for _, count in layout), sections)
    counts, sizes, streams, plain_bytes = [], [], [], []
    for encoding, (dtype, count) in zip(encodings, layout, strict=True):
        left = _check_encoding(encoding, dtype, count)
        masked = encoding.kept >= 0
        counts += [count] * masked + [left]
        sizes += [2] * masked + [encoding.size]
        streams.append(1 + masked)
        width = FLOATS.get(dtype, 32) - encoding.dropped
        plain_bytes.append(packed_bytes(encoding.book, width) + packed_bytes(left, encoding.shift))
    _, tables_section, plain, coded = sections
    if len(plain) != sum(plain_bytes):
        raise ValueError(f"it has {len(plain):,} plain bytes, and its parts need {sum(plain_bytes):,}")
    tables = [frequencies(table) for table in read_levels(tables_section, sizes)]
    symbols = decode(coded, counts, tables)
    parts = []
    for encoding, (dtype, count), some, length in zip(encodings, layout, streams, plain_bytes, strict=True):
        parts.append(StoredValues(encoding, dtype, count, tables[:some], symbols[:some], plain[:length]))
        tables, symbols, plain = tables[some:], symbols[some:], plain[length:]
    return parts


def _check_total(values: int, sections: list) -> None:
    if values > _FREE_VALUES + _VALUES_PER_BYTE * sum(map(len, sections)):
        raise ValueError(f"it claims {values:,} values, more than its bytes can hold")


def _check_encoding(encoding: Encoding, dtype: torch.dtype, count: int) -> int:
    """How many values are left behind the mask; ``ValueError`` if the numbers of an encoding contradict each other."""
    width = FLOATS.get(dtype, 32)
    dropped, kept, book, shift, size = astuple(encoding)
    if not (
        0 <= dropped < (width if dtype in FLOATS else 1)
        and (kept == -1 or 0 < kept < count)
        and 1 <= size <= MAX_SYMBOLS
        and 0 <= shift <= width - dropped
        and (size - 1) << shift < 1 << (width - dropped)
        and (book == 0 or (book == size and shift == 0))
    ):
        raise ValueError(f"{count:,} values of {width} bits cannot be encoded as {encoding}")
    return count if kept < 0 else kept


def _without_repetition(pairs: list[tuple[str, object]]) -> dict:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name occurs twice")
    return fields


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no number")
