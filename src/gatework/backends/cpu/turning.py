"""Turns a matrix of bfloat16 over, on several threads: products over all steps of a sequence want one side that way."""

from __future__ import annotations

import ctypes
from functools import cache, partial

from ..batch import share
from . import jit, threads
from .ir import Function, Module
from .panels import turned_over
from .target import Target

SQUARE = 32  # rows and columns that are turned over on registers
COLUMNS = 4  # squares side by side: a row is visited for so many lines of memory
SIZE = 2     # bytes
WORTH_A_THREAD = 1 << 17


def turn_over(source: int, target: int, rows: int, columns: int, machine: Target, most_threads: int) -> None:
    """Write matrix [rows, columns] at an address to another as [columns, rows]: whole squares of 32 only."""
    words = (ctypes.c_int64 * 4)(source, target, rows, columns)
    squares = columns // SQUARE
    parts = share(squares, min(most_threads, 1 + rows * columns // WORTH_A_THREAD))
    threads.run(_function(machine), ctypes.addressof(words), [(*part, 0, 0) for part in parts])


@cache
def _function(machine: Target):
    code = jit.load("turning", partial(text, machine), machine)
    return code.function("turn", *threads.KINDS)


def write_turning(module: Module) -> None:
    """turn: a square of as many rows and values as a vector has lanes, with zeros for what is not valid."""
    f = Function(module, "turn", ["ptr %source", "i64 %stride", "i64 %rows", "i64 %columns", "ptr %target",
                                  "i64 %apart"], separate=True)
    mask, rows = f.first_lanes("%columns"), []
    for k in range(module.lanes):
        valid = f.where(f.value(f"icmp sgt i64 %rows, {k}"), mask)
        rows.append(f.load_where(f.at("%source", f.integer("mul", "%stride", k)), valid))
    for k, row in enumerate(turned_over(f, rows)):
        f.store(row, f.at("%target", f.integer("mul", "%apart", k)))
    f.finish()


def text(machine: Target) -> str:
    """The LLVM IR: squares of columns from %first on, %rows of them."""
    module = Module(machine, 4)
    f = Function(module, "turn", threads.SIGNATURE, internal=False)
    source, target = (f.load_word("%arguments", k, "ptr") for k in (0, 1))
    rows, columns = (f.load_word("%arguments", k) for k in (2, 3))
    from_row, to_row = f.integer("mul", columns, SIZE), f.integer("mul", rows, SIZE)
    whole = f.integer("and", rows, -SQUARE)
    end = f.integer("add", "%first", "%rows")
    with f.loop("%first", end, COLUMNS) as group, f.loop("0", whole, SQUARE) as row:
        until = f.smaller(f.integer("add", group, COLUMNS), end)
        with f.loop(group, until) as square:
            column = f.integer("mul", square, SQUARE)
            corner = f.at(f.at(source, f.integer("mul", row, from_row)), f.integer("mul", column, SIZE))
            out = f.at(f.at(target, f.integer("mul", column, to_row)), f.integer("mul", row, SIZE))
            # A vector is 16 pairs of neighbours. Pairs are turned over as one, then torn apart.
            halves = [turned_over(f, [f.load(f.at(corner, f.integer("mul", from_row, half * module.lanes + k)))
                                      for k in range(module.lanes)]) for half in range(2)]
            for pair, (low, high) in enumerate(zip(*halves)):
                words = [f.value(f"bitcast {module.vector} {v} to <{SQUARE} x i16>") for v in (low, high)]
                for k in range(2):
                    order = ", ".join(f"i32 {2 * n + k}" for n in range(SQUARE))
                    line = f.value(f"shufflevector <{SQUARE} x i16> {words[0]}, <{SQUARE} x i16> {words[1]}, "
                                   f"<{SQUARE} x i32> <{order}>")
                    place = f.at(out, f.integer("mul", to_row, 2 * pair + k))
                    f.line(f"store <{SQUARE} x i16> {line}, ptr {place}, align {SIZE}")
    f.finish()
    return module.text()
