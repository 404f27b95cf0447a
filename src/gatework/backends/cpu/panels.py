"""Writes the LLVM IR of the inner products and of the packing of their panels; free of the cell's equations."""

from __future__ import annotations

from itertools import product

import numpy as np

from ..plan import Place
from .ir import Function, Module
from .shape import Panel, Run, Shaped, Tiled, lies_ready, row_bytes
from .threads import SIGNATURE

UNROLL = 2    # steps of an inner product in one turn of its loop
LINE = 64     # bytes that memory hands over at once
CALLERS = 2   # tiles that together call for all of the next block
NEAR = 1024   # bytes by which a block too large for that is called for as it is read
MOST_NEXT = 1 << 18  # bytes of a block that may wait in the second cache beside the block at work


def block_count(step: Tiled, lanes: int) -> int:
    return -(-step.size // (step.vectors * lanes))


def panel_values(step: Tiled, panel: Panel, lanes: int) -> int:
    """How many values a packed panel holds."""
    return block_count(step, lanes) * panel.steps * len(panel.slots) * step.vectors * lanes


def vector_bytes(module: Module, panel: Panel) -> int:
    """Bytes that one vector of weights takes in a panel."""
    return module.lanes * (2 if panel.short else module.size)


def shortened(values: np.ndarray, across: int, lanes: int) -> np.ndarray:
    """The values of a panel, whose rows are so many vectors, rounded to bfloat16: the nearest, of two as near the even
    one.

    Two vectors lie in the memory of one, the first in the lower halves of its values, the second in the upper ones:
    one load, and one operation each, widens both. A last odd one lies by itself.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    odd = bits >> 16 & 1
    upper = (bits + odd + 0x7FFF) >> 16
    quiet = bits >> 16 | 0x40  # what is no number must not be carried over into an infinity
    short = np.where(np.isnan(values), quiet, upper).astype(np.uint16).reshape(-1, across, lanes)
    even = across // 2 * 2
    pairs = short[:, :even].reshape(len(short), -1, 2, lanes).swapaxes(2, 3).reshape(len(short), -1)
    return np.concatenate([pairs, short[:, even:].reshape(len(short), -1)], axis=1).reshape(-1)


def calls_next_block(module: Module, step: Tiled, panel: Panel) -> bool:
    """Whether inner products call for the next block of the panel (from the third cache), or for what comes soon."""
    return panel.steps * len(panel.slots) * step.vectors * vector_bytes(module, panel) <= MOST_NEXT


def _calls_as_it_reads(step: Tiled, rows: int) -> bool:
    """Whether inner products call for what comes soon of each block: a single row leaves no time for all of one."""
    return step.streamed and rows == 1


def lines_ahead(module: Module, step: Tiled, panel: Panel) -> int:
    """Lines that one turn of an inner product calls for: more than are needed cost up to a third of its time."""
    read = UNROLL * len(panel.slots) * step.vectors * vector_bytes(module, panel)
    return -(-read // (LINE * (CALLERS if calls_next_block(module, step, panel) else 1)))


def bytes_ahead(module: Module, step: Tiled, panel: Panel) -> int:
    """The same as bytes of one step."""
    return lines_ahead(module, step, panel) * LINE // UNROLL


def write_inner_products(module: Module, loop: Shaped, step: Tiled, panel: Panel) -> None:
    for rows in range(1, step.rows + 1):
        for blocks in sorted({1, step.wide.get(rows, 1)}):
            for stride in sorted({operand_width(loop, step, r) for r in panel.runs}):
                _write_inner_product(module, step, panel, rows, blocks, stride)


def walk(panel: Panel, run: Run) -> int:
    """Steps of an inner product with an operand: of the last chunk of pairs those that are not filled up."""
    return -(-run.length // (2 * UNROLL)) * UNROLL if panel.paired else run.length


def operand_width(loop: Shaped, step: Tiled, run: Run) -> int:
    """The distance of an operand from one row to the next, in values, or pairs of bfloat16."""
    if loop.parts:
        return (2 * loop.buffers[run.source.buffer].width if lies_ready(loop, run) else row_bytes(loop, step)) // 4
    return loop.buffers[run.source.buffer].width if isinstance(run.source, Place) else loop.scratch_row


def inner_name(module: Module, step: Tiled, panel: Panel, rows: int, blocks: int, stride: int) -> str:
    """Named by all that its code depends on: panels of one shape share it."""
    slots = "".join(f"{slot}{'b' if begun else ''}_" for slot, begun in zip(panel.slots, panel.begun))
    marks = ["m" * (len(panel.runs) > 1), "o" * _is_odd(panel), "f" * calls_next_block(module, step, panel),
             "s" * panel.short, "p" * panel.paired, "r" * _calls_as_it_reads(step, rows)]
    length = f"_{panel.steps}" if blocks > 1 else ""
    return (f"dot_{slots}of{len(step.stage.products)}x{step.vectors}_{rows}of{step.rows}x{blocks}_{stride}{length}"
            f"_{''.join(marks)}")


def _is_odd(panel: Panel) -> bool:
    """Whether a run has steps left over from the unrolled ones."""
    return any(walk(panel, run) % UNROLL for run in panel.runs)


def _write_inner_product(module: Module, step: Tiled, panel: Panel, rows: int, blocks: int, stride: int) -> None:
    """acc[block][row][slot][vector] (+)= sum over k of operand[row][k] * panel[block][k][slot][vector].

    In a paired panel k counts pairs, of which each product adds up two.
    """
    name = inner_name(module, step, panel, rows, blocks, stride)
    if name in module.names:
        return
    f = Function(module, name,
                 ["ptr %operand", "ptr %panel", "i64 %length", "i1 %more", "ptr %acc", "ptr %ahead"], separate=True)
    vector, across = module.lanes * module.size, len(panel.slots) * step.vectors
    row = across * vector_bytes(module, panel)
    block_stride = panel.steps * row
    multiply = f.multiply_pairs if panel.paired else f.fma
    where = {}  # (block, row, column of the panel row) -> offset of its accumulator
    for b in range(blocks):
        for r in range(rows):
            for j, slot in enumerate(panel.slots):
                for v in range(step.vectors):
                    index = ((b * step.rows + r) * len(step.stage.products) + slot) * step.vectors + v
                    where[b, r, j * step.vectors + v] = index * vector
    acc = {}
    for key, offset in where.items():
        start = "zeroinitializer"
        if panel.begun[key[2] // step.vectors]:
            start = f.load(f.at("%acc", offset))
        elif len(panel.runs) > 1:
            start = f.value(f"select i1 %more, {module.vector} {f.load(f.at('%acc', offset))}, {module.vector} "
                            "zeroinitializer")
        acc[key] = f.variable(module.vector, start)

    lines, far = lines_ahead(module, step, panel), bytes_ahead(module, step, panel)

    def turn(k: str, number: int = 0) -> None:
        a = f.at("%operand", f.integer("mul", k, module.size))
        p = f.at("%panel", f.integer("mul", k, row))
        pairs: dict[tuple[int, int], str] = {}
        columns = [(b, j) for b in range(blocks) for j in range(across)]
        if _calls_as_it_reads(step, rows):
            for b, line in product(range(blocks), range(0, row, LINE)):
                f.prefetch(f.at(p, b * block_stride + NEAR + line), near=True)
        else:
            for line in range(number * lines // UNROLL, (number + 1) * lines // UNROLL):
                at_line = f.integer("add", f.integer("mul", k, far), line * LINE - number * far)
                f.prefetch(f.at("%ahead", at_line), near=not calls_next_block(module, step, panel))

        def spread(r: int) -> str:
            return f.load_spread(f.at(a, r * stride * module.size))

        def column(b: int, j: int) -> str:
            if not panel.short:
                return f.load(f.at(p, b * block_stride + j * vector))
            here = f.at(p, b * block_stride + j // 2 * vector)
            if j == across - 1 and across % 2:
                return f.load_short(here)
            if (b, j // 2) not in pairs:
                pairs[b, j // 2] = f.value(f"load {module.integers}, ptr {here}, align 2")
            return f.half(pairs[b, j // 2], upper=j % 2 == 1)

        def add(row: str, panel_row: str, key: tuple[int, int, int]) -> None:
            old = f.value(f"load {module.vector}, ptr {acc[key]}")
            f.line(f"store {module.vector} {multiply(row, panel_row, old)}, ptr {acc[key]}")

        # The fewer of the two stay in registers, the others pass through one: no accumulator is spilled.
        if rows < len(columns):
            held = [spread(r) for r in range(rows)]
            for b, j in columns:
                passing = column(b, j)
                for r in range(rows):
                    add(held[r], passing, (b, r, j))
        else:
            kept = {c: column(*c) for c in columns}
            for r in range(rows):
                passing = spread(r)
                for b, j in columns:
                    add(passing, kept[b, j], (b, r, j))

    whole = f.integer("and", "%length", -UNROLL)
    with f.loop("0", whole, UNROLL) as k:
        for u in range(UNROLL):
            turn(f.integer("add", k, u), u)
    if _is_odd(panel):
        with f.loop(whole, "%length") as k:
            turn(k)
    for key, offset in where.items():
        f.store(f.value(f"load {module.vector}, ptr {acc[key]}"), f.at("%acc", offset))
    f.finish()


def write_packing(module: Module, loop: Shaped, step: Tiled, panel: Panel) -> None:
    """pack_<name>: the arguments hold, per piece and slot, the address of a row block; the blocks are the rows."""
    f = Function(module, f"pack_{panel.name}", SIGNATURE, internal=False)
    lanes, size = module.lanes, module.size
    across = len(panel.slots) * step.vectors
    with f.loop("%first", f.integer("add", "%first", "%rows")) as block:
        at_block = f.at("%shared", f.integer("mul", block, panel.length * across * lanes * size))
        k0 = 0
        for number, (length, matrices) in enumerate(panel.pieces):
            # the matrices of one operand are all taken as they are, or all transposed
            pack = _pack_columns if matrices[0][2] == "N" else _pack_rows
            with f.loop("0", across) as column:  # of a panel row: slots, and in each its vectors
                slot = f.integer("add", f.integer("sdiv", column, step.vectors), number * len(panel.slots))
                matrix = f.value(f"load ptr, ptr {f.at('%arguments', f.integer('mul', slot, 8))}")
                vector = f.integer("srem", column, step.vectors)
                vector = f.integer("add", f.integer("mul", block, step.vectors), vector)
                out = f.at(at_block, f.integer("mul", column, lanes * size))
                pack(f, step, matrix, f.integer("mul", vector, lanes), f.at(out, k0 * across * lanes * size), length,
                     across * lanes * size)
            k0 += length
    f.finish()


def by_fullness(f: Function, unit: str, total: int, write) -> None:
    """Write for a whole vector of units, for the last part of one, and for none."""
    lanes = f.module.lanes
    rest = f.integer("sub", total, unit)
    with f.when(f.value(f"icmp sge i64 {rest}, {lanes}")):
        write(lanes)
    if total % lanes:
        with f.when(f.value(f"icmp eq i64 {rest}, {total % lanes}")):
            write(total % lanes)
    with f.when(f.value(f"icmp sle i64 {rest}, 0")):
        write(0)


def _pack_rows(f: Function, step: Tiled, matrix: str, unit: str, target: str, length: int, stride: int) -> None:
    """panel[k] = matrix[k][unit...]: transposed products read rows as they lie."""
    size = f.module.size

    def write(valid: int) -> None:
        with f.loop("0", length) as k:
            row = f.at(f.at(matrix, f.integer("mul", k, step.size * size)), f.integer("mul", unit, size))
            full = valid == f.module.lanes
            value = "zeroinitializer" if valid == 0 else f.load(row, None if full else valid)
            f.store(value, f.at(target, f.integer("mul", k, stride)))

    by_fullness(f, unit, step.size, write)


def _pack_columns(f: Function, step: Tiled, matrix: str, unit: str, target: str, length: int, stride: int) -> None:
    """panel[k] = matrix[unit...][k]: squares of rows and columns are turned over on registers."""
    m, lanes = f.module, f.module.lanes

    def write(valid: int) -> None:
        first = f.at(matrix, f.integer("mul", unit, length * m.size))
        if length < lanes:
            _one_by_one(f, first, valid, length, target, stride)
            return
        # The last square ends with the row, and overlaps the one before where the lanes do not divide it.
        with f.loop("0", -(-length // lanes)) as square:
            k = f.integer("mul", square, lanes)
            inside = f.value(f"icmp sle i64 {k}, {length - lanes}")
            k = f.value(f"select i1 {inside}, i64 {k}, i64 {length - lanes}")
            corner = f.at(first, f.integer("mul", k, m.size))
            rows = [f.load(f.at(corner, lane * length * m.size)) for lane in range(valid)]
            rows += ["zeroinitializer"] * (lanes - valid)
            out = f.at(target, f.integer("mul", k, stride))
            for j, column in enumerate(turned_over(f, rows)):
                f.store(column, f.at(out, j * stride))

    by_fullness(f, unit, step.size, write)


def _one_by_one(f: Function, first: str, valid: int, length: int, target: str, stride: int) -> None:
    m = f.module
    with f.loop("0", length) as k:
        corner = f.at(first, f.integer("mul", k, m.size))
        value = "zeroinitializer"
        for lane in range(valid):
            x = f.value(f"load {m.scalar}, ptr {f.at(corner, lane * length * m.size)}, align {m.size}")
            value = f.value(f"insertelement {m.vector} {value}, {m.scalar} {x}, i64 {lane}")
        f.store(value, f.at(target, f.integer("mul", k, stride)))


def turned_over(f: Function, rows: list[str]) -> list[str]:
    """The columns of a square of vectors: blocks of half the size change places, then those of a quarter, and so on."""
    m, rows, distance = f.module, list(rows), len(rows) // 2
    while distance:
        upper = [lane if not lane & distance else m.lanes + lane - distance for lane in range(m.lanes)]
        lower = [lane + distance if not lane & distance else m.lanes + lane for lane in range(m.lanes)]
        for k in range(len(rows)):
            if not k & distance:
                a, b = rows[k], rows[k + distance]
                for at, choice in ((k, upper), (k + distance, lower)):
                    mask = ", ".join(f"i32 {c}" for c in choice)
                    rows[at] = f.value(f"shufflevector {m.vector} {a}, {m.vector} {b}, <{m.lanes} x i32> <{mask}>")
        distance //= 2
    return rows
