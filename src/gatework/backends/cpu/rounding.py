"""Writes the LLVM IR that rounds operands and packs weights for products of bfloat16, by a matrix unit or by vectors.

Operands are rounded once per stage into rows of chunks of 32 values, filled up with zeros. Weights are packed by the
same chunks: [block][chunk][slot][vector][pair of k] for the tiles of a unit, [block][chunk][pair of k][slot][vector]
for vectors, and in either 16 units with the two values of a pair side by side. In loops of float32 on a unit a chunk
is three such, the parts of its values (`parts`).
"""

from __future__ import annotations

from dataclasses import dataclass

from .ir import Function, Module
from .panels import block_count, by_fullness, turned_over
from .parts import IN_PAIRS, SIDE_BY_SIDE, in_parts, report
from .shape import CHUNK, TILE_ROWS, TILE_VALUES, Panel, Run, Tiled, in_tiles
from .threads import SIGNATURE

TILE = TILE_ROWS * CHUNK  # bytes


def panel_values(parts: int, step: Tiled, panel: Panel, lanes: int) -> int:
    """How many values of float32 take the place of a packed panel."""
    return block_count(step, lanes) * panel.chunks * parts * len(panel.slots) * step.vectors * TILE // 4


def halves(f: Function, start: str, valid: int, load) -> tuple[str, str]:
    """Up to 32 values that lie side by side as two vectors, with zeros behind the valid ones."""
    lanes = f.module.lanes
    parts = []
    for half in range(2):
        left = min(max(valid - half * lanes, 0), lanes)
        at = (start, half * lanes)
        parts.append("zeroinitializer" if left == 0 else load(at, None if left == lanes else left))
    return parts[0], parts[1]


def write_packing(module: Module, step: Tiled, panel: Panel, parts: int) -> None:
    """pack_<name>, with the arguments of `panels.write_packing`; weights are float32."""
    f = Function(module, f"pack_{panel.name}", SIGNATURE, internal=False)
    across = len(panel.slots) * step.vectors
    chunk, seen = parts * across * TILE, f.variable("i16", "0")
    apart, along = (CHUNK, across * CHUNK) if panel.paired else (TILE, CHUNK)  # bytes between columns, between pairs
    with f.loop("%first", f.integer("add", "%first", "%rows")) as block:
        at_block = f.at("%shared", f.integer("mul", block, panel.chunks * chunk))
        done = 0
        for number, (length, matrices) in enumerate(panel.pieces):
            with f.loop("0", across) as column:
                slot = f.integer("add", f.integer("sdiv", column, step.vectors), number * len(panel.slots))
                matrix = f.value(f"load ptr, ptr {f.at('%arguments', f.integer('mul', slot, 8))}")
                vector = f.integer("srem", column, step.vectors)
                vector = f.integer("add", f.integer("mul", block, step.vectors), vector)
                out = f.at(f.at(at_block, f.integer("mul", column, apart)), done * chunk)
                source = _Source(f, matrix, f.integer("mul", vector, module.lanes), length, step.size)
                _pack(source, out, parts, across * TILE, along, matrices[0][2] == "N", seen)
            done += in_tiles(length)
    report(f, seen, f.load_word("%arguments", len(panel.pieces) * len(panel.slots), "ptr"))
    f.finish()


@dataclass
class _Source:
    """What one piece of a panel is packed from, for a vector of units."""

    f: Function
    matrix: str
    unit: str
    length: int
    size: int

    def columns(self, k: str, units: int, valid: int) -> list[tuple[str, str]]:
        """matrix[unit...][k...]: for each unit 32 values."""
        f = self.f
        corner = f.at(f.at(self.matrix, f.integer("mul", self.unit, self.length * 4)), f.integer("mul", k, 4))
        return [halves(f, f.at(corner, n * self.length * 4), valid,
                       lambda at, some: f.load(f.at(at[0], at[1] * 4), some)) for n in range(units)]

    def rows(self, k: str, units: int, valid: int) -> list[tuple[str, str]]:
        """matrix[k...][unit...]: for each pair of k two vectors of units."""
        f = self.f
        found = []
        for n in range(2 * TILE_ROWS):
            at = f.at(self.matrix, f.integer("mul", f.integer("add", k, n), self.size * 4))
            at = f.at(at, f.integer("mul", self.unit, 4))
            found.append(f.load(at, None if units == f.module.lanes else units) if n < valid and units
                         else "zeroinitializer")
        return list(zip(found[::2], found[1::2]))


def _pack(source: _Source, target: str, parts: int, part_bytes: int, along: int, turn: bool, seen: str) -> None:
    """One piece for a vector of units: of matrix[unit...][k], turned over, or of matrix[k][unit...]."""
    f, whole = source.f, source.length // TILE_VALUES

    def write(units: int) -> None:
        def chunk(number: str, valid: int) -> None:
            out = f.at(target, f.integer("mul", number, parts * part_bytes))
            pairs = (source.columns if turn else source.rows)(f.integer("mul", number, TILE_VALUES), units, valid)
            split = [in_parts(f, *pair, SIDE_BY_SIDE if turn else IN_PAIRS, parts, seen) for pair in pairs]
            for part, rows in enumerate(zip(*split)):
                if turn:
                    rows = turned_over(f, [*rows, *["zeroinitializer"] * (TILE_ROWS - len(rows))])
                for n, row in enumerate(rows):
                    f.store(row, f.at(out, part * part_bytes + n * along))

        with f.loop("0", whole) as number:
            chunk(number, TILE_VALUES)
        if source.length % TILE_VALUES:
            chunk(str(whole), source.length % TILE_VALUES)

    by_fullness(f, source.unit, source.size, write)


def write_rounding(f: Function, run: Run, parts: int, target: str, load, seen: str) -> None:
    """A row of an operand in parts, filled up; `load(at, valid)` reads values from a place on."""
    whole = run.length // TILE_VALUES

    def chunk(number: str, valid: int) -> None:
        first = f.integer("mul", number, TILE_VALUES)
        low, high = halves(f, first, valid, lambda at, some: load(f.integer("add", at[0], at[1]), some))
        out = f.at(target, f.integer("mul", number, parts * CHUNK))
        for part, row in enumerate(in_parts(f, low, high, SIDE_BY_SIDE, parts, seen)):
            f.store(row, f.at(out, part * CHUNK))

    with f.loop("0", whole) as number:
        chunk(number, TILE_VALUES)
    if run.length % TILE_VALUES:
        chunk(str(whole), run.length % TILE_VALUES)
