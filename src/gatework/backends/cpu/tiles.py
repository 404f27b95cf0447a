"""Writes the LLVM IR of inner products on a matrix unit (AMX): tiles of bfloat16 in, tiles of float32 sums out.

A tile of weights is 16 pairs of k by 16 units, the two of a pair side by side; a panel is [block][chunk of 32 k][slot]
[vector] of such tiles, filled up with zeros. Operands are rounded once per stage into rows of chunks, also filled up.
In loops of float32 a chunk is three such, the parts of its values (`parts`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..plan import Place
from .ir import Function, Module
from .panels import SIGNATURE, block_count, by_fullness, turned_over
from .parts import IN_PAIRS, SIDE_BY_SIDE, in_parts, report
from .shape import TILE_ROWS, TILE_VALUES, TILES, Panel, Run, Shaped, Tiled, in_tiles

TILE = 1024  # bytes
ROW = 64     # bytes of one row of a tile
LEFT, RIGHT = TILES * TILES, TILES * TILES + TILES  # registers: sums take those before

# What a matrix unit is told once per call: palette 1, then for each register its bytes per row and its rows.
_SHAPES = [1] + [0] * 15 + [ROW, 0] * 8 + [0] * 16 + [TILE_ROWS] * 8 + [0] * 8


def begin(f: Function) -> None:
    m = f.module
    m.declared |= {f"declare void @llvm.x86.{line}": None for line in (
        "ldtilecfg(ptr)", "tilerelease()", "tilezero(i8)", "tileloadd64(i8, ptr, i64)", "tilestored64(i8, ptr, i64)",
        "tdpbf16ps(i8, i8, i8)")}
    m.declared[f"@shapes = internal constant [64 x i8] [{', '.join(f'i8 {b}' for b in _SHAPES)}], align 64"] = None
    f.line("call void @llvm.x86.ldtilecfg(ptr @shapes)")


def end(f: Function) -> None:
    f.line("call void @llvm.x86.tilerelease()")


def panel_values(parts: int, step: Tiled, panel: Panel, lanes: int) -> int:
    """How many values of float32 take the place of a packed panel."""
    return block_count(step, lanes) * panel.chunks * parts * len(panel.slots) * step.vectors * TILE // 4


def lies_ready(loop: Shaped, run: Run) -> bool:
    """Whether an operand can be read where it is: bfloat16 already, and in whole tiles."""
    return isinstance(run.source, Place) and loop.buffers[run.source.buffer].short and run.length % TILE_VALUES == 0


def rounded(loop: Shaped, step: Tiled) -> list[tuple[Run, int]]:
    """The operands of a stage that must be rounded, and where in a row of such ones each begins, in bytes."""
    found, at = [], 0
    for run in {r.source: r for p in step.panels for r in p.runs}.values():
        if not lies_ready(loop, run):
            found.append((run, at))
            at += in_tiles(run.length) * loop.parts * ROW
    return found


def row_bytes(loop: Shaped, step: Tiled) -> int:
    """Bytes from one row of rounded operands to the next.

    An odd number of lines: rows at a power of two would push each other out of the first cache.
    """
    return sum(in_tiles(run.length) for run, _ in rounded(loop, step)) * loop.parts * ROW | ROW


# ---- inner products


def inner_name(step: Tiled, panel: Panel, down: int) -> str:
    slots = "".join(f"{slot}{'b' if begun else ''}_" for slot, begun in zip(panel.slots, panel.begun))
    return f"tiles_{slots}of{len(step.stage.products)}x{step.vectors}_{down}_{len(panel.runs)}"


def write_inner_products(module: Module, step: Tiled, panel: Panel, parts: int) -> None:
    for down in range(1, TILES + 1):
        if inner_name(step, panel, down) not in module.names:
            _write_inner_product(module, step, panel, down, parts)


def _write_inner_product(module: Module, step: Tiled, panel: Panel, down: int, parts: int) -> None:
    """acc[row][slot][vector] (+)= sum over runs and chunks of operand[row][chunk] * panel[chunk][slot][vector].

    In chunks of several parts those products are left out that are smaller than what rounding a sum loses.
    `down` tiles of rows. For each run: where its operand lies, the bytes between its rows, its chunks, its weights.
    """
    runs = range(len(panel.runs))
    f = Function(module, inner_name(step, panel, down),
                 ["ptr %acc", *(f"ptr %operand{k}, i64 %stride{k}, i64 %chunks{k}, ptr %panel{k}" for k in runs)],
                 separate=True)
    across = len(panel.slots) * step.vectors
    row = len(step.stage.products) * step.vectors * ROW
    columns = [(slot * step.vectors + v, begun) for slot, begun in zip(panel.slots, panel.begun)
               for v in range(step.vectors)]
    sums = [(d * across + k, d * TILE_ROWS * row + column * ROW, begun)  # register, place, whether it holds a sum
            for d in range(down) for k, (column, begun) in enumerate(columns)]
    for register, place, begun in sums:
        if begun:
            f.line(f"call void @llvm.x86.tileloadd64(i8 {register}, ptr {f.at('%acc', place)}, i64 {row})")
        else:
            f.line(f"call void @llvm.x86.tilezero(i8 {register})")
    for run in runs:
        with f.loop("0", f"%chunks{run}") as chunk:
            operand = f.at(f"%operand{run}", f.integer("mul", chunk, parts * ROW))
            weights = f.at(f"%panel{run}", f.integer("mul", chunk, parts * across * TILE))
            for right in range(parts):
                for k in range(across):
                    tile = f.at(weights, (right * across + k) * TILE)
                    f.line(f"call void @llvm.x86.tileloadd64(i8 {RIGHT + k}, ptr {tile}, i64 {ROW})")
                for left in range(parts - right):
                    for d in range(down):
                        rows = f.at(operand, left * ROW)
                        if d:
                            rows = f.at(rows, f.integer("mul", f"%stride{run}", d * TILE_ROWS))
                        f.line(f"call void @llvm.x86.tileloadd64(i8 {LEFT + d}, ptr {rows}, i64 %stride{run})")
                        for k in range(across):
                            f.line(f"call void @llvm.x86.tdpbf16ps(i8 {d * across + k}, i8 {LEFT + d}, i8 {RIGHT + k})")
    for register, place, _ in sums:
        f.line(f"call void @llvm.x86.tilestored64(i8 {register}, ptr {f.at('%acc', place)}, i64 {row})")
    f.finish()


# ---- operands and weights, rounded


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
    with f.loop("%first", f.integer("add", "%first", "%rows")) as block:
        at_block = f.at("%shared", f.integer("mul", block, panel.chunks * chunk))
        done = 0
        for number, (length, matrices) in enumerate(panel.pieces):
            with f.loop("0", across) as column:
                slot = f.integer("add", f.integer("sdiv", column, step.vectors), number * len(panel.slots))
                matrix = f.value(f"load ptr, ptr {f.at('%arguments', f.integer('mul', slot, 8))}")
                vector = f.integer("srem", column, step.vectors)
                vector = f.integer("add", f.integer("mul", block, step.vectors), vector)
                out = f.at(f.at(at_block, f.integer("mul", column, TILE)), done * chunk)
                source = _Source(f, matrix, f.integer("mul", vector, module.lanes), length, step.size)
                _pack(source, out, parts, across * TILE, matrices[0][2] == "N", seen)
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


def _pack(source: _Source, target: str, parts: int, part_bytes: int, turn: bool, seen: str) -> None:
    """Tiles of one piece for a vector of units: of matrix[unit...][k], turned over, or of matrix[k][unit...]."""
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
                    f.store(row, f.at(out, part * part_bytes + n * ROW))

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
        out = f.at(target, f.integer("mul", number, parts * ROW))
        for part, row in enumerate(in_parts(f, low, high, SIDE_BY_SIDE, parts, seen)):
            f.store(row, f.at(out, part * ROW))

    with f.loop("0", whole) as number:
        chunk(number, TILE_VALUES)
    if run.length % TILE_VALUES:
        chunk(str(whole), run.length % TILE_VALUES)
