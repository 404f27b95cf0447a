"""Receives the plan of a loop, hands on Triton source: one kernel for each stage of a turn, for weights of any size.

Matrix products are made outside, by the library that torch calls; a kernel reads their sums and evaluates what they
make possible, for some rows and all units of them. What a later stage needs goes through scratch, what the next turn
needs through rows of which there are two, those of the turn before and those of this one:

    for each turn of the loop
        for each stage
            sums = operands @ weights, for all its products at once
            stage(sums): loads and equations, then the stores
"""

from __future__ import annotations

from ...compiler import Cell
from ...compiler.expr import Expr
from ..plan import Loop, Pass, Place
from .maths import FUNCTIONS
from .source import EDGE_LINES, Writer, name_of, sequence_strides


def carried(loop: Loop) -> dict[tuple[str, int], tuple[Place, Expr]]:
    """What a turn reads of the turn before: (buffer, offset) -> its place, and one of the values that lie there."""
    return {(p.buffer, p.offset): (p, e) for e, p in loop.reads.items() if p.turn == -1}


def edges(loop: Loop) -> list[str]:
    """Sequences for which something stands in at a row's edge, but those of the turn before: their rows begin so."""
    return [n for n in loop.buffers if any(p.edge and p.buffer == n and p.turn != -1 for p in loop.reads.values())]


def write(loop: Loop, cell: Cell, accurate: str = "float32") -> str:
    """The source of `stage_0`, `stage_1`, ..., which compute in the type `accurate`.

    Each takes (offsets, sizes, t, buffers, strides of the sequences, edges, rows of the turn before and of this one for
    every one of `carried`, sums, scratch), and FROM_END and ROWS.
    """
    stages = [_Stage(loop, cell, accurate).text(number, step) for number, step in enumerate(loop.passes)]
    return "\n\n".join([f"import triton\nimport triton.language as tl\n\n\n{FUNCTIONS}", *stages])


class _Stage(Writer):
    """Writes the kernel of one stage."""

    def text(self, number: int, step: Pass) -> str:
        loop = self.loop
        self.products = {e: k for k, e in enumerate(step.stage.products)}
        self.carriers = {key: name_of(f"{key[0]}_{key[1]}") for key in carried(loop)}
        names = ["offsets", "sizes", "t", *map(name_of, loop.buffers), *sequence_strides(loop),
                 *(f"{name_of(n)}_edge" for n in edges(loop)),
                 *(f"{when}_{name}" for name in self.carriers.values() for when in ("before", "after")), "sums",
                 "scratch", "FROM_END: tl.constexpr", "ROWS: tl.constexpr"]
        self.indices()
        self._equations(step)
        head = ["row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]",
                "begin = tl.load(offsets + t)",
                "live = row < tl.load(sizes + t)",
                "there = live",
                "here = begin + row"]
        if edges(loop):
            head += EDGE_LINES
        lines = [f"    {line}" for line in (*head, *self.outside, *self.lines)]
        # Triton would make a kernel of its own for a t that is 1 or a multiple of 16.
        head = ['@triton.jit(do_not_specialize=["t"])', f"def stage_{number}({', '.join(names)}):"]
        return "\n".join([*head, *lines, ""])

    def _equations(self, step: Pass) -> None:
        loop = self.loop
        for e in step.stage.nodes:
            value, name = self.computed(e), self.fresh()
            self.lines.append(f"{name} = {value}")
            self.env[e] = name
        stores = [(place, e, self.value(e)) for e, place in step.stores]
        kept = [(e, self.value(e)) for e in step.keep]
        kept += [(e, f"tl.sum({self.whole(e.args[0])}, 1)[:, None]") for e in step.stage.sums]
        if any(place in self.loaded for place, _, _ in stores):
            self.lines.append("tl.debug_barrier()  # what was read there has been read by all")
        for place, e, value in stores:
            self.lines.append(self.store(e, place, value, "live"))
            if (name := self.carriers.get((place.buffer, place.offset))) is not None:
                self.lines.append(self._to_rows(f"after_{name}", loop.size(e), 0, e, value))
        self.lines += [self._to_rows("scratch", loop.scratch_row, loop.scratch[e], e, value) for e, value in kept]

    def _rows(self, base: str, stride: int, offset: int, e: Expr) -> str:
        return self.pointer(base, "row", stride, Place(base, offset, self.loop.size(e)), e)

    def _to_rows(self, base: str, stride: int, offset: int, e: Expr, value: str) -> str:
        return f"tl.store({self._rows(base, stride, offset, e)}, {value}, mask=live{self.in_range(e)})"

    def _of_rows(self, base: str, stride: int, offset: int, e: Expr) -> str:
        return f"tl.load({self._rows(base, stride, offset, e)}, mask=live{self.in_range(e)}, other=0.0)"

    def read(self, e: Expr) -> str:
        place = self.loop.reads.get(e)
        if place is not None and place.turn != -1:
            if self.loop.buffers[place.buffer].kind == "rows":
                self.loaded.add(place)
            return super().read(e)
        name = self.fresh(e if e.is_leaf else None)
        if place is None:
            source = self._of_rows("scratch", self.loop.scratch_row, self.loop.scratch[e], e)
        else:
            key = place.buffer, place.offset
            source = self._of_rows(f"before_{self.carriers[key]}", self.loop.size(e), 0, e)
        self.lines.append(f"{name} = {source}")
        return name

    def product(self, e: Expr) -> str:
        width = self.loop.size(e)
        return self._of_rows("sums", len(self.products) * width, self.products[e] * width, e)

    def sum(self, e: Expr) -> str:
        return self._of_rows("scratch", self.loop.scratch_row, self.loop.scratch[e], e)
