"""Where a loop's values lie in memory, turn by turn, as LLVM IR; loads and stores them in the dtype of their buffer."""

from __future__ import annotations

from ...compiler.expr import Expr
from ..plan import Place
from .ir import Function, Module
from .shape import Shaped, Tiled


class Memory:
    """The addresses of one turn. Whoever writes the loop sets the row and the offsets of the turn, then `find_all`."""

    def __init__(self, module: Module, function: Function, loop: Shaped):
        self.m, self.f, self.loop = module, function, loop
        self.base: dict[str, str] = {}           # buffer -> where it begins
        self.stride: dict[str, str] = {}         # sequence -> bytes of one row
        self.edge: dict[str, str] = {}           # sequence -> what stands in for it in a row's first or last turn
        self.offset: dict[int, str] = {}         # turns away -> row of the sequence at which that step begins
        self.at_edge: dict[str, str] = {}        # "first", "last" -> whether this is such a turn
        self.row = self.scratch = ""             # the first row of this turn, and its scratch
        self.address: dict[tuple, str] = {}

    def find_all(self) -> None:
        """Compute, at the top of a turn, where every buffer stands."""
        self.address = {}
        places = [p for s in self.loop.passes for _, p in s.stores]
        places += [self.loop.reads[e] for s in self.loop.passes for e in self.read_by(s)]
        places += [r.source for p in self.loop.panels for r in p.runs if isinstance(r.source, Place)]
        for place in places:
            key = (place.buffer, place.turn, place.edge)
            if key not in self.address:
                self.address[key] = self._begin(place)
        self.scratch = self.f.at("%shared", self.f.integer("mul", self.row, self.loop.scratch_row * self.m.size))

    def read_by(self, step: Tiled) -> list[Expr]:
        """What a stage reads from memory, element by element."""
        found = [a for e in step.stage.nodes if e.op not in ("contract", "sum") for a in e.args]
        found += [e.args[0] for e in step.stage.sums] + [e for e, _ in step.stores]
        return [e for e in dict.fromkeys(found) if e in self.loop.reads]

    def _begin(self, place: Place) -> str:
        """Where the first row of this entry begins."""
        f, name = self.f, place.buffer
        buffer = self.loop.buffers[name]
        if buffer.kind == "vector":
            return self.base[name]
        by_row = f.integer("mul", self.row, buffer.width * self.value_size(place))
        if name not in self.stride:
            return f.at(self.base[name], by_row)
        row = f.integer("add", self.offset[place.turn], self.row)
        here = f.at(self.base[name], f.integer("mul", row, self.stride[name]))
        if not place.edge:
            return here
        return f.value(f"select i1 {self.at_edge[place.edge]}, ptr {f.at(self.edge[name], by_row)}, ptr {here}")

    def at(self, place: Place, row: str, unit: str) -> str:
        """The address of a value, for one row and from one unit on."""
        f, buffer = self.f, self.loop.buffers[place.buffer]
        size = self.value_size(place)
        start = f.at(self.address[place.buffer, place.turn, place.edge], place.offset * size)
        if buffer.kind != "vector":
            start = f.at(start, f.integer("mul", row, buffer.width * size))
        return f.at(start, f.integer("mul", unit, size))

    def value_size(self, place: Place) -> int:
        return 2 if self.loop.buffers[place.buffer].short else self.m.size

    def load(self, place: Place, row: str, unit: str, valid: int | None) -> str:
        load = self.f.load_short if self.loop.buffers[place.buffer].short else self.f.load
        return load(self.at(place, row, unit), valid)

    def load_spread(self, place: Place, row: str) -> str:
        load = self.f.load_spread_short if self.loop.buffers[place.buffer].short else self.f.load_spread
        return load(self.at(place, row, "0"))

    def store(self, value: str, place: Place, row: str, unit: str, valid: int | None) -> None:
        store = self.f.store_short if self.loop.buffers[place.buffer].short else self.f.store
        store(value, self.at(place, row, unit), valid)

    def in_scratch(self, e: Expr, row: str, unit: str = "0") -> str:
        f = self.f
        start = f.at(self.scratch, f.integer("mul", row, self.loop.scratch_row * self.m.size))
        return f.at(f.at(start, self.loop.scratch[e] * self.m.size), f.integer("mul", unit, self.m.size))
