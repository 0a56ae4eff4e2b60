"""An entropy coder: arrays of symbols to bytes and back, at hardly more than their entropy. Used in lessons 05 and 08.

Asymmetric numeral systems in their range variant, rANS (Duda, 2013): the whole message is one large number, the state.
To write a symbol of probability f / 2^15 multiplies the state by about 2^15 / f, so a rare symbol makes it grow by many
bits and a frequent one by few, fractions of a bit included; to read divides it again. Whenever a state has grown by 16
bits, its lowest 16 go to the file. Of 100 states side by side, the lanes, each takes every 100th symbol, so that numpy
works on all at once. Leaves out: probabilities that adapt, and context.
"""

import numpy as np

PRECISION = 15  # frequencies of a table add up to 2^15
MAX_SYMBOLS = 4096  # of an alphabet
_LOWEST = 1 << 24  # states stay between this and 2^16 times this: 9 bits above PRECISION keep rounding losses small
_STATE_BYTES = 5
_SYMBOLS_PER_LANE, _MAX_LANES = 4096, 1024  # a lane costs 4 bytes, a step of all lanes about 20 microseconds


def entropy_bits(values) -> float:
    """Bits that any code needs for these values if it knows how often each occurs and nothing else (Shannon, 1948).

    Args:
        values: numpy array or tensor of any shape: n values, of which n_v are equal to v.

    Returns:
        The sum of n_v · log2(n / n_v), that is n times the entropy in bits a value; 0 for no values.

    Example:
        >>> entropy_bits([0, 0, 1, 1])
        4.0
    """
    counts = np.unique(np.asarray(values), return_counts=True)[1].astype(np.float64)
    return float((counts * np.log2(counts.sum() / counts)).sum()) + 0.0  # no negative zero


def rough_counts(counts: np.ndarray) -> np.ndarray:
    """How often each symbol occurs, to within a quarter of a power of two: uint8 array as long, 0 for never.

    This costs less than 0.002 bits a symbol against exact counts.
    """
    levels = np.zeros(len(counts), dtype=np.uint8)
    levels[counts > 0] = 1 + np.rint(4 * np.log2(counts[counts > 0])).astype(np.uint8)
    return levels


def frequencies(levels: np.ndarray) -> np.ndarray:
    """The table of a coder from ``rough_counts``: integers that add up to 2^15, at least 1 where a symbol occurs.

    Integer arithmetic throughout, since a writer and a reader on other machines must agree to the last bit.

    Raises:
        ValueError: no symbol occurs, there are too many, or a level is above 129, which stands for 2^32.
    """
    if not 0 < len(levels) <= MAX_SYMBOLS or not levels.any() or levels.max() > 129:
        raise ValueError("a table of frequencies is empty or out of range")
    quarter, octave = (levels.astype(np.int64) - 1) % 4, (levels.astype(np.int64) - 1) // 4
    counts = np.array([4096, 4871, 5793, 6889], dtype=np.int64)[quarter] << np.maximum(octave, 0)  # 2^(12 + level / 4)
    counts[levels == 0] = 0
    table = (counts > 0) + counts * ((1 << PRECISION) - np.count_nonzero(counts)) // counts.sum()
    table[table.argmax()] += (1 << PRECISION) - table.sum()  # what rounding down has left over
    return table


def encode(arrays: list[np.ndarray], tables: list[np.ndarray]) -> bytes:
    """Write arrays of symbols, each by its own table.

    Args:
        arrays: of integers below the length of their table; each symbol used has a frequency above 0.
        tables: what ``frequencies`` returns, one an array.

    Returns:
        The states of the lanes at the end, then 16-bit words in the order in which ``decode`` reads them.
    """
    table, start, first = _joined(tables)
    symbols = np.concatenate([array.astype(np.int32) + offset for array, offset in zip(arrays, first, strict=True)])
    lanes = _lanes(len(symbols))
    state = np.full(lanes, _LOWEST, dtype=np.int64)
    words = []
    for step in reversed(range(0, len(symbols), lanes)):  # last in, first out
        now = symbols[step : step + lanes]
        frequency, active = table[now], state[: len(now)]
        full = active >= frequency << (24 + 16 - PRECISION)
        words.append((active[full] & 0xFFFF).astype("<u2"))
        active[full] >>= 16
        quotient, remainder = np.divmod(active, frequency)
        active[:] = (quotient << PRECISION) + remainder + start[now]
    states = state.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :_STATE_BYTES]
    return states.tobytes() + b"".join(word.tobytes() for word in reversed(words))


def decode(data: bytes, counts: list[int], tables: list[np.ndarray]) -> list[np.ndarray]:
    """Read what ``encode`` wrote: arrays of ``counts`` symbols, each by its own table.

    Raises:
        ValueError: the bytes are not what ``encode`` writes for so many symbols and these tables.
    """
    table, start, first = _joined(tables)
    total = sum(counts)
    lanes = _lanes(total)
    if len(data) < lanes * _STATE_BYTES or (len(data) - lanes * _STATE_BYTES) % 2:
        raise ValueError("coded symbols are cut short")
    state = np.zeros((lanes, 8), dtype=np.uint8)
    state[:, :_STATE_BYTES] = np.frombuffer(data, np.uint8, lanes * _STATE_BYTES).reshape(lanes, -1)
    state = state.view("<u8").ravel().astype(np.int64)
    words = np.frombuffer(data, "<u2", offset=lanes * _STATE_BYTES).astype(np.int64)
    # Which symbol owns each of the 2^15 slots of each table.
    owner = np.repeat(np.arange(len(table), dtype=np.int32), table)
    slots = np.repeat(np.arange(len(tables), dtype=np.int32) << PRECISION, counts)
    symbols, position = np.empty(total, dtype=np.int32), 0
    for step in range(0, total, lanes):
        active = state[: min(lanes, total - step)]
        slot = active & ((1 << PRECISION) - 1)
        now = owner[slots[step : step + lanes] + slot]
        active[:] = table[now] * (active >> PRECISION) + slot - start[now]
        low = np.flatnonzero(active < _LOWEST)
        if position + len(low) > len(words):
            raise ValueError("coded symbols are cut short")
        active[low] = (active[low] << 16) | words[position : position + len(low)]
        position += len(low)
        symbols[step : step + lanes] = now
    if position != len(words) or (state != _LOWEST).any():
        raise ValueError("coded symbols are damaged")
    cuts = np.cumsum(counts)[:-1]
    return [part - offset for part, offset in zip(np.split(symbols, cuts), first, strict=True)]


def coded_bits(counts: np.ndarray, table: np.ndarray) -> float:
    """Bits that ``encode`` needs for symbols that occur so often, by this table, and without its lanes."""
    return float((counts * (PRECISION - np.log2(np.maximum(table, 1)))).sum())


def _joined(tables: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tables end to end: frequency of each symbol, the first slot it owns in its table, first symbol of each table."""
    first = np.cumsum([0, *map(len, tables)])[:-1].astype(np.int32)
    start = np.concatenate([np.cumsum(table) - table for table in tables])
    return np.concatenate(tables), start, first


def _lanes(symbols: int) -> int:
    return min(max(symbols // _SYMBOLS_PER_LANE, 1), _MAX_LANES)
