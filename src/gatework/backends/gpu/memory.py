"""Receives a loop, hands on what its programs keep in memory beside the sequences, and where.

What a matrix multiplies is needed whole, so each program writes its units of it to memory, where all read it; and so
with sums over features, of which each adds up a part. Where turns are launched one by one, what goes from turn to turn
lies there too.
"""

from __future__ import annotations

from ...compiler.expr import Expr
from ..plan import Loop

DEPTH = 64  # values of an operand that are multiplied at once; operands and matrices are filled up to multiples of it


def filled(size: int) -> int:
    return -(-size // DEPTH) * DEPTH


def side_by_side(sizes: dict) -> tuple[dict, int]:
    """Where vectors begin that lie behind each other, and their length in all."""
    begin, end = {}, 0
    for key, size in sizes.items():
        begin[key], end = end, end + size
    return begin, end


def handed(loop: Loop) -> dict[object, Expr]:
    """What is handed over: values of this turn, and where the turn before stored something -> a value that has it."""
    stored = {(p.buffer, p.offset) for step in loop.passes for _, p in step.stores}
    computed = {e for step in loop.passes for e in step.stage.nodes}
    found: dict[object, Expr] = {}
    for v in (v for step in loop.passes for e in step.stage.products for v in e.args[1::2]):
        if v in computed:
            found[v] = v
        elif (place := loop.reads[v]).turn == -1 or loop.buffers[place.buffer].kind == "rows":
            if (place.buffer, place.offset) in stored:
                found[place.buffer, place.offset] = v
    return found


def sums(loop: Loop) -> list[Expr]:
    """Sums over features, of which each program adds up a part."""
    return [e for step in loop.passes for e in step.stage.sums]


def carried(loop: Loop) -> dict[tuple[str, int], int]:
    """What equations of a turn read of the one before, and rows that it leaves: (buffer, offset) -> the size."""
    read = {a for step in loop.passes for e in step.stage.nodes if e.op != "contract" for a in e.args}
    places = [p for e, p in loop.reads.items() if p.turn == -1 and e in read]
    places += [p for step in loop.passes for _, p in step.stores if loop.buffers[p.buffer].kind == "rows"]
    return {(p.buffer, p.offset): p.size for p in places if p.buffer in loop.buffers}


def matrices(loop: Loop) -> dict[Expr, int]:
    """Matrices of the loop, those of a family in a row -> the values that each has with what fills it up."""
    found = {m for step in loop.passes for e in step.stage.products for m in e.args[::2]}
    return {m: filled(loop.sizes[m.dims[0]]) * filled(loop.sizes[m.dims[1]])
            for m in sorted(found, key=lambda m: (m.attr[0], m.born))}


class Layout:
    """Where all of that lies, of loops that run step by step: values of a row, and those of the matrices."""

    def __init__(self, loop: Loop):
        self.handed, self.carried, self.matrices, self.sums = handed(loop), carried(loop), matrices(loop), sums(loop)
        self.handed_at, self.handed_width = side_by_side({k: filled(loop.size(v)) for k, v in self.handed.items()})
        self.carried_at, self.carried_width = side_by_side(self.carried)
        self.matrix_at, self.matrices_size = side_by_side(self.matrices)
