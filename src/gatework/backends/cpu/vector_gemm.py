"""Large products by the widest vectors of the machine, where the BLAS at hand uses narrower ones.

MKL, which torch multiplies with, gives AMD's processors its code for AVX2: half of what those can do whose units are
512 bits wide, and it leaves a fifth of it unused where they have 256. Here a block of rows by two vectors of columns
stays in registers while it walks along the depth. The right side is packed first, for all threads, strip by strip of
such columns; then each thread takes rows. These are read where they lie, if the depth lies side by side and there are
enough for a block, else from a packed copy.

With few columns neither pays, and more of the depth fits: each thread packs the right side for itself and waits for
nobody, and reads whole blocks of rows where they lie, calling for what comes.

bfloat16 is multiplied the same way, where vectors do that: two steps of the depth are one value, a pair, and sums are
float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from . import jit, threads
from .any_batch import Known, most
from .ir import Function, Module
from .target import Target
from .turning import write_turning

MOST_ROWS, VECTORS = 12, 2  # of a block of sums, in registers
ACROSS = 3                  # rows that one pointer serves
UNROLL = 2
DEEP, WIDE = 256, 1024      # of the right side, packed at once: a second cache of 1 MB, or half of one
FEW, FEW_DEEP = 128, 512    # columns that are few, and how deep they are packed
AHEAD = 64                  # steps of the depth, to what is called for
# A product that is smaller, or has fewer rows or a shorter side, is BLAS's; one of less work is one thread's.
LEAST, LEAST_ROWS, LEAST_SIDE, WORTH_A_THREAD = 1 << 17, 8, 16, 1 << 19
_WORDS = ("left", "left_row", "left_deep", "right", "right_deep", "right_column", "out", "out_row", "rows", "columns",
          "depth", "more", "packed")
_BLOCK = ["ptr %left", "i64 %row", "i64 %deep", "ptr %right", "i64 %depth", "i1 %more", "ptr %out", "i64 %out_row",
          "i64 %rows", "i64 %columns"]


@dataclass(frozen=True)
class Side:
    """A matrix [rows, columns]: where it begins, and values from row to row and from column to column."""

    address: Any
    row: int
    column: int


def suits(rows: int, depth: int, columns: int) -> bool:
    """Whether a product is large enough, and fills blocks."""
    return rows >= LEAST_ROWS and min(depth, columns) >= LEAST_SIDE and rows * depth * columns >= LEAST


def multiply(xp, machine: Target, size: int, shape: tuple[int, int, int], left: Side, right: Side, out: Side,
             more: bool) -> bool:
    """out [rows, columns] = left [rows, depth] @ right [depth, columns], or is increased by it; shape: these three.

    Values of `size` bytes, and of 4 in `out`, for 2; no side is empty. Returns whether it could: values must lie side
    by side on one axis of each, in `out` along its rows, and pairs must be whole where they are read as they lie.
    """
    rows, depth, columns = shape
    paired = size == 2
    halved = paired and (depth % 2 == 1 or isinstance(depth, Known)) and 1 in (left.column, right.row)
    if 1 not in (left.row, left.column) or 1 not in (right.row, right.column) or out.column != 1 or halved:
        return False
    wide, steps = 4 if paired else size, 2 if paired else 1  # bytes of a sum, and what is one step of the depth
    lanes = machine.lanes(wide)
    packed = -(-min(columns, WIDE) // (VECTORS * lanes)) * VECTORS * lanes * wide
    if columns <= FEW:
        packed, own = 0, FEW_DEEP // steps * (lanes * wide + packed)
    else:
        packed, own = DEEP * packed, DEEP * lanes * wide
    parts = min(xp.threads(), -(-most(rows) // _rows(lanes)), 1 + most(rows) * depth * columns // WORTH_A_THREAD)
    parts = parts if threads.team() else 1
    work = xp.work((packed + parts * own) // wide)
    at = xp.address(work)
    words = [left.address, left.row * size, left.column * size * steps, right.address, right.row * size * steps,
             right.column * size, out.address, out.row * wide, rows, columns, depth, int(more), at]
    xp.run(function(machine, wide, paired), words, [(0, 0, at + (packed + k * own), 0) for k in range(parts)],
           parts > 1)
    xp.give_back(work)
    return True


def _rows(lanes: int) -> int:
    """Rows of a block: packed ones fit a vector."""
    return min(MOST_ROWS, lanes)


@cache
def function(machine: Target, size: int, paired: bool):
    write = partial(text, machine, size, paired)
    return jit.load(f"vector_gemm {size} {paired}", write, machine).function("multiply", *threads.KINDS)


def text(machine: Target, size: int, paired: bool) -> str:
    """The LLVM IR of `multiply`, which one member of a team runs, for values of so many bytes, or pairs as large."""
    module = Module(machine, size)
    module.functions.append(threads.waiting(module.target))
    write_turning(module)
    _write_block(module, paired, far=False)
    if not paired:
        _write_block(module, paired, far=True)
    _write_multiply(module, paired)
    return module.text()


def _write_block(module: Module, paired: bool, far: bool) -> None:
    """out (+)= left @ right for a block of rows and a packed strip; `row` and `deep`: bytes from one to the next.

    `far`: the rows come from beyond the second cache.
    """
    f = Function(module, "far_block" if far else "block", _BLOCK, separate=True)
    vector = module.lanes * module.size
    count = _rows(module.lanes)
    sums = [[f.variable(module.vector, "zeroinitializer") for _ in range(VECTORS)] for _ in range(count)]
    multiply = f.multiply_pairs if paired else f.fma
    for n in range(count):  # the sums are added to these lines at the end
        for v in range(VECTORS):
            f.prefetch(f.at(f.at("%out", f.integer("mul", "%out_row", n)), v * vector))
    third = f.integer("mul", "%row", ACROSS)
    begins = ["%left"]
    for _ in range(ACROSS, count, ACROSS):
        begins.append(f.at(begins[-1], third))
    rows = [f.variable("ptr", begin) for begin in begins]
    right = f.variable("ptr", "%right")
    second = f.integer("mul", "%row", 2)
    ahead = f.integer("mul", "%deep", AHEAD)

    def step() -> None:
        panel = f.value(f"load ptr, ptr {right}")
        columns = [f.load(f.at(panel, v * vector)) for v in range(VECTORS)]
        f.line(f"store ptr {f.at(panel, VECTORS * vector)}, ptr {right}")
        for k, pointer in enumerate(rows):
            here = f.value(f"load ptr, ptr {pointer}")
            if far and pointer in (rows[0], rows[-1]):
                f.prefetch(f.at(here, ahead))
            for n in range(min(ACROSS, count - ACROSS * k)):
                value = f.load_spread(f.at(here, (0, "%row", second)[n]))
                for v, column in enumerate(columns):
                    place = sums[ACROSS * k + n][v]
                    before = f.value(f"load {module.vector}, ptr {place}")
                    f.line(f"store {module.vector} {multiply(value, column, before)}, ptr {place}")
            f.line(f"store ptr {f.at(here, '%deep')}, ptr {pointer}")

    whole = f.integer("and", "%depth", -UNROLL)
    with f.loop("0", whole, UNROLL):
        for _ in range(UNROLL):
            step()
    with f.loop(whole, "%depth"):
        step()
    masks = [f.first_lanes(f.integer("sub", "%columns", v * module.lanes)) for v in range(VECTORS)]
    before = [f.where("%more", mask) for mask in masks]
    for n in range(count):
        with f.when(f.value(f"icmp sgt i64 %rows, {n}")):
            out = f.at("%out", f.integer("mul", "%out_row", n))
            for v, mask in enumerate(masks):
                here, total = f.at(out, v * vector), f.value(f"load {module.vector}, ptr {sums[n][v]}")
                f.store_where(f.arithmetic("fadd", total, f.load_where(here, before[v])), here, mask)
    f.finish()


def _word(f: Function, name: str, kind: str = "i64") -> str:
    return f.load_word("%arguments", _WORDS.index(name), kind)


def _write_multiply(module: Module, paired: bool) -> None:
    f = Function(module, "multiply", threads.SIGNATURE, internal=False)
    flags = f.flush_denormals()
    strip = VECTORS * module.lanes
    columns, depth, out_row = (_word(f, name) for name in ("columns", "depth", "out_row"))
    packed, out = (_word(f, name, "ptr") for name in ("packed", "out"))
    sides = _Side(f, "left", "row", "deep", depth, paired), _Side(f, "right", "column", "deep", depth, paired)
    if paired:
        depth = f.integer("sdiv", f.integer("add", depth, 1), 2)
    block = _rows(module.lanes)
    first_row, last_row = threads.share_of(f, _word(f, "rows"), block)
    for_more = f.value(f"icmp ne i64 {_word(f, 'more')}, 0")
    few = f.value(f"icmp sle i64 {columns}, {FEW}")
    many = f.value(f"xor i1 {few}, true")
    far = f.value(f"and i1 {few}, {f.value(f'xor i1 {sides[0].in_line}, true')}") if not paired else "false"
    few_deep = FEW_DEEP // 2 if paired else FEW_DEEP
    deepest = f.value(f"select i1 {few}, i64 {few_deep}, i64 {DEEP}")
    apart = f.integer("mul", deepest, module.size)  # of packed columns
    packed = f.value(f"select i1 {few}, ptr {f.at('%tile', few_deep * module.lanes * module.size)}, ptr {packed}")
    with f.loop("0", columns, WIDE) as column, f.loop("0", depth, deepest) as k:
        wide, deep = (f.smaller(f.integer("sub", all_, here), limit)
                      for all_, here, limit in ((columns, column, str(WIDE)), (depth, k, deepest)))
        more = f.value(f"or i1 {for_more}, {f.value(f'icmp sgt i64 {k}, 0')}")
        share = [f.value(f"select i1 {few}, i64 {whole}, i64 {part}") for whole, part in
                 zip(("0", wide), threads.share_of(f, wide, strip))]
        again = f.value(f"icmp sgt i64 {f.integer('add', column, k)}, 0")
        with f.when(f.value(f"and i1 {many}, {again}")):
            threads.meet(f)  # before the right side is written over
        with f.loop(*share, strip) as begin:
            of_strip = f.smaller(f.integer("sub", wide, begin), str(strip))
            sides[1].pack(f.integer("add", column, begin), of_strip, k, deep,
                          f.at(packed, f.integer("mul", begin, apart)), VECTORS)
        with f.when(many):
            threads.meet(f)
        with f.loop(first_row, last_row, block) as row:
            rows = f.smaller(f.integer("sub", last_row, row), str(block))
            left = _left(sides[0], row, rows, k, deep, far)
            here = f.at(out, f.integer("mul", row, out_row))
            with f.loop("0", wide, strip) as begin:
                there = f.at(here, f.integer("mul", f.integer("add", column, begin), module.size))
                arguments = (f"({left}, ptr {f.at(packed, f.integer('mul', begin, apart))}, i64 {deep}, i1 {more}, "
                             f"ptr {there}, i64 {out_row}, i64 {rows}, i64 {f.integer('sub', wide, begin)})")
                blocks = {0: "block"} if paired else {0: "block", 1: "far_block"}
                f.choose(f.value(f"zext i1 {far} to i64"),
                         {k: partial(f.line, f"call void @{name}{arguments}") for k, name in blocks.items()})
    f.restore_denormals(flags)
    f.finish()


class _Side:
    """A side of a product: units (rows of the left one, columns of the right one) by steps of the depth."""

    def __init__(self, f: Function, name: str, unit: str, step: str, depth: str, paired: bool):
        self.f, self.depth, self.paired = f, depth, paired
        self.start = _word(f, name, "ptr")
        self.apart, self.along = _word(f, f"{name}_{unit}"), _word(f, f"{name}_{step}")  # bytes between units, steps
        self.in_line = f.value(f"icmp eq i64 {self.along}, {f.module.size}")

    def at(self, unit: str, k: str) -> str:
        f = self.f
        return f.at(f.at(self.start, f.integer("mul", unit, self.apart)), f.integer("mul", k, self.along))

    def pack(self, unit: str, units: str, k: str, deep: str, target: str, vectors: int) -> None:
        """Some units for some steps as [step][unit], as many units as there are lanes in so many vectors."""
        f, lanes = self.f, self.f.module.lanes
        vector, start = lanes * f.module.size, self.at(unit, k)

        def copied() -> None:
            masks = [f.first_lanes(f.integer("sub", units, v * lanes)) for v in range(vectors)]
            with f.loop("0", deep) as n:
                here, there = f.at(start, f.integer("mul", n, self.along)), f.at(target, f.integer("mul", n,
                                                                                                   vectors * vector))
                for v, mask in enumerate(masks):
                    value = (self._pairs(here, v, f.integer("add", k, n), mask) if self.paired else
                             f.load_where(f.at(here, v * vector), mask))
                    f.store(value, f.at(there, v * vector))

        def turned() -> None:
            with f.loop("0", deep, lanes) as n:
                there = f.at(target, f.integer("mul", n, vectors * vector))
                for v in range(vectors):
                    here = f.at(f.at(start, f.integer("mul", n, self.along)), f.integer("mul", self.apart, v * lanes))
                    valid = f"i64 {f.integer('sub', units, v * lanes)}, i64 {f.integer('sub', deep, n)}"
                    f.line(f"call void @turn(ptr {here}, i64 {self.apart}, {valid}, ptr {f.at(there, v * vector)}, "
                           f"i64 {vectors * vector})")

        f.choose(f.value(f"zext i1 {self.in_line} to i64"), {0: copied, 1: turned})

    def _pairs(self, at: str, vector: int, step: str, mask: str) -> str:
        """Of two rows of the depth, one after the other, some values beside each other; beyond the depth are zeros."""
        f, m = self.f, self.f.module
        second = f.integer("add", f.integer("mul", step, 2), 1)
        there = f.where(f.value(f"icmp slt i64 {second}, {self.depth}"), mask)
        low, high = (f.load_halves_where(f.at(row, vector * m.lanes * 2), valid) for row, valid in
                     ((at, mask), (f.at(at, f.integer("sdiv", self.along, 2)), there)))
        both = f.value(f"or {m.integers} {low}, {f.value(f'shl {m.integers} {high}, splat (i32 16)')}")
        return f.value(f"bitcast {m.integers} {both} to {m.vector}")


def _left(side: _Side, row: str, rows: str, k: str, deep: str, far: str) -> str:
    """Where some rows begin, bytes from row to row, and from step to step; `far`: they are read where they lie."""
    f, m = side.f, side.f.module
    readable = f.value(f"or i1 {side.in_line}, {far}")
    ready = f.value(f"and i1 {readable}, {f.value(f'icmp eq i64 {rows}, {_rows(m.lanes)}')}")
    with f.when(f.value(f"xor i1 {ready}, true")):
        side.pack(row, rows, k, deep, "%tile", 1)
    start, apart, along = (f.value(f"select i1 {ready}, {kind} {there}, {kind} {copied}") for kind, there, copied in
                           (("ptr", side.at(row, k), "%tile"), ("i64", side.apart, m.size),
                            ("i64", side.along, m.lanes * m.size)))
    return f"ptr {start}, i64 {apart}, i64 {along}"
