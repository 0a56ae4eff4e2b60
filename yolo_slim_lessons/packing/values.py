"""Numbers of a tensor ↔ few bits: what each part of a ``.slim`` file holds. Used in lessons 05 and 08.

Every value becomes an unsigned code word with its sign in the lowest bit, so that zero is 0 and small values are small.
Bits that are zero in all words of a part are dropped: an FP32 tensor that holds fp8 values keeps 12 of its 32 bits.
The upper bits of a word are the symbols of the entropy coder; the lower ones, which look random, are stored plainly.
Where the cut lies is chosen by size, from all bits plain to all bits coded. Two other encodings compete: a mask of
zeros before the rest, and a codebook of the distinct words. Leaves out: lossy coding.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch

from yolo_slim_lessons.packing.entropy_coder import MAX_SYMBOLS, coded_bits, frequencies, rough_counts

FLOATS = {torch.float32: 32, torch.float16: 16, torch.bfloat16: 16}


@dataclass(frozen=True)
class Encoding:
    """How one part is stored; all numbers that a reader needs apart from the values."""

    dropped: int  # bits at the end of every float that are zero
    kept: int  # values left behind the mask of zeros; -1 without a mask
    book: int  # entries of the codebook; 0 without one
    shift: int  # lower bits of each word that are stored plainly
    size: int  # of the alphabet of the upper bits


@dataclass(frozen=True)
class EncodedValues:
    """A part ready to be written: an encoding, what the entropy coder takes, and the bytes beside it."""

    encoding: Encoding
    symbols: list[np.ndarray]
    levels: list[np.ndarray]
    plain: bytes
    bits: float


def to_words(tensor: torch.Tensor) -> tuple[np.ndarray, int, int]:
    """(words as uint32 array, their width in bits, dropped bits) of a flat float or integer tensor.

    Raises:
        ValueError: integers that do not fit into 32 bits, or another type.
    """
    if tensor.dtype not in FLOATS:
        if tensor.is_floating_point() or tensor.is_complex():
            raise ValueError(f"a tensor is {tensor.dtype}: expected one of {[str(dtype) for dtype in FLOATS]}")
        integers = tensor.to(torch.int64).numpy()
        if len(integers) and not -(2**31) <= integers.min() <= integers.max() < 2**31:
            raise ValueError("a tensor holds integers of more than 32 bits: expected fewer")
        return ((integers << 1) ^ (integers >> 63)).astype(np.uint32), 32, 0
    width = FLOATS[tensor.dtype]
    patterns = tensor.view(torch.int32 if width == 32 else torch.int16).numpy().view(f"u{width // 8}").astype(np.uint32)
    used = int(np.bitwise_or.reduce(patterns)) if len(patterns) else 0
    dropped = (used & -used).bit_length() - 1 if used else 0
    width -= dropped
    patterns >>= np.uint32(dropped)
    sign = patterns >> np.uint32(width - 1)
    return ((patterns ^ (sign << np.uint32(width - 1))) << np.uint32(1)) | sign, width, dropped


def from_words(words: np.ndarray, dropped: int, dtype: torch.dtype) -> torch.Tensor:
    """The flat tensor that ``to_words`` was given; ``ValueError`` if an integer does not fit ``dtype``."""
    if dtype not in FLOATS:
        integers = torch.from_numpy((words >> np.uint32(1)).astype(np.int64) ^ -(words & np.uint32(1)).astype(np.int64))
        if not torch.equal(integers.to(dtype).long(), integers):
            raise ValueError(f"integers of a part do not fit {dtype}")
        return integers.to(dtype)
    width = FLOATS[dtype] - dropped
    patterns = ((words >> np.uint32(1)) | ((words & np.uint32(1)) << np.uint32(width - 1))) << np.uint32(dropped)
    if FLOATS[dtype] == 32:
        return torch.from_numpy(patterns.view(np.int32)).view(dtype)
    return torch.from_numpy(patterns.astype(np.uint16).view(np.int16)).view(dtype)


def encode_values(tensor: torch.Tensor) -> EncodedValues:
    """The smallest encoding of a flat tensor."""
    words, width, dropped = to_words(tensor)
    candidates = [_cut(words, dropped)]
    if candidates[0].encoding.shift:  # else each word is a symbol already, the zeros among them
        candidates += [_codebook(words, width, dropped), _mask(words, dropped)]
    return min((c for c in candidates if c is not None), key=lambda candidate: candidate.bits)


def decode_values(
    encoding: Encoding, symbols: list[np.ndarray], plain: memoryview, dtype: torch.dtype, count: int
) -> torch.Tensor:
    """The flat tensor of ``count`` values that ``encode_values`` was given; ``ValueError`` if the mask is damaged."""
    words = symbols[-1].astype(np.uint32)
    width = FLOATS.get(dtype, 32) - encoding.dropped
    if encoding.book:
        words = unpack_bits(plain, encoding.book, width)[words]
    elif encoding.shift:
        words = (words << np.uint32(encoding.shift)) | unpack_bits(plain, len(words), encoding.shift)
    if encoding.kept >= 0:
        mask = symbols[0].astype(bool)
        if np.count_nonzero(mask) != encoding.kept:
            raise ValueError("a mask of zeros is damaged")
        words, kept = np.zeros(count, dtype=np.uint32), words
        words[mask] = kept
    return from_words(words, encoding.dropped, dtype)


def pack_bits(values: np.ndarray, width: int) -> bytes:
    """The lowest ``width`` bits of each value, one plane after the other: first all lowest bits, then the next."""
    return b"".join(np.packbits((values >> np.uint32(bit)) & np.uint32(1)).tobytes() for bit in range(width))


def unpack_bits(data: memoryview, count: int, width: int) -> np.ndarray:
    """What ``pack_bits`` was given: ``count`` values of ``width`` bits as uint32 array."""
    planes = np.frombuffer(data, np.uint8, packed_bytes(count, width)).reshape(width, -1)
    values = np.zeros(count, dtype=np.uint32)
    for bit, plane in enumerate(planes):
        values |= np.unpackbits(plane, count=count).astype(np.uint32) << np.uint32(bit)
    return values


def packed_bytes(count: int, width: int) -> int:
    """Length of what ``pack_bits`` returns."""
    return (count + 7) // 8 * width


def _cut(words: np.ndarray, dropped: int, kept: int = -1) -> EncodedValues:
    """Upper bits coded, lower bits plain; cut where that is smallest."""
    length = int(words.max()).bit_length()
    shift = max(0, length - MAX_SYMBOLS.bit_length() + 1)
    counts, best = np.bincount(words >> np.uint32(shift)), None
    while True:
        levels, bits = _table(counts)
        bits += 8 * packed_bytes(len(words), shift)
        if best is None or bits < best[0]:
            best = bits, shift, levels
        if shift == length:
            break
        shift += 1
        counts = np.append(counts, 0)[: (len(counts) + 1) // 2 * 2].reshape(-1, 2).sum(1)
    bits, shift, levels = best
    encoding = Encoding(dropped, kept, 0, shift, len(levels))
    return EncodedValues(encoding, [words >> np.uint32(shift)], [levels], pack_bits(words, shift), bits)


def _mask(words: np.ndarray, dropped: int) -> EncodedValues | None:
    """A coded bit for each word that says whether it is zero, then the others."""
    mask = words != 0
    kept = int(np.count_nonzero(mask))
    if kept in (0, len(words)):
        return None
    levels, bits = _table(np.array([len(words) - kept, kept]))
    rest = _cut(words[mask], dropped, kept)
    symbols = [mask.astype(np.uint32), *rest.symbols]
    return EncodedValues(rest.encoding, symbols, [levels, *rest.levels], rest.plain, rest.bits + bits)


def _codebook(words: np.ndarray, width: int, dropped: int) -> EncodedValues | None:
    """The distinct words, and coded for each value its place among them."""
    most = min(MAX_SYMBOLS, len(words) // 2)
    if len(np.unique(words[: 3 * MAX_SYMBOLS])) > most:  # quickly seen, which saves sorting all
        return None
    book, indices, counts = np.unique(words, return_inverse=True, return_counts=True)
    if len(book) > most:
        return None
    (levels, bits), plain = _table(counts), pack_bits(book, width)
    encoding = Encoding(dropped, -1, len(book), 0, len(book))
    return EncodedValues(encoding, [indices.ravel()], [levels], plain, bits + 8 * len(plain))


def _table(counts: np.ndarray) -> tuple[np.ndarray, float]:
    """The table for symbols that occur so often, and the bits of symbols and table together."""
    levels, zlib_adds = rough_counts(counts), 8  # bytes to each stream; a file has one stream for all tables
    return levels, coded_bits(counts, frequencies(levels)) + 8 * (len(write_levels([levels])) - zlib_adds)


def write_levels(levels: list[np.ndarray]) -> bytes:
    """The tables of a file, end to end. Neighbours are alike, so their differences compress well."""
    return zlib.compress(np.diff(np.concatenate(levels), prepend=np.uint8(0)).tobytes(), 9)


def read_levels(data: bytes, sizes: list[int]) -> list[np.ndarray]:
    """What ``write_levels`` was given: tables of these sizes; ``ValueError`` if the bytes hold anything else."""
    differences = np.frombuffer(inflate(data, sum(sizes)), np.uint8)
    if len(differences) != sum(sizes):
        raise ValueError("tables of frequencies are cut short")
    return np.split(np.cumsum(differences, dtype=np.uint8), np.cumsum(sizes)[:-1])


def inflate(data: bytes, limit: int) -> bytes:
    """What ``zlib.compress`` was given; ``ValueError`` if it is damaged, or more than ``limit`` bytes."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError(f"a compressed section is damaged ({error})") from None
    if len(content) > limit or not stream.eof or stream.unused_data:
        raise ValueError(f"a compressed section is damaged, or unpacks to more than {limit:,} bytes")
    return content
