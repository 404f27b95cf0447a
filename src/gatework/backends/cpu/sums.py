"""The sum of the rows of a matrix: gradients of biases, at the speed of memory. bfloat16 is added up in float32.

Some rows are added up at a time, vector by vector, and then to the result, which stays in the first cache: memory is
read in its order, and a sum of many rows is one of few sums.
"""

from __future__ import annotations

from functools import cache, partial

from . import jit, threads
from .any_batch import most
from .ir import Function, Module
from .target import Target

ROWS = 16                   # added up at a time
WORTH_A_THREAD = 1 << 17    # values
_WORDS = ("source", "stride", "rows", "columns", "out")


def sum_of_rows(xp, machine: Target, size: int, shape: tuple[int, int], source, stride: int, out) -> None:
    """out [columns] = the sum of the rows of source [rows, columns]; addresses, and values from row to row.

    Values of `size` bytes, and of 4 in `out`, for 2.
    """
    rows, columns = shape
    wide = max(size, 4)
    vectors = -(-columns // machine.lanes(wide))
    parts = max(1, min(xp.threads(), vectors, 1 + most(rows) * columns // WORTH_A_THREAD))
    shares = [(k * vectors // parts, (k + 1) * vectors // parts) for k in range(parts)]
    xp.run(_function(machine, size), [source, stride * size, rows, columns, out],
           [(begin, end - begin, 0, 0) for begin, end in shares])


@cache
def _function(machine: Target, size: int):
    return jit.load(f"sums {size}", partial(text, machine, size), machine).function("sum", *threads.KINDS)


def text(machine: Target, size: int) -> str:
    """The LLVM IR of `sum`, for some vectors of columns."""
    module = Module(machine, max(size, 4))
    f = Function(module, "sum", threads.SIGNATURE, internal=False)
    flags = f.flush_denormals()
    source, out = (f.load_word("%arguments", _WORDS.index(name), "ptr") for name in ("source", "out"))
    stride, rows, columns = (f.load_word("%arguments", _WORDS.index(name)) for name in ("stride", "rows", "columns"))
    end = f.integer("add", "%first", "%rows")
    full = f.smaller(end, f.integer("sdiv", columns, module.lanes))  # vectors; the last one of all may not be
    mask = f.first_lanes(f.integer("sub", columns, f.integer("mul", full, module.lanes)))
    whole = f.integer("mul", f.integer("sdiv", rows, ROWS), ROWS)

    def each(write) -> None:
        with f.loop("%first", full) as vector:
            write(vector, f.load, f.store)
        with f.when(f.value(f"icmp slt i64 {full}, {end}")):
            write(full, lambda at: f.load_where(at, mask), lambda value, at: f.store_where(value, at, mask))

    def begin(vector: str, load, store) -> None:
        store("zeroinitializer", f.at(out, f.integer("mul", vector, module.lanes * module.size)))

    def add(row: str, count: int, vector: str, load, store) -> None:
        first = f.integer("mul", vector, module.lanes)
        here = f.at(f.at(source, f.integer("mul", first, size)), f.integer("mul", row, stride))
        there = f.at(out, f.integer("mul", first, module.size))
        places = [f.at(here, f.integer("mul", stride, k)) for k in range(count)]
        if size == 2:
            values = [f.load_short(at) if load == f.load else f.widened(f.load_halves_where(at, mask)) for at in places]
        else:
            values = [load(at) for at in places]
        while len(values) > 1:
            values = [f.arithmetic("fadd", a, b) for a, b in zip(values[::2], values[1::2])]
        store(f.arithmetic("fadd", values[0], load(there)), there)

    each(begin)
    for start, until, count in (("0", whole, ROWS), (whole, rows, 1)):
        with f.loop(start, until, count) as row:
            each(partial(add, row, count))
    f.restore_denormals(flags)
    f.finish()
    return module.text()
