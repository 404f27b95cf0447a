"""Writes the LLVM IR of inner products on a matrix unit (AMX): tiles of bfloat16 in, tiles of float32 sums out.

A tile of weights is 16 pairs of k by 16 units, one of operands 16 rows by a chunk of 32 k (`rounding`).
"""

from __future__ import annotations

from .ir import Function, Module
from .rounding import TILE
from .shape import CHUNK as ROW
from .shape import TILE_ROWS, TILES, Panel, Tiled

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
