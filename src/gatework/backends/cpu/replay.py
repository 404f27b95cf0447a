"""Repeats a recorded walk through a kernel: one call of machine code that makes its steps one after the other.

A program is an array of words: its steps, then the words that the functions they call read. An address in it counts
from the beginning of some memory; each call copies the words, adds where the memory lies this time, and goes through
the steps. So one program may run on several threads at once.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from types import MappingProxyType

from . import jit
from .ir import Function, Module
from .target import target
from .threads import KINDS, SIGNATURE, address_of, run

# The steps. Each is its number, how many words it has, and these words:
MULTIPLY = 0  # gemm of BLAS, then what it is called with, letters and numbers as they lie there
RUN = 1       # a kernel, its arguments, the first row, rows, scratch of its own and of all
TEAM = 2      # what starts a team, what its members run, their task, how many there are
ZERO = 3      # where to, bytes from row to row; rows, bytes of a row
COPY = 4      # where to and where from, each with the bytes from row to row; rows, bytes of a row
ADD = 5       # the same; rows, values of a row
ROUND = 6     # the same, from float32 to bfloat16
GATHER = 7    # where to and where from, each with the bytes from row to row; numbers of rows there, rows, bytes
SCATTER = 8   # the same; the numbers are those of rows where to
WIDEN = 9     # as ROUND, from bfloat16 to float32

LINE = 64    # bytes, at a multiple of which memory begins
ROOM = 16    # rows behind arrays that grow with a batch: the last tile of rows is read whole

NOTHING: Mapping[str, int] = MappingProxyType({})  # is what a program of a dense batch is told

_REPLAY = ["ptr %template", "i64 %words", "i64 %end", "ptr %moves", "i64 %moved", "ptr %bases", "ptr %memory"]
_KINDS = [ctypes.c_void_p if a.startswith("ptr") else ctypes.c_int64 for a in _REPLAY]
_REFERENCES = "ptr, " * 12 + "ptr, i64, i64"  # to all arguments, as Fortran has it, and the lengths of the two letters


class Program:
    """What a recorder has written down; `work` bytes of memory are its own during a call.

    words: the steps, up to word `end`, and what they read; moves: pairs of a word and the memory that it points into.
    numbers: what it is told of a batch, by name and factor; growing: bytes that it works in besides, for each place of
    the batch (and `ROOM` more), of several arrays.
    """

    def __init__(self, words: Sequence[int], end: int, moves: Sequence[int], work: int, size: int, held: object,
                 numbers: Sequence[tuple[str, int]] = (), growing: Sequence[int] = ()):
        self.work, self._held, self.numbers, self._growing = work + -work % LINE, held, numbers, growing
        self.names = frozenset(name for name, _ in numbers)
        self._words, self._moves = array("q", words), array("q", moves)
        self._replay = _code(size).function("replay", *_KINDS)
        self._given = (address_of(self._words), len(words), end, address_of(self._moves), len(moves) // 2)

    def work_for(self, total: int) -> int:
        """The bytes to work in for a batch of so many places."""
        return self.work + sum(self._arrays(total))

    def _arrays(self, total: int) -> list[int]:
        return [count * (total + ROOM) + LINE & -LINE for count in self._growing]

    def run(self, addresses: list[int], work: int, told: Mapping[str, int] = NOTHING) -> None:
        """Make all steps, with memory at these addresses, and `work_for` bytes, on a line of the cache, to work in."""
        bases = self._bases(addresses, work, told)
        self._replay(*self._given, address_of(bases), work)

    def _bases(self, addresses: list[int], work: int, told: Mapping[str, int]) -> array:
        bases = array("q", addresses)
        bases.extend([told[name] * times for name, times in self.numbers])
        at = work + self.work
        for size in self._arrays(told["total"]) if self._growing else ():
            bases.append(at)
            at += size
        bases.append(work)
        return bases


def run_side_by_side(runs: Sequence[tuple[Program, list[int], int]], size: int) -> None:
    """Make all steps of several programs of dense batches, each with its addresses and work, on a thread each. What a
    program would share out among threads it then does alone: teams have no teams."""
    bases = [program._bases(addresses, work, NOTHING) for program, addresses, work in runs]
    words = array("q")
    for (program, _, work), own in zip(runs, bases):
        words.extend([*program._given, address_of(own), work])
    run(_code(size).function("replay_one", *KINDS), address_of(words), [(k, 1, 0, 0) for k in range(len(runs))])


@cache
def _code(size: int) -> jit.Code:
    return jit.load(f"replay {size}", partial(text, size), target())


def text(size: int) -> str:
    """The LLVM IR of `replay`, for values of 4 or 8 bytes, and of `replay_one` of several programs."""
    module = Module(target(), size)
    module.declared["declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)"] = None
    module.declared["declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)"] = None
    f = Function(module, "replay", _REPLAY, internal=False)
    _copy(f, "%memory", "%template", f.integer("shl", "%words", 3))
    with f.loop("0", "%moved") as k:
        move = f.at("%moves", f.integer("shl", k, 4))
        word = f.at("%memory", f.integer("shl", f.load_word(move, 0), 3))
        base = f.load_word(f.at("%bases", f.integer("shl", f.load_word(move, 1), 3)), 0)
        f.line(f"store i64 {f.integer('add', f.load_word(word, 0), base)}, ptr {word}")
    counter = f.variable("i64", "0")
    with f.while_below(counter, "%end") as now:
        step = f.at("%memory", f.integer("shl", now, 3))
        given = f.at(step, 16)
        steps = {MULTIPLY: _multiply, RUN: _run, TEAM: _team, ZERO: _zero, COPY: _copies, ADD: _add,
                 GATHER: partial(_by_number, scatter=False), SCATTER: partial(_by_number, scatter=True)}
        if size == 4 and target().multiplies_bfloat16:  # nobody else has the instruction, or the need
            steps |= {ROUND: _round, WIDEN: _widen}
        f.choose(f.load_word(step, 0), {kind: partial(write, f, given) for kind, write in steps.items()})
        f.line(f"store i64 {f.integer('add', now, f.load_word(step, 1))}, ptr {counter}")
    f.finish()
    f = Function(module, "replay_one", SIGNATURE, internal=False)
    at = f.at("%arguments", f.integer("mul", "%first", 8 * len(_REPLAY)))
    kinds = [a.split()[0] for a in _REPLAY]
    f.line(f"call void @replay({', '.join(f'{kind} {f.load_word(at, k, kind)}' for k, kind in enumerate(kinds))})")
    f.finish()
    return module.text()


def _words(f: Function, given: str, kinds: str) -> list[str]:
    """The words of a step: "p" for an address, "i" for a number."""
    return [f.load_word(given, k, "ptr" if kind == "p" else "i64") for k, kind in enumerate(kinds)]


def _copy(f: Function, to: str, source: str, count: str) -> None:
    f.line(f"call void @llvm.memcpy.p0.p0.i64(ptr {to}, ptr {source}, i64 {count}, i1 false)")


def _multiply(f: Function, given: str) -> None:
    gemm = f.load_word(given, 0, "ptr")
    # Matrices are addresses already, all else is handed over by its address.
    handed = [f"ptr {f.load_word(given, k, 'ptr') if k in (7, 9, 12) else f.at(given, 8 * k)}" for k in range(1, 14)]
    f.line(f"call void ({_REFERENCES}) {gemm}({', '.join(handed)}, i64 1, i64 1)")


def _run(f: Function, given: str) -> None:
    kernel, arguments, first, rows, tile, shared = _words(f, given, "ppiipp")
    kinds = ", ".join(a.split()[0] for a in SIGNATURE)
    f.line(f"call void ({kinds}) {kernel}(ptr {arguments}, i64 {first}, i64 {rows}, ptr {tile}, ptr {shared}, i64 0, "
           "i64 1, ptr null)")


def _team(f: Function, given: str) -> None:
    start, member, task, count = _words(f, given, "pppi")
    threads = f.value(f"trunc i64 {count} to i32")
    f.line(f"call void (ptr, ptr, i32, i32) {start}(ptr {member}, ptr {task}, i32 {threads}, i32 0)")


def _zero(f: Function, given: str) -> None:
    to, stride, rows, count = _words(f, given, "piii")
    with f.loop("0", rows) as row:
        at = f.at(to, f.integer("mul", row, stride))
        f.line(f"call void @llvm.memset.p0.i64(ptr {at}, i8 0, i64 {count}, i1 false)")


def _copies(f: Function, given: str) -> None:
    to, to_stride, source, stride, rows, count = _words(f, given, "pipiii")
    with f.loop("0", rows) as row:
        _copy(f, f.at(to, f.integer("mul", row, to_stride)), f.at(source, f.integer("mul", row, stride)), count)


def _by_number(f: Function, given: str, scatter: bool) -> None:
    to, to_stride, source, stride, numbers, rows, count = _words(f, given, "pipipii")
    with f.loop("0", rows) as row:
        number = f.load_word(f.at(numbers, f.integer("shl", row, 3)), 0)
        there, here = (number, row) if scatter else (row, number)
        _copy(f, f.at(to, f.integer("mul", there, to_stride)), f.at(source, f.integer("mul", here, stride)), count)


def _add(f: Function, given: str) -> None:
    def add(here: str, there: str, valid: int | None) -> None:
        f.store(f.arithmetic("fadd", f.load(here, valid), f.load(there, valid)), here, valid)

    _by_vector(f, given, (f.module.size, f.module.size), add)


def _round(f: Function, given: str) -> None:
    def rounded(here: str, there: str, valid: int | None) -> None:
        f.store_short(f.load(there, valid), here, valid)

    _by_vector(f, given, (2, f.module.size), rounded)


def _widen(f: Function, given: str) -> None:
    def widened(here: str, there: str, valid: int | None) -> None:
        f.store(f.load_short(there, valid), here, valid)

    _by_vector(f, given, (f.module.size, 2), widened)


def _by_vector(f: Function, given: str, sizes: tuple[int, int], write: Callable[[str, str, int | None], None]) -> None:
    """Go through the rows of two sides, with so many bytes to a value: by vectors, and one by one what is left."""
    to, to_stride, source, stride, rows, count = _words(f, given, "pipiii")
    whole = f.integer("and", count, -f.module.lanes)
    with f.loop("0", rows) as row:
        sides = f.at(to, f.integer("mul", row, to_stride)), f.at(source, f.integer("mul", row, stride))
        for start, end, step, valid in (("0", whole, f.module.lanes, None), (whole, count, "1", 1)):
            with f.loop(start, end, step) as k:
                write(*(f.at(side, f.integer("mul", k, size)) for side, size in zip(sides, sizes)), valid)
