"""Receives the plan of a loop, hands on Triton source: whole sequences in one launch, the weights resident.

A program owns some rows, all units of them and all turns of the loop, so nobody waits for anybody. What a turn hands to
the next one stays in registers, and so do the weights, as far as the compiler finds room:

    load weights, vectors, first states
    for each turn of the loop
        load what it reads of sequences, or the next turn does
        for each stage: products and equations, then the stores
    store what was carried
"""

from __future__ import annotations

import re

from ...compiler import Cell
from ...compiler.expr import Expr
from ..plan import Loop, Pass
from .maths import FUNCTIONS
from .source import EDGE_LINES, Writer, name_of, padded, sequence_strides


def resident_values(loop: Loop) -> int:
    """Weights that a program keeps at hand, with their padding."""
    return sum(padded(loop.sizes[m.dims[0]]) * padded(loop.sizes[m.dims[1]]) for m, _ in _factors(loop))


def longest_operand(loop: Loop) -> int:
    """Values that a product of the loop adds up, with their padding."""
    return max((padded(loop.sizes[m.dims[1 if flag == "N" else 0]]) for m, flag in _factors(loop)), default=0)


def write(loop: Loop, cell: Cell, accurate: str, ahead: bool) -> str:
    """The source of `run`, which computes in the type `accurate`; `signature` says what it takes.

    Memory takes as long as a turn of halves does, so with `ahead` a turn asks for what the next one reads of sequences.
    """
    return Resident(loop, cell, accurate, ahead).text()


def signature(loop: Loop) -> tuple[list[str], list[str], list[str]]:
    """What `run` takes behind (offsets, sizes, turns, first, rows): buffers (then the strides of the sequences among
    them), the edges of some, matrices."""
    edges = [n for n in loop.buffers if any(p.edge and p.buffer == n for p in loop.reads.values())]
    return list(loop.buffers), edges, sorted({m.attr[0] for m, _ in _factors(loop)})


def _factors(loop: Loop) -> dict[tuple[Expr, str], None]:
    """(matrix, "N" or "T") of all products in the loop."""
    return {(m, flag): None for step in loop.passes for e in step.stage.products
            for m, flag in zip(e.args[::2], e.attr)}


class Resident(Writer):
    """Writes `run`, which holds the weights and goes through all turns."""

    further: tuple[str, ...] = ()  # what `run` takes behind all that
    constants: tuple[str, ...] = ("FROM_END", "ROWS", "PRECISION")

    def __init__(self, loop: Loop, cell: Cell, accurate: str, ahead: bool):
        super().__init__(loop, cell, accurate)
        self.ahead = ahead
        self.matrices: dict[tuple, str] = {}
        self.carriers: dict[tuple[str, int], list[str]] = {}  # where it is stored -> variables that carry it on
        self.updates: dict[str, str] = {}  # such a variable -> its value for the next turn
        self.computed_here = {e for step in loop.passes for e in step.stage.nodes}
        self.leaf_lines: list[str] = []  # they read what a turn finds in sequences
        self.leaves: list[str] = []  # the variables that hold it

    def text(self) -> str:
        buffers, edges, families = signature(self.loop)
        names = ["offsets", "sizes", "turns", "first", "rows", *map(name_of, buffers),
                 *sequence_strides(self.loop),
                 *(f"{name_of(n)}_edge" for n in edges),
                 *(name_of(f"w_{n}") for n in families), *self.further,
                 *(f"{n}: tl.constexpr" for n in self.constants)]
        self.indices()
        carried = self._carried()
        before = self.before_turns()
        for step in self.loop.passes:
            self.stage(step)
        body = [f"        {line}" for line in self.lines]
        body += [f"        {name} = tl.where(live, {value}, {name})" for name, value in self.updates.items()]
        body += [f"        {line}" for line in self.after_turn()]
        begun, position = self._positions()
        turn = [*(f"    {line}" for line in begun), "    for turn in range(turns):",
                *(f"        {line}" for line in position)]
        after = [f"    {self.store(e, self.loop.reads[e], self.env[e], 'there')}" for e in carried]
        lines = [f"    {line}" for line in (*self.rows(), *self.outside, *before)]
        text = "\n".join([f"def run({', '.join(names)}):", *lines, *turn, *body, *after])
        # One kernel for all T and B: Triton would make others where a number is 1 or a multiple of 16.
        head = '@triton.jit(do_not_specialize=["turns", "first", "rows"])'
        return f"import triton\nimport triton.language as tl\n\n\n{self.functions()}\n\n{head}\n{text}\n"

    def functions(self) -> str:
        return FUNCTIONS

    def rows(self) -> list[str]:
        """Which rows a program has."""
        return ["row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]",
                "there = row < rows"]

    def before_turns(self) -> list[str]:
        return []

    def after_turn(self) -> list[str]:
        return []

    def read(self, e: Expr) -> str:
        if self.loop.buffers[self.loop.reads[e].buffer].kind != "sequence" or e in self.computed_here:
            return super().read(e)
        lines, self.lines = self.lines, []
        name = super().read(e)
        self.leaf_lines += [line.replace(f".to({self.accurate})", "") for line in self.lines]
        self.lines = lines
        self.leaves.append(name)
        return name

    def _positions(self) -> tuple[list[str], list[str]]:
        """Where a turn is, and what it reads of sequences: lines before the first one, and lines at its beginning."""
        lines = ["begin = tl.load(offsets + t)", "live = row < tl.load(sizes + t)", "here = begin + row"]
        if any(p.edge and p.turn != -1 for p in self.loop.reads.values()):
            lines += EDGE_LINES
        assigned = [line.partition(" = ")[0] for line in (*lines, *self.leaf_lines)]
        widened = [f"{name} = {name}.to({self.accurate})" for name in self.leaves]
        if not self.ahead:
            return [], ["t = first - turn if FROM_END else first + turn", *lines, *self.leaf_lines, *widened]
        of_next = re.compile(rf"\b({'|'.join(['t', *assigned])})\b")
        lines = [of_next.sub(r"\1_next", line) for line in (*lines, *self.leaf_lines)]
        return ["t_next = first", *lines], [*(f"{name} = {name}_next" for name in ("live", "here")),
                                            *(line.replace(".to(", "_next.to(") for line in widened),
                                            "following = tl.minimum(turn + 1, turns - 1)",
                                            "t_next = first - following if FROM_END else first + following", *lines]

    def _carried(self) -> list[Expr]:
        """Begin the variables that go from turn to turn; returns those whose last values belong in memory."""
        stored = {(p.buffer, p.offset) for step in self.loop.passes for _, p in step.stores}
        last = []
        for e, place in self.loop.reads.items():
            buffer = self.loop.buffers.get(place.buffer)
            rows = buffer is not None and buffer.kind == "rows" and (place.buffer, place.offset) in stored
            if buffer is None or not (rows or place.turn == -1):
                continue
            name = self.fresh(e)
            if rows or place.edge:
                source = name_of(place.buffer) if rows else f"{name_of(place.buffer)}_edge"
                self.outside.append(f"{name} = {self.load(source, 'row', buffer.width, place, e, 'there')}")
            else:
                self.outside.append(f"{name} = {self.zero(e)}  # nothing to multiply in the first turn")
            if rows:
                last.append(e)
            self.carriers.setdefault((place.buffer, place.offset), []).append(name)
            self.env[e] = name
        return last

    def stage(self, step: Pass) -> None:
        for e in step.stage.nodes:
            value, name = self.computed(e), self.fresh()
            self.lines.append(f"{name} = {value}")
            self.env[e] = name
        stores = [(e, place, self.value(e)) for e, place in step.stores]
        if any(place in self.loaded for _, place, _ in stores):
            self.lines.append("tl.debug_barrier()  # what was read there has been read by all")
        for e, place, value in stores:
            for variable in self.carriers.get((place.buffer, place.offset), ()):
                self.updates[variable] = value
            if self.loop.buffers[place.buffer].kind == "sequence":
                self.lines.append(self.store(e, place, value, "live"))

    def product(self, e: Expr) -> str:
        """A sum of products, each added to the one before."""
        total = self.zero(e)
        for m, v, flag in zip(e.args[::2], e.args[1::2], e.attr):
            depth = self.loop.sizes[m.dims[1 if flag == "N" else 0]]
            for operand, begin, end in self.operands(v, padded(depth)):
                matrix = self._matrix(m, flag, begin, end)
                total = (f"tl.dot({operand}.to({matrix}.dtype), {matrix}, {total}, input_precision=PRECISION, "
                         f"out_dtype={self.accurate})")
        return total

    def operands(self, v: Expr, depth: int) -> list[tuple[str, int, int]]:
        """What is multiplied, in pieces: a value, and the units that it holds."""
        return [(self.whole(v), 0, depth)]

    def sum(self, e: Expr) -> str:
        return f"tl.sum({self.whole(e.args[0])}, 1)[:, None]"

    def _matrix(self, m: Expr, flag: str, begin: int, end: int) -> str:
        """The variable of some rows of a matrix, [what is multiplied, what comes out], loaded before the loop."""
        if (m, flag, begin) not in self.matrices:
            family, gate = m.attr
            rows, columns = (self.loop.sizes[d] for d in m.dims)
            at_gate = self.cell.families[family].gates.index(gate) * rows * columns
            part = str(begin) if begin else ""
            name = name_of("_".join(filter(None, (family, gate, "transposed" * (flag == "N"), part))))
            k, n = (columns, rows) if flag == "N" else (rows, columns)
            block = self.block(n)
            first = self.first_unit(block)
            deep, wide = f"tl.arange({begin}, {end})[:, None]", f"{first}tl.arange(0, {block})[None, :]"
            wide = f"({wide})" if first else wide
            at = f"{wide} * {columns} + {deep}" if flag == "N" else f"{deep} * {columns} + {wide}"
            mask = f"({deep} < {k}) & ({wide} < {n})"
            self.outside.append(f"{name} = tl.load(w_{family} + {at_gate} + {at}, mask={mask}, other=0.0)")
            self.matrices[m, flag, begin] = name
        return self.matrices[m, flag, begin]
