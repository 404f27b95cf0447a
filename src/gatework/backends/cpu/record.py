"""Writes down what a kernel asks of an array library, so that it can be repeated without Python.

A call of a small layer is some twenty steps, products, copies, loops, and getting from one to the next takes longer
than making them. For tensors of the same shapes the steps are always the same; only where the tensors lie differs. The
recorder is the third array library beside numpy's and torch's, one whose arrays have shapes and no values: walking a
kernel with it yields a `Program`.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from . import replay, sums, threads, vector_gemm
from .any_batch import Index, Known, NotRecorded, most
from .recorded import Address, Array, Memory, Word, letter, side_by_side
from .shape import TILE_ROWS
from .target import target

# From so many multiplications on, a product of BLAS is torch's, which may share it out and pack it otherwise.
MOST_MULTIPLICATIONS = 1 << 26


class Recorder:
    """The steps of one walk. size: bytes of a value; gemm: the address of BLAS's function for such values, its
    arguments as in Fortran; wide: sizes of values of which `vector_gemm` multiplies larger matrices."""

    def __init__(self, size: int, most_threads: int, gemm: int, wide: Collection[int] = ()):
        self.size, self._threads, self._gemm, self._wide = size, most_threads, gemm, wide
        self._steps: list[Word] = []
        self._read: list[Word] = []       # by the functions that steps call
        self._behind = Memory(0)          # the steps: the memory of these words
        self._given_back: list[Memory] = []  # to work in
        self._held: list[Any] = []        # what the words point to, for as long as the program lives
        self._numbers: dict[tuple[str, int], Memory] = {}  # that are told, by their names and factors

    def given(self, shape: Sequence[int], short: bool = False, tail: bool = False) -> Array:
        """An array of the caller's, or new memory."""
        shape = tuple(shape)
        # What grows with a batch has some room behind it anyway.
        behind = TILE_ROWS - 1 if tail and not isinstance(shape[0], Known) else 0
        size = math.prod((shape[0] + behind, *shape[1:])) * (2 if short else self.size)
        return Array(self, Memory(size), 0, shape, side_by_side(shape), short, tail)

    # ---- what kernels ask for

    def empty(self, *shape: int, short: bool = False) -> Array:
        return self.given(shape)

    lasting = empty

    def work(self, count: int) -> Array:
        """Memory that an earlier step has given back, made larger where it must be: steps follow each other."""
        if not self._given_back or isinstance(count, Known):
            return self.given((count,))
        memory = self._given_back.pop()
        memory.size = max(memory.size, count * self.size)
        return Array(self, memory, 0, (count,), (1,))

    def give_back(self, memory: Array) -> None:
        if not isinstance(memory.memory.size, Known):
            self._given_back.append(memory.memory)

    def operand(self, a: Array) -> Array:
        return a

    factor = output = ascontiguousarray = operand

    def zeros(self, *shape: int) -> Array:
        made = self.given(shape)
        made[...] = 0
        return made

    def copy(self, a: Array) -> Array:
        made = self.given(a.shape)
        made[...] = a
        return made

    def sum_of_rows(self, a: Array) -> Array:
        made = self.given(a.shape[1:])
        sums.sum_of_rows(self, target(), a.size, a.shape, self.address(a), a.strides[0], self.address(made))
        return made

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        out = self.given((a.shape[0], b.shape[1])) if out is None else out
        self._multiply(out, self.address(a), a.shape, a.strides, b, 0.0)
        return out

    def add_product(self, out: Array, a: Array, b: Array) -> None:
        self._multiply(out, self.address(a), a.shape, a.strides, b, 1.0)

    def take(self, a: Array, rows: Index) -> Array:
        if not isinstance(rows, Index):
            raise NotRecorded("rows of one batch only")
        made = self.given((rows.count, *a.shape[1:]), a.short)
        self.step_by_number(replay.GATHER, made, a, rows)
        return made

    def spread(self, a: Array, rows: Index, count: int) -> Array:
        made = self.given((count, *a.shape[1:]), a.short, tail=a.short)
        made[...] = 0
        made[rows] = a
        return made

    def sum_by(self, a: Array, rows: None, count: int) -> Array:
        raise NotRecorded("a sum over the steps of every row")

    def address(self, a: Array) -> Address:
        return Address(a.memory, a.offset * a.size)

    def threads(self) -> int:
        return self._threads

    def flag(self) -> ctypes.c_int64:
        raise NotRecorded("a step that depends on what the one before has found")

    def run(self, kernel, words: list[Word], parts: list[tuple[Word, ...]], together: bool = False) -> None:
        arguments = self._told(words)
        self._held.append(kernel)
        if len(parts) == 1:
            self._step(replay.RUN, kernel.address, arguments, *parts[0])
            return
        team = threads.team()
        if team is None:
            raise NotRecorded("threads of Python's own")
        point = self._told(threads.point_of(len(parts))) if together else 0
        task = self._told(team.task(kernel, arguments, parts, point))
        self._step(replay.TEAM, team.starter, team.member, task, len(parts))

    # ---- the steps

    def _step(self, kind: int, *words: Word) -> None:
        self._steps += kind, 2 + len(words), *map(self._word, words)

    def _told(self, words: Iterable[Word]) -> Address:
        at = len(self._read)
        self._read += map(self._word, words)
        return Address(self._behind, 8 * at)

    def _word(self, word: Word) -> Word:
        """A number that is told later is, like an address, what is added to a word."""
        if isinstance(word, Known):
            return Address(self._numbers.setdefault((word.name, word.times), Memory(0)), 0)
        return word

    def step_by_row(self, kind: int, to: Array, source: Array | None = None) -> None:
        """A step over rows whose values lie side by side; over one row if they all do."""
        sides = [to] if source is None else [to, source]
        if any(side.shape != to.shape for side in sides):
            raise NotRecorded(f"values of {[side.shape for side in sides]} in one step")
        short = [side.short for side in sides]
        alike = len({*short}) == 1 and (not to.short or kind in (replay.COPY, replay.ZERO))
        changed = {replay.ROUND: [True, False], replay.WIDEN: [False, True]}
        if short != changed[kind] if kind in changed else not alike:
            raise NotRecorded("bfloat16 beside float32")
        if to.count == 0:
            return
        dense = all(side.is_dense for side in sides)
        rows, width = (1, to.count) if dense else (to.shape[0], math.prod(to.shape[1:]))
        if any(rows > 1 and side.strides[1:] != side_by_side(side.shape)[1:] for side in sides):
            raise NotRecorded("values that do not lie side by side")
        where = [w for side in sides for w in (self.address(side), side.strides[0] * side.size)]
        by_values = kind in (replay.ADD, replay.ROUND, replay.WIDEN)
        self._step(kind, *where, rows, width if by_values else width * to.size)

    def step_by_number(self, kind: int, to: Array, source: Array, rows: Index) -> None:
        """A step over rows of which one side's are given by number."""
        sides = to, source
        if to.short != source.short or any(side.strides[1:] != side_by_side(side.shape)[1:] for side in sides):
            raise NotRecorded("values that do not lie side by side")
        where = [w for side in sides for w in (self.address(side), side.strides[0] * side.size)]
        self._step(kind, *where, rows.first, rows.count, math.prod(to.shape[1:]) * to.size)

    def _multiply(self, out: Array, left: Word, shape: tuple[int, ...], strides: tuple[int, ...], right: Array,
                  more: float) -> None:
        """out = more * out + left @ right. BLAS counts columns first, and so makes out.T = right.T @ left.T."""
        (rows, depth), columns = shape, right.shape[1]
        if rows * columns == 0:
            return
        if depth == 0:
            if not more:
                out[...] = 0
            return
        if out.strides[1] != 1 and columns > 1:
            raise NotRecorded("a result whose values do not lie side by side")
        sides = vector_gemm.Side(left, *strides), vector_gemm.Side(self.address(right), *right.strides)
        if (right.size in self._wide and vector_gemm.suits(rows, depth, columns) and vector_gemm.multiply(
                self, target(), right.size, (rows, depth, columns), *sides,
                vector_gemm.Side(self.address(out), *out.strides), bool(more))):
            return
        if math.prod(map(most, (rows, depth, columns))) >= MOST_MULTIPLICATIONS:
            raise NotRecorded("a large product of BLAS")
        a, a_step = letter(right.shape, right.strides)
        b, b_step = letter(shape, strides)
        self._step(replay.MULTIPLY, self._gemm_of(right), a, b, columns, rows, depth, self._number(1.0),
                   self.address(right), a_step, left, b_step, self._number(more), self.address(out),
                   max(out.strides[0], columns))

    def _gemm_of(self, side: Array) -> int:
        """The function for operands like this one."""
        return self._gemm

    def _number(self, value: float) -> int:
        """The bits of a value, at the beginning of a word."""
        return int.from_bytes(struct.pack("<f" if self.size == 4 else "<d", value), "little")

    # ---- the end

    def finish(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> replay.Program:
        """The program. It is called with the addresses of the inputs, then of the outputs."""
        for a in outputs:
            if not a.is_whole or any(a.memory is x.memory for x in inputs):
                raise NotRecorded("a result that is part of something else")
        end = len(self._steps)
        places = {a.memory: (k, 0) for k, a in enumerate((*inputs, *outputs))}
        for number in self._numbers.values():
            places[number] = len(places), 0
        growing = []
        for word in (*self._steps, *self._read):
            if isinstance(word, Address) and word.memory not in places and isinstance(word.memory.size, Known):
                places[word.memory] = len(places), 0
                growing.append(word.memory.size.times)
        own, size = len(places), 8 * (end + len(self._read))
        places[self._behind] = own, 8 * end
        words, moves = [], []
        for at, word in enumerate((*self._steps, *self._read)):
            if isinstance(word, Address):
                if word.memory not in places:
                    size += -size % replay.LINE
                    places[word.memory] = own, size
                    size += word.memory.size
                base, begin = places[word.memory]
                moves += at, base
                word = begin + word.offset
            words.append(word)
        return replay.Program(words, end, moves, size, self.size, self._held, list(self._numbers), growing)


class ShortRecorder(Recorder):
    """The same for kernels that multiply bfloat16. `short_gemm` multiplies that and adds up in float32."""

    def __init__(self, most_threads: int, gemm: int, short_gemm: int, wide: Collection[int] = ()):
        super().__init__(4, most_threads, gemm, wide)
        self._short_gemm = short_gemm

    def empty(self, *shape: int, short: bool = False) -> Array:
        return self.given(shape, short, tail=short)

    lasting = empty

    def operand(self, a: Array) -> Array:
        if a.tail:
            return a
        made = self.empty(*a.shape, short=True)
        made[...] = a
        return made

    def factor(self, a: Array) -> Array:
        return a if a.short else self._as_short(a)

    def output(self, a: Array) -> Array:
        return a if a.short and a.is_whole else self._as_short(a)

    def _as_short(self, a: Array) -> Array:
        made = self.given(a.shape, short=True)
        made[...] = a
        return made

    def after_each_other(self, a: Array, b: Array) -> Array:
        made = self.empty(a.shape[0] + b.shape[0], a.shape[1], short=True)
        made[:a.shape[0]] = a
        made[a.shape[0]:] = b
        return made

    def copy(self, a: Array) -> Array:
        made = self.empty(*a.shape, short=a.short)
        made[...] = a
        return made

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        if out is None or not out.short:
            return super().matmul(self._rounded(a), self._rounded(b), out)
        out[...] = super().matmul(self._rounded(a), self._rounded(b))
        return out

    def add_product(self, out: Array, a: Array, b: Array) -> None:
        if out.short:
            raise NotRecorded("a sum of bfloat16")
        super().add_product(out, self._rounded(a), self._rounded(b))

    def _rounded(self, a: Array) -> Array:
        if a.short:
            return a
        if a.strides[0] == 1 and not a.is_dense:  # a matrix turned over is rounded as it lies
            return self._rounded(a.T).T
        return self._as_short(a)

    def _gemm_of(self, side: Array) -> int:
        return self._short_gemm if side.short else self._gemm
