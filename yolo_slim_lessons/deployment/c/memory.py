"""Where each tensor lies in the arena, so that tensors which live at different times share memory. Used in lesson 13.

Each is placed once, the largest first, at the lowest address where nothing lies that lives at the same time. Leaves
out: other orders of the operations, and parts of a tensor that could be freed before the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yolo_slim_lessons.deployment.c.operations import Operation, Picture

ALIGNMENT = 16  # bytes


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of activations in memory.

    Attributes:
        name: of the node that makes it: the concatenation, where several make a part of it each.
        offset: of its first byte in the arena.
        bytes: its size.
        first: number of the operation that writes it first, from 0.
        last: number of the last operation that reads it.
    """

    name: str
    offset: int
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """The arena.

    Attributes:
        tensors: in the order in which they are written.
        operations: names of the operations, in order.
        bytes: size of the arena.
    """

    tensors: tuple[PlannedTensor, ...]
    operations: tuple[str, ...]
    bytes: int

    @property
    def bytes_without_sharing(self) -> int:
        """What the tensors take together if none shares memory."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def bytes_at_least(self) -> int:
        """What lives during the operation that needs most: no plan for this order of operations takes less."""
        return max(
            sum(tensor.bytes for tensor in self.tensors if tensor.first <= number <= tensor.last)
            for number in range(len(self.operations))
        )


def plan_arena(operations: Sequence[Operation]) -> tuple[MemoryPlan, dict[Picture, int]]:
    """The plan, and the address in the arena of each whole picture but the image, which the caller holds."""
    lives: dict[Picture, list[int]] = {}  # first and last operation
    for number, operation in enumerate(operations):
        for part in filter(None, (operation.writes, *operation.reads)):
            root = part.picture.root
            lives.setdefault(root, [number, number])[1] = number
    image = operations[0].reads[0].picture
    lives.pop(image)
    placed: list[tuple[Picture, int]] = []
    for picture in sorted(lives, key=size_of, reverse=True):
        first, last = lives[picture]
        at_the_same_time = [
            (address, address + size_of(other))
            for other, address in placed
            if lives[other][0] <= last and first <= lives[other][1]
        ]
        placed.append((picture, _lowest_gap(sorted(at_the_same_time), size_of(picture))))
    addresses = dict(placed)
    tensors = tuple(
        PlannedTensor(picture.name, addresses[picture], size_of(picture), first, last)
        for picture, (first, last) in lives.items()
    )
    size = max(address + size_of(picture) for picture, address in placed)
    return MemoryPlan(tensors, tuple(operation.name for operation in operations), size), addresses


def size_of(picture: Picture) -> int:
    """Bytes, filled up so that the next tensor begins at a multiple of ``ALIGNMENT``."""
    size = picture.height * picture.width * picture.channels
    return -(-size // ALIGNMENT) * ALIGNMENT


def _lowest_gap(taken: list[tuple[int, int]], size: int) -> int:
    """The lowest address with ``size`` bytes free; ``taken``, sorted, says from where to where others lie."""
    address = 0
    for start, stop in taken:
        if start - address >= size:
            break
        address = max(address, stop)
    return address
