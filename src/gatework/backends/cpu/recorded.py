"""The arrays of a recorder: they have a place, a shape and no values. What is done to one is a step of its recorder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import replay
from .any_batch import Index, Known, NotRecorded

if TYPE_CHECKING:
    from .record import Recorder


class Memory:
    """Some bytes whose place is known when a program runs."""

    def __init__(self, size: int):
        self.size = size


@dataclass(frozen=True)
class Address:
    memory: Memory
    offset: int

    def __add__(self, count: int) -> Address:
        return Address(self.memory, self.offset + count)

    def __sub__(self, count: int) -> Address:
        return Address(self.memory, self.offset - count)


Word = int | Address


class Array:
    """An array without values. `offset` and strides count values; those of a `short` one are bfloat16, and with a
    `tail` there is memory behind them, which the last tile of rows is read into."""

    def __init__(self, of: Recorder, memory: Memory, offset: int, shape: tuple[int, ...], strides: tuple[int, ...],
                 short: bool = False, tail: bool = False):
        self.of, self.memory, self.offset, self.shape, self.strides = of, memory, offset, shape, strides
        self.short, self.tail, self.size = short, tail, 2 if short else of.size

    def _view(self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        return Array(self.of, self.memory, offset, shape, strides, self.short)

    @property
    def T(self) -> Array:
        return self._view(self.offset, self.shape[::-1], self.strides[::-1])

    def __getitem__(self, at) -> Array:
        at = at if isinstance(at, tuple) else (at,)
        if at == (...,):
            return self
        if not all(isinstance(a, slice) and a.step is None for a in at):
            raise NotRecorded("other parts than some in a row")
        offset, shape = self.offset, list(self.shape)
        for axis, a in enumerate(at):
            if a != slice(None):
                if isinstance(self.shape[axis], Known) and not (a.start in (0, None) and type(a.stop) is int
                                                                and a.stop >= 0):
                    raise NotRecorded("steps of one batch only")
                span = range(self.shape[axis])[a]
                shape[axis] = len(span)
                offset += span.start * self.strides[axis] if len(span) else 0
        return self._view(offset, tuple(shape), self.strides)

    def __setitem__(self, at, value: Array | float) -> None:
        if isinstance(at, Index):
            self.of.step_by_number(replay.SCATTER, self, value, at)
        elif isinstance(value, Array):
            kinds = {(True, False): replay.ROUND, (False, True): replay.WIDEN}
            self.of.step_by_row(kinds.get((self.short, value.short), replay.COPY), self[at], value)
        elif value == 0:
            self.of.step_by_row(replay.ZERO, self[at])
        else:
            raise NotRecorded(f"filling with {value}")

    def __iadd__(self, other: Array) -> Array:
        self.of.step_by_row(replay.ADD, self, other)
        return self

    def __add__(self, other: Array) -> Array:
        if self.short != other.short:
            return self._wide() + other._wide()
        total = self.of.copy(self)
        total += other
        return total

    def _wide(self) -> Array:
        """The same in float32."""
        if not self.short:
            return self
        made = self.of.given(self.shape)
        made[...] = self
        return made

    def reshape(self, *shape: int) -> Array:
        if not self.is_dense or isinstance(self.count, Known):
            raise NotRecorded("values that do not lie side by side, or are counted later, in another shape")
        known = math.prod(n for n in shape if n >= 0)
        shape = tuple(self.count // known if n < 0 else n for n in shape)
        return self._view(self.offset, shape, side_by_side(shape))

    def sum(self, axis: int) -> Array:
        raise NotRecorded("a sum over the steps of every row")

    @property
    def is_whole(self) -> bool:
        return self.offset == 0 and self.is_dense and (self.tail or self.memory.size == self.count * self.size)

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def is_dense(self) -> bool:
        return self.strides == side_by_side(self.shape)


def side_by_side(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[k + 1:]) for k in range(len(shape)))


def letter(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """How BLAS is told of a matrix that it sees turned over: a letter, and values from one column to the next."""
    rows, columns = shape
    if strides[1] == 1 or columns == 1:
        return ord("N"), max(strides[0], columns)
    if strides[0] == 1 or rows == 1:
        return ord("T"), max(strides[1], rows)
    raise NotRecorded("a matrix whose values do not lie side by side")

