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
from ..plan import Loop, Pass, Place
from .maths import FUNCTIONS
from .memory import sums
from .source import EDGE_LINES, Writer, name_of, padded, sequence_strides, taken_apart


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


def _joined(values: list[str], block: int) -> str:
    whole = [f"tl.broadcast_to({value}, [ROWS, {block}])" for value in values]
    if len(values) == 2:
        return f"tl.join({whole[0]}, {whole[1]})"
    a, b, c, d = whole
    return f"tl.join(tl.join({a}, {c}), tl.join({b}, {d})).reshape([ROWS, {block}, 4])"


class Resident(Writer):
    """Writes `run`, which holds the weights and goes through all turns."""

    further: tuple[str, ...] = ()  # what `run` takes behind all that
    constants: tuple[str, ...] = ("FROM_END", "ROWS", "PRECISION")

    def __init__(self, loop: Loop, cell: Cell, accurate: str, ahead: bool):
        super().__init__(loop, cell, accurate)
        # Normalising loops need their registers themselves: what the next turn reads would be spilled.
        self.ahead = ahead and not sums(loop)
        self.matrices: dict[tuple, str] = {}
        self.carriers: dict[tuple[str, int], list[str]] = {}  # where it is stored -> variables that carry it on
        self.updates: dict[str, str] = {}  # such a variable -> its value for the next turn
        self.computed_here = {e for step in loop.passes for e in step.stage.nodes}
        self.leaves: dict[str, tuple[Expr, list[str]]] = {}  # what a turn finds in sequences, and how it is read

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
        place = self.loop.reads[e]
        if self.loop.buffers[place.buffer].kind != "sequence" or e in self.computed_here:
            return super().read(e)
        lines, self.lines = self.lines, []
        name = super().read(e)
        self.leaves[name] = e, [line.replace(f".to({self.accurate})", "") for line in self.lines]
        self.lines = lines
        return name

    def _positions(self) -> tuple[list[str], list[str]]:
        """Where a turn is, and what it reads of sequences: lines before the first one, and lines at its beginning."""
        lines = ["begin = tl.load(offsets + t)", "live = row < tl.load(sizes + t)", "here = begin + row"]
        if any(p.edge and p.turn != -1 for p in self.loop.reads.values()):
            lines += EDGE_LINES
        suffix, ready = "_next" if self.ahead else "", []
        for run in self._runs([(name, e, self.loop.reads[e]) for name, (e, _) in self.leaves.items()]):
            name, e, place = run[0]
            whole = f"{name}{suffix}.to({self.accurate})"
            if len(run) == 1:
                lines += self.leaves[name][1]
                ready.append(f"{name} = {whole}")
            else:
                at, mask = self._of_run(place, e, len(run))
                lines.append(f"{name} = tl.load({at}, mask={mask}, other=0.0)")
                ready += taken_apart([name for name, _, _ in run], whole, self.block(place.size))
        if not self.ahead:
            return [], ["t = first - turn if FROM_END else first + turn", *lines, *ready]
        of_next = re.compile(rf"\b({'|'.join(['t', *(line.partition(' = ')[0] for line in lines)])})\b")
        lines = [of_next.sub(r"\1_next", line) for line in lines]
        return ["t_next = first", *lines], ["live = live_next", "here = here_next", *ready,
                                            "following = tl.minimum(turn + 1, turns - 1)",
                                            "t_next = first - following if FROM_END else first + following", *lines]

    def _runs(self, held: list[tuple[str, Expr, Place]]) -> list[list[tuple[str, Expr, Place]]]:
        """Variables whose places follow each other, by fours and by twos. Between products of halves and memory the
        compiler lays values out anew, with two barriers: for a run once, as that takes a turn its time."""
        runs: list[list[tuple[str, Expr, Place]]] = []
        after = None
        for one in sorted(held, key=lambda one: (one[2].buffer, one[2].offset)):
            _, e, place = one
            alone = not self.ahead or place.edge or place.turn or not e.dims
            if not alone and after == (place.buffer, place.offset, e.dims):
                runs[-1].append(one)
            else:
                runs.append([one])
            after = None if alone else (place.buffer, place.offset + place.size, e.dims)
        fours = [run[k:k + 4] for run in runs for k in range(0, len(run), 4)]
        return [part for run in fours for part in ([run[:2], run[2:]] if len(run) == 3 else [run])]

    def _of_run(self, place: Place, e: Expr, count: int) -> tuple[str, str]:
        """Where so many values lie in a step, [ROWS, units, count], and which of them are there."""
        name, unit = name_of(place.buffer), f"u_{e.dims[0]}[:, :, None]"
        number = f"tl.arange(0, {count})[None, None, :]"
        at = f"{name} + (here * {name}_stride)[:, :, None] + {place.offset} + {number} * {place.size} + {unit}"
        return at, f"live[:, :, None] & in_range_{e.dims[0]}[:, :, None]"

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
        for _, place, value in stores:
            for variable in self.carriers.get((place.buffer, place.offset), ()):
                self.updates[variable] = value
        kept = [(value, e, p) for e, p, value in stores if self.loop.buffers[p.buffer].kind == "sequence"]
        for run in self._runs(kept):
            value, e, place = run[0]
            if len(run) == 1:
                self.lines.append(self.store(e, place, value, "live"))
            else:
                at, mask = self._of_run(place, e, len(run))
                whole = _joined([value for value, _, _ in run], self.block(place.size))
                self.lines.append(f"tl.store({at}, {whole}, mask={mask})")

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
