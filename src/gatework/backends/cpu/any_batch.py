"""A ragged batch as a recorded program sees it: numbers that are told when the program runs.

Lengths hardly ever come twice, so a program for one batch would serve nobody else. What depends on the lengths is an
address or a number of the batch, or a multiple of one, and those a program is told with every call.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..batch import Batch, Padding


class NotRecorded(Exception):
    """A step that programs do not have."""


class Known(int):
    """A number that a program is told by the batch of each call, or a multiple of it; as an int what it is now.

    Decisions may compare it, so a program serves only batches for which they come out the same: places are told apart
    by how many bits count them. Sums would leave the multiples, and are refused.
    """

    def __new__(cls, now: int, name: str, times: int = 1):
        made = super().__new__(cls, now)
        made.name, made.times = name, times
        return made

    def __mul__(self, other: int) -> Known:
        return Known(int(self) * other, self.name, self.times * other)

    __rmul__ = __mul__

    @property
    def most(self) -> int:
        """What it is at the most, in the batches that a program serves."""
        return self.times * ((1 << (int(self) // self.times).bit_length()) - 1)

    def __sub__(self, other: int) -> Known:
        if other != 0:
            raise NotRecorded("a sum with a number that is told later")
        return self

    def __add__(self, other: int) -> Known:
        return self - other

    __radd__ = __add__


def most(n: int) -> int:
    return n.most if isinstance(n, Known) else n


@dataclass(frozen=True)
class Index:
    """Rows by number, of the batch of each call."""

    first: Known  # the address
    count: int


class AnyBatch:
    """A ragged batch as programs see it, in which every row has a step: lengths are those of each call."""

    is_dense = False
    row_of = None  # nobody adds up by it here

    def __init__(self, now: Batch):
        self._now = now
        self.rows = self.live = now.rows
        self.total, self.steps = Known(now.total, "total"), Known(now.steps, "steps")
        self.padding = now.padding and Padding(Index(Known(0, "places"), self.total), *(
            Index(Known(0, name), now.rows) for name in ("order", "back")))

    def turns(self, from_end: bool, begin: int, end: int) -> tuple[int, ...]:
        if (begin, end) != (0, self.steps):
            raise NotRecorded("a part of the steps")
        offsets, sizes = (Known(0, name) for name in ("offsets", "sizes"))
        first = Known(self._now.steps - 1, "last") if from_end else 0
        return self.steps, first, -1 if from_end else 1, offsets, sizes

    def place(self, step: int) -> int:
        return self.total if step else 0

    def parts(self, count: int) -> list[tuple[int, int]]:
        parts = self._now.parts(count)
        if len(parts) == 1:  # nothing is told of a single one
            return [(0, self.rows)]
        return [(Known(first, f"first {k}"), Known(rows, f"count {k}")) for k, (first, rows) in enumerate(parts)]

    def chunks(self, most_rows: int) -> list[tuple[int, int]]:
        if self.total > most_rows:
            raise NotRecorded("steps in several runs")
        return [(0, self.steps)]

    def end(self, reverse: bool) -> slice | Index:
        return slice(0, self.rows) if reverse else Index(Known(0, "ends"), self.rows)

    def start(self, reverse: bool) -> slice | Index:
        return self.end(not reverse)

    def previous(self, reverse: bool) -> Index:
        return Index(Known(0, "previous"), self.total)


_OF_PADDING = frozenset(f.name for f in fields(Padding))


def numbers(batch: Batch, names: frozenset[str], parts: int, reverse: bool) -> dict[str, int]:
    """What a program asks of a batch that is cut into so many parts, for a layer in this direction."""
    offsets, sizes = batch.addresses
    found = dict(total=batch.total, steps=batch.steps, last=batch.steps - 1, offsets=offsets, sizes=sizes)
    if "ends" in names:
        found["ends"] = batch.end(False).ctypes.data
    if "previous" in names:
        found["previous"] = batch.previous(reverse).ctypes.data
    for name in names & _OF_PADDING:
        found[name] = getattr(batch.padding, name).ctypes.data
    if parts > 1:
        for k, (first, count) in enumerate(batch.parts(parts)):
            found |= {f"first {k}": first, f"count {k}": count}
    return found
