"""Receives the equations of a loop, hands on Triton source line by line: what all forms of a loop have in common.

A program works on some rows. In `resident.py` it has all units of them and all turns of the loop, in `shared.py` some
units and all turns, in `stages.py` one stage of one turn.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import count

from ...compiler import Cell
from ...compiler.expr import Expr, number
from ..plan import Loop, Place
from .maths import OPERATIONS

LEAST = 16  # units and rows of a matrix product, at the least


def padded(size: int) -> int:
    """Units of a block: Triton's are powers of two."""
    return max(LEAST, 1 << (size - 1).bit_length())


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


def taken_apart(names: list[str], whole: str, block: object) -> list[str]:
    """Lines that take the last dimension of `whole` apart, of two or of four: [ROWS, units, names]."""
    if len(names) == 2:
        return [f"{names[0]}, {names[1]} = tl.split({whole})"]
    a, b, c, d = names
    return [f"{a}_even, {a}_odd = tl.split(({whole}).reshape([ROWS, {block}, 2, 2]))",
            f"{a}, {c} = tl.split({a}_even)", f"{b}, {d} = tl.split({a}_odd)"]


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
            block = self.block(size)
            self.outside += [f"u_{name} = {self.first_unit(block)}tl.arange(0, {block})[None, :]",
                             f"in_range_{name} = u_{name} < {size}",
                             f"zero_{name} = tl.zeros([ROWS, {block}], {self.accurate})"]
        self.outside.append(f"zero = tl.zeros([ROWS, 1], {self.accurate})")

    def _all(self) -> list[Expr]:
        found = list(self.loop.reads)
        for step in self.loop.passes:
            found += [*step.stage.nodes, *(a for e in step.stage.nodes for a in e.args if len(a.dims) < 2)]
        return found

    def block(self, size: int) -> int:
        """Units of a vector that a program works on, or so many that they fill a block."""
        return padded(size)

    def first_unit(self, block: int) -> str:
        """What begins the sum that says which units those are."""
        return ""

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
