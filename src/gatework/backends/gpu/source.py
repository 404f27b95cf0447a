"""Receives the plan of a loop, hands on Triton source: whole sequences in one launch, the weights resident.

A program owns some rows, all units of them and all turns of the loop, so nobody waits for anybody. What a turn hands to
the next one stays in registers, and so do the weights, as far as the compiler finds room:

    load weights, vectors, first states
    for each turn of the loop
        for each stage: loads, products and equations, then the stores
    store what was carried
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import count

from ...compiler import Cell
from ...compiler.expr import Expr, number
from ..plan import Loop, Pass, Place
from .maths import FUNCTIONS, OPERATIONS

LEAST = 16  # units and rows of a matrix product, at the least


def padded(size: int) -> int:
    """Units of a block: Triton's are powers of two."""
    return max(LEAST, 1 << (size - 1).bit_length())


def resident_values(loop: Loop) -> int:
    """Weights that a program keeps at hand, with their padding."""
    return sum(padded(loop.sizes[m.dims[0]]) * padded(loop.sizes[m.dims[1]]) for m, _ in _factors(loop))


def longest_operand(loop: Loop) -> int:
    """Values that a product of the loop adds up, with their padding."""
    return max((padded(loop.sizes[m.dims[1 if flag == "N" else 0]]) for m, flag in _factors(loop)), default=0)


def write(loop: Loop, cell: Cell, accurate: str = "float32") -> str:
    """The source of `run`, which computes in the type `accurate`; `signature` says what it takes."""
    return _Resident(loop, cell, accurate).text()


def signature(loop: Loop) -> tuple[list[str], list[str], list[str]]:
    """What `run` takes behind (offsets, sizes, turns, first, rows): buffers (then the strides of the sequences among
    them), the edges of some, matrices."""
    edges = [n for n in loop.buffers if any(p.edge and p.buffer == n for p in loop.reads.values())]
    return list(loop.buffers), edges, sorted({m.attr[0] for m, _ in _factors(loop)})


def _factors(loop: Loop) -> dict[tuple[Expr, str], None]:
    """(matrix, "N" or "T") of all products in the loop."""
    return {(m, flag): None for step in loop.passes for e in step.stage.products
            for m, flag in zip(e.args[::2], e.attr)}


def name_of(buffer: str) -> str:
    """A buffer as a name of Python: inputs that no equation names, such as resets, have a dot in theirs.

    The source is run, and a cell may come out of a file: what is no name must not get into it.
    """
    name = buffer.replace(".", "_")
    if not name.isidentifier():
        raise ValueError(f"{buffer!r} is no name that a kernel can have")
    return name


# Which rows begin or end in a turn.
EDGE_LINES = ["starts = here == row  # the step is the first of all",
              "ends = row >= tl.load(sizes + t + 1)  # the row has no step after this one",
              "first_turn = ends if FROM_END else starts",
              "last_turn = starts if FROM_END else ends"]


def sequence_strides(loop: Loop) -> list[str]:
    return [f"{name_of(n)}_stride" for n, b in loop.buffers.items() if b.kind == "sequence"]


class Writer(ABC):
    """Writes equations line by line; `env` maps values to the names of their variables."""

    def __init__(self, loop: Loop, cell: Cell, accurate: str):
        self.loop, self.cell, self.accurate, self.numbers = loop, cell, f"tl.{accurate}", count()
        self.lines: list[str] = []
        self.outside: list[str] = []     # lines before them
        self.env: dict[Expr, str] = {}
        self.loaded: set[Place] = set()

    def indices(self) -> None:
        for name, size in sorted({(name_of(e.dims[0]), self.loop.size(e)) for e in self._all() if e.dims}):
            block = padded(size)
            self.outside += [f"u_{name} = tl.arange(0, {block})[None, :]",
                             f"in_range_{name} = u_{name} < {size}",
                             f"zero_{name} = tl.zeros([ROWS, {block}], {self.accurate})"]
        self.outside.append(f"zero = tl.zeros([ROWS, 1], {self.accurate})")

    def _all(self) -> list[Expr]:
        found = list(self.loop.reads)
        for step in self.loop.passes:
            found += [*step.stage.nodes, *(a for e in step.stage.nodes for a in e.args if len(a.dims) < 2)]
        return found

    def zero(self, e: Expr) -> str:
        return f"zero_{e.dims[0]}" if e.dims else "zero"

    # ---- addresses

    def in_range(self, e: Expr) -> str:
        return f" & in_range_{e.dims[0]}" if e.dims else ""

    def pointer(self, base: str, row: str, stride: object, place: Place, e: Expr) -> str:
        """The values of a place in some rows; `base` is a name, with a suffix perhaps."""
        unit = f" + u_{e.dims[0]}" if e.dims else ""
        offset = f" + {place.offset}" if place.offset else ""
        return f"{base} + {row} * {stride}{offset}{unit}"

    def load(self, base: str, row: str, stride: object, place: Place, e: Expr, mask: str) -> str:
        return (f"tl.load({self.pointer(base, row, stride, place, e)}, mask={mask}{self.in_range(e)}, other=0.0)"
                f".to({self.accurate})")

    def store(self, e: Expr, place: Place, value: str, mask: str) -> str:
        buffer = self.loop.buffers[place.buffer]
        row, stride = ("row", buffer.width) if buffer.kind == "rows" else ("here", f"{name_of(place.buffer)}_stride")
        at = self.pointer(name_of(place.buffer), row, stride, place, e)
        return f"tl.store({at}, {value}, mask={mask}{self.in_range(e)})"

    def read(self, e: Expr) -> str:
        """A leaf, or a value that lies in memory."""
        place = self.loop.reads[e]
        buffer, name = self.loop.buffers[place.buffer], self.fresh(e if e.is_leaf else None)
        if buffer.kind == "vector":
            at = f"{name_of(place.buffer)} + {place.offset}"
            self.outside.append(f"{name} = tl.load({at} + u_{e.dims[0]}, mask=in_range_{e.dims[0]}, other=0.0)"
                                f".to({self.accurate})" if e.dims else
                                f"{name} = tl.load({at}).to({self.accurate}) + zero")
            return name
        if buffer.kind == "rows":
            self.outside.append(f"{name} = {self.load(name_of(place.buffer), 'row', buffer.width, place, e, 'there')}")
            return name
        stride, row, mask = f"{name_of(place.buffer)}_stride", "here", "live"
        if place.turn:
            row = "(tl.load(offsets + t + (-1 if FROM_END else 1)) + row)"
        if place.edge:
            edge = f"{place.edge}_turn"
            here = self.load(name_of(place.buffer), row, stride, place, e, f"live & ({edge} == 0)")
            there = self.load(f"{name_of(place.buffer)}_edge", "row", buffer.width, place, e, f"live & {edge}")
            self.lines.append(f"{name} = tl.where({edge}, {there}, {here})")
        else:
            self.lines.append(f"{name} = {self.load(name_of(place.buffer), row, stride, place, e, mask)}")
            self.loaded.add(place)
        return name

    # ---- values

    def value(self, e: Expr) -> str:
        if e in self.env:
            return self.env[e]
        if e.op in ("const", "size"):
            value = number(e) if e.op == "const" else float(self.loop.sizes[e.attr])
            name = self.fresh()
            written = repr(value) if math.isfinite(value) else f'float("{value}")'
            self.outside.append(f"{name} = tl.full([1, 1], {written}, {self.accurate})")
            self.env[e] = name
        else:
            self.env[e] = self.read(e)
        return self.env[e]

    def fresh(self, e: Expr | None = None) -> str:
        """A new variable, named as the leaf that it holds where there is one."""
        number = next(self.numbers)
        words = [e.attr] if e is not None and isinstance(e.attr, str) else e.attr if e is not None and e.attr else []
        return "_".join([*(name_of(w) for w in words if w), str(number)]) if words else f"v{number}"

    def computed(self, e: Expr) -> str:
        if e.op == "contract":
            return self.product(e)
        if e.op == "sum":
            return self.sum(e)
        args = [self.value(a) for a in e.args]
        return OPERATIONS[e.op].format(*args)

    def whole(self, e: Expr) -> str:
        """A vector with a value for every row, and 0 for the units that fill up its block."""
        whole = f"{self.value(e)} + {self.zero(e)}"
        return f"tl.where(in_range_{e.dims[0]}, {whole}, 0.0)" if e.dims else whole

    @abstractmethod
    def product(self, e: Expr) -> str:
        """A sum of products."""

    @abstractmethod
    def sum(self, e: Expr) -> str:
        """A sum over the features of a value."""


class _Resident(Writer):
    """Writes `run`, which holds the weights and goes through all turns."""

    def __init__(self, loop: Loop, cell: Cell, accurate: str):
        super().__init__(loop, cell, accurate)
        self.matrices: dict[tuple[Expr, str], str] = {}
        self.carriers: dict[tuple[str, int], list[str]] = {}  # where it is stored -> variables that carry it on
        self.updates: dict[str, str] = {}  # such a variable -> its value for the next turn

    def text(self) -> str:
        buffers, edges, families = signature(self.loop)
        names = ["offsets", "sizes", "turns", "first", "rows", *map(name_of, buffers),
                 *sequence_strides(self.loop),
                 *(f"{name_of(n)}_edge" for n in edges),
                 *(name_of(f"w_{n}") for n in families),
                 *(f"{n}: tl.constexpr" for n in ("FROM_END", "ROWS", "PRECISION"))]
        self.indices()
        carried = self._carried()
        for step in self.loop.passes:
            self._stage(step)
        body = [f"        {line}" for line in self.lines]
        body += [f"        {name} = tl.where(live, {value}, {name})" for name, value in self.updates.items()]
        head = ["    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]",
                "    there = row < rows"]
        turn = ["    for turn in range(turns):",
                "        t = first - turn if FROM_END else first + turn",
                "        begin = tl.load(offsets + t)",
                "        live = row < tl.load(sizes + t)",
                "        here = begin + row"]
        if any(p.edge and p.turn != -1 for p in self.loop.reads.values()):
            turn += [f"        {line}" for line in EDGE_LINES]
        after = [f"    {self.store(e, self.loop.reads[e], self.env[e], 'there')}" for e in carried]
        lines = [f"    {line}" for line in self.outside]
        text = "\n".join([f"def run({', '.join(names)}):", *head, *lines, *turn, *body, *after])
        # One kernel for all T and B: Triton would make others where a number is 1 or a multiple of 16.
        head = '@triton.jit(do_not_specialize=["turns", "first", "rows"])'
        return f"import triton\nimport triton.language as tl\n\n\n{FUNCTIONS}\n\n{head}\n{text}\n"

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

    def _stage(self, step: Pass) -> None:
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
            matrix = self._matrix(m, flag)
            total = (f"tl.dot({self.whole(v)}.to({matrix}.dtype), {matrix}, {total}, input_precision=PRECISION, "
                     f"out_dtype={self.accurate})")
        return total

    def sum(self, e: Expr) -> str:
        return f"tl.sum({self.whole(e.args[0])}, 1)[:, None]"

    def _matrix(self, m: Expr, flag: str) -> str:
        """The variable of a matrix, [what is multiplied, what comes out], loaded before the loop."""
        if (m, flag) not in self.matrices:
            family, gate = m.attr
            rows, columns = (self.loop.sizes[d] for d in m.dims)
            begin = self.cell.families[family].gates.index(gate) * rows * columns
            name = name_of("_".join(filter(None, (family, gate, "transposed" * (flag == "N")))))
            k, n = (columns, rows) if flag == "N" else (rows, columns)
            deep, wide = f"tl.arange(0, {padded(k)})[:, None]", f"tl.arange(0, {padded(n)})[None, :]"
            at = f"{wide} * {columns} + {deep}" if flag == "N" else f"{deep} * {columns} + {wide}"
            self.outside.append(f"{name} = tl.load(w_{family} + {begin} + {at}, mask=({deep} < {k}) & ({wide} < {n}), "
                                "other=0.0)")
            self.matrices[m, flag] = name
        return self.matrices[m, flag]
