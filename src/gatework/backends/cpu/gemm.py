"""Large products of float32 on a matrix unit (AMX), which itself multiplies bfloat16.

A float32 is the sum of three bfloat16: each is what those before it leave, rounded. Of the nine products of two such
sums the six are added up, in float32, that are larger than what float32 would lose itself: the result is as exact.

Both sides are packed into tiles, each with its three parts: 16 rows of 32 k on the left, 16 pairs of k by 16 columns on
the right. The right side is packed first, for all threads; then each thread takes rows, packs some, and multiplies.
"""

from __future__ import annotations

import ctypes
from array import array
from functools import cache, partial
from itertools import islice

from . import jit, threads
from .ir import Function, Module
from .parts import IN_PAIRS, PARTS, SIDE_BY_SIDE, in_parts, report
from .target import Target
from .tiles import LEFT, RIGHT, ROW, TILE, begin, end
from .turning import write_turning

SIDE = 16                 # rows or columns of a strip of tiles
CHUNK = 32                # k of a tile
BLOCK = 2 * SIDE          # rows, and columns, whose sums are in registers
DEEP = 512               # k that are packed at once
WIDE = 2048               # columns that are packed at once
NEAR = 128                # k of one walk: the left side of a block then fits the first cache, the right ones the second
GROUP, GROUPS = 128, 256  # rows and columns whose sums are finished before the next ones
PIECE = NEAR // CHUNK * PARTS * TILE  # bytes of a strip of one walk; pieces of all strips follow each other
SUMS = BLOCK * BLOCK * 4              # bytes of the sums of a block, tile by tile
# Of every thread: packed rows, sums, a tile that is turned over.
_SUMS_AT = GROUP // SIDE * DEEP // NEAR * PIECE
_TURNED_AT = _SUMS_AT + GROUP * GROUPS * 4
LINE = 64
OWN = _TURNED_AT + SIDE * CHUNK * 4
PACKED = WIDE // SIDE * DEEP // NEAR * PIECE

_WORDS = ("left", "left_stride", "left_across", "right", "right_stride", "right_across", "out", "out_stride", "rows",
          "columns", "depth", "packed", "infinite")
# A strip lies in memory unit by unit, each with its k side by side, or `across`: k by k.
_STRIPS = ["ptr %source", "i64 %stride", "i1 %across", "i64 %units", "i64 %depth", "ptr %target", "i64 %apart",
           "ptr %turned", "ptr %infinite"]
_TILE = ["ptr %source", "i64 %stride", "i64 %rows", "i64 %columns", "ptr %target", "ptr %infinite"]


def bytes_of_work(most_threads: int) -> int:
    """Memory that a product needs: the packed right side, and more for every thread."""
    return PACKED + most_threads * OWN + LINE


def multiply(words: dict[str, int], work: int, machine: Target, most_threads: int) -> bool:
    """out [rows, columns] = left [rows, depth] @ right [depth, columns], all float32; returns whether all was finite.

    words: addresses, sizes, and bytes from row to row. `left_across`: rows, not k, lie side by side, and the stride is
    that from k to k; `right_across`: columns do. work: the address of `bytes_of_work`. With an infinite operand, or one
    that is no number, the result is wrong, and False is returned.
    """
    work += -work % LINE
    infinite = ctypes.c_int64(0)
    words = words | dict(packed=work, infinite=ctypes.addressof(infinite))
    arguments = array("q", map(words.get, _WORDS))
    count = min(most_threads, -(-words["rows"] // BLOCK)) if threads.team() else 1
    members = [(0, 0, work + PACKED + n * OWN, 0) for n in range(count)]
    threads.run(_function(machine), threads.address_of(arguments), members, together=count > 1)
    return not infinite.value


@cache
def _function(machine: Target):
    return jit.load("gemm", partial(text, machine), machine).function("multiply", *threads.KINDS)


def text(machine: Target) -> str:
    """The LLVM IR of `multiply`, which one member of a team runs."""
    module = Module(machine, 4)
    module.functions.append(threads.waiting(module.target))
    write_turning(module)
    for name, pairs in (("rows", False), ("pairs", True)):
        _write_tile(module, name, pairs)
        _write_strips(module, name, pairs)
    _write_block(module)
    _write_multiply(module)
    return module.text()


# ---- packing


def _write_tile(module: Module, name: str, pairs: bool) -> None:
    """A tile in its parts: of 16 rows with 32 values side by side, or of 32 rows with 16, in pairs of rows."""
    f = Function(module, name, _TILE, separate=True)
    masks = [f.first_lanes(f.integer("sub", "%columns", 0 if pairs else half * SIDE)) for half in range(2)]
    seen = f.variable("i16", "0")
    with f.loop("0", SIDE) as k:
        values = []
        for half, mask in enumerate(masks):
            row = f.integer("add", f.integer("mul", k, 2), half) if pairs else k
            at = f.at("%source", f.integer("mul", "%stride", row))
            valid = f.where(f.value(f"icmp slt i64 {row}, %rows"), mask)
            values.append(f.load_where(at if pairs else f.at(at, half * ROW), valid))
        out = f.at("%target", f.integer("mul", k, ROW))
        for number, part in enumerate(in_parts(f, *values, IN_PAIRS if pairs else SIDE_BY_SIDE, PARTS, seen)):
            f.store(part, f.at(out, number * TILE))
    report(f, seen, "%infinite")
    f.finish()


def _write_strips(module: Module, name: str, pairs: bool) -> None:
    """All tiles of some units; those that lie the other way are turned over first.

    Tile after tile in the order of memory: rows of k that are visited for one line each would miss every page.
    """
    f = Function(module, f"strips_of_{name}", _STRIPS, separate=True)
    strips = f.integer("mul", f.integer("sdiv", f.integer("add", "%units", BLOCK - 1), BLOCK), 2)
    chunks = f.integer("sdiv", f.integer("add", "%depth", CHUNK - 1), CHUNK)
    inner = f.value(f"select i1 %across, i64 {strips}, i64 {chunks}")
    with f.loop("0", f.integer("mul", strips, chunks)) as number:
        far, near = f.integer("sdiv", number, inner), f.integer("srem", number, inner)
        chunk, strip = (f.value(f"select i1 %across, i64 {a}, i64 {b}") for a, b in ((far, near), (near, far)))
        unit, k = f.integer("mul", strip, SIDE), f.integer("mul", chunk, CHUNK)
        units, left = f.integer("sub", "%units", unit), f.integer("sub", "%depth", k)
        out = f.at("%target", f.integer("mul", f.integer("sdiv", k, NEAR), "%apart"))
        out = f.at(out, f.integer("mul", strip, PIECE))
        out = f.at(out, f.integer("mul", f.integer("srem", k, NEAR), PARTS * TILE // CHUNK))
        below, beside = (f.value(f"select i1 %across, i64 {a}, i64 {b}") for a, b in ((k, unit), (unit, k)))
        at = f.at(f.at("%source", f.integer("mul", below, "%stride")), f.integer("mul", beside, 4))

        def ready() -> None:
            rows, columns = (left, units) if pairs else (units, left)
            f.line(f"call void @{name}(ptr {at}, i64 %stride, i64 {rows}, i64 {columns}, ptr {out}, ptr %infinite)")

        def turned() -> None:
            for half in range(2):
                rest = f.integer("sub", left, half * SIDE)
                if pairs:
                    here, rows, columns, apart, there = f.at(at, half * ROW), units, rest, ROW, half * SIDE * ROW
                else:
                    here = f.at(at, f.integer("mul", "%stride", half * SIDE))
                    rows, columns, apart, there = rest, units, 2 * ROW, half * ROW
                f.line(f"call void @turn(ptr {here}, i64 %stride, i64 {rows}, i64 {columns}, "
                       f"ptr {f.at('%turned', there)}, i64 {apart})")
            rows, columns = (CHUNK, SIDE) if pairs else (SIDE, CHUNK)
            f.line(f"call void @{name}(ptr %turned, i64 {4 * columns}, i64 {rows}, i64 {columns}, ptr {out}, "
                   "ptr %infinite)")

        f.choose(f.value("zext i1 %across to i64"), {int(pairs): ready, int(not pairs): turned})
    f.finish()


class _Side:
    """One operand of a function with the arguments."""

    def __init__(self, f: Function, name: str, packing: str):
        self.f, self.packing = f, packing
        self.start, self.stride = _word(f, name, "ptr"), _word(f, f"{name}_stride")
        self.across = f.value(f"icmp ne i64 {_word(f, f'{name}_across')}, 0")

    def pack(self, unit: str, units: str, k: str, depth: str, target: str, strips: int) -> None:
        """The strips of some units from one on, and from a k on, into memory for so many strips."""
        f = self.f
        below, beside = (f.value(f"select i1 {self.across}, i64 {a}, i64 {b}") for a, b in ((k, unit), (unit, k)))
        at = f.at(f.at(self.start, f.integer("mul", below, self.stride)), f.integer("mul", beside, 4))
        f.line(f"call void @strips_of_{self.packing}(ptr {at}, i64 {self.stride}, i1 {self.across}, i64 {units}, "
               f"i64 {depth}, ptr {target}, i64 {strips * PIECE}, ptr {f.at('%tile', _TURNED_AT)}, "
               f"ptr {_word(f, 'infinite', 'ptr')})")


def _word(f: Function, name: str, kind: str = "i64") -> str:
    return f.load_word("%arguments", _WORDS.index(name), kind)


# ---- multiplying


def _write_block(module: Module) -> None:
    """sums (+)= left @ right for two by two tiles, for some chunks of k."""
    f = Function(module, "block", ["ptr %left", "ptr %right", "i64 %chunks", "i1 %more", "ptr %sums"], separate=True)
    sums = [(register, f.at("%sums", register * TILE)) for register in range(4)]
    for register, _ in sums:
        f.line(f"call void @llvm.x86.tilezero(i8 {register})")
    with f.when("%more"):
        for register, at in sums:
            f.line(f"call void @llvm.x86.tileloadd64(i8 {register}, ptr {at}, i64 {ROW})")
    # Between the products the next chunk of both strips of the right side is called for, some lines at a time.
    lines = iter([k * PIECE + PARTS * TILE + line * ROW for k in range(2) for line in range(PARTS * TILE // ROW)])
    with f.loop("0", "%chunks") as chunk:
        left, right = (f.at(side, f.integer("mul", chunk, PARTS * TILE)) for side in ("%left", "%right"))
        for b in range(PARTS):
            for k in range(2):
                at = f.at(right, k * PIECE + b * TILE)
                f.line(f"call void @llvm.x86.tileloadd64(i8 {RIGHT + k}, ptr {at}, i64 {ROW})")
            for a in range(PARTS - b):
                for d in range(2):
                    at = f.at(left, d * PIECE + a * TILE)
                    f.line(f"call void @llvm.x86.tileloadd64(i8 {LEFT + d}, ptr {at}, i64 {ROW})")
                for d in range(2):
                    for k in range(2):
                        f.line(f"call void @llvm.x86.tdpbf16ps(i8 {2 * d + k}, i8 {LEFT + d}, i8 {RIGHT + k})")
                        for line in islice(lines, 4):
                            f.prefetch(f.at(right, line))
    for register, at in sums:
        f.line(f"call void @llvm.x86.tilestored64(i8 {register}, ptr {at}, i64 {ROW})")
    f.finish()


def _write_multiply(module: Module) -> None:
    f = Function(module, "multiply", threads.SIGNATURE, internal=False)
    begin(f)
    left, right = _Side(f, "left", "rows"), _Side(f, "right", "pairs")
    columns, depth, packed = _word(f, "columns"), _word(f, "depth"), _word(f, "packed", "ptr")
    rows = threads.share_of(f, _word(f, "rows"), BLOCK)
    with f.loop("0", columns, WIDE) as column, f.loop("0", depth, DEEP) as k:
        wide, deep = (f.smaller(f.integer("sub", all_, here), most)
                      for all_, here, most in ((columns, column, WIDE), (depth, k, DEEP)))
        first, until = threads.share_of(f, wide, BLOCK)
        right.pack(f.integer("add", column, first), f.integer("sub", until, first), k, deep,
                   f.at(packed, f.integer("mul", first, PIECE // SIDE)), WIDE // SIDE)
        threads.meet(f)
        with f.loop(*rows, GROUP) as group:
            last = f.smaller(f.integer("add", group, GROUP), rows[1])
            left.pack(group, f.integer("sub", last, group), k, deep, "%tile", GROUP // SIDE)
            _write_group(f, (group, last), (column, wide), (k, deep), packed)
        threads.meet(f)  # before the right side is written over
    end(f)
    f.finish()


def _write_group(f: Function, rows: tuple[str, str], columns: tuple[str, str], depth: tuple[str, str],
                 packed: str) -> None:
    """Some packed rows (first, end) by the packed columns (first, how many), over a depth (first, how much)."""
    (group, last), (column, wide), (k, deep) = rows, columns, depth
    with f.loop("0", wide, GROUPS) as beside:
        right_end = f.smaller(f.integer("add", beside, GROUPS), wide)

        def each(write) -> None:
            with f.loop(group, last, BLOCK) as row, f.loop(beside, right_end, BLOCK) as unit:
                down = f.integer("sub", row, group)
                at = f.integer("add", f.integer("mul", down, GROUPS * 4),
                               f.integer("mul", f.integer("sub", unit, beside), BLOCK * 4))
                write(row, unit, down, f.at(f.at("%tile", _SUMS_AT), at))

        with f.loop("0", deep, NEAR) as near:
            number = f.integer("sdiv", near, NEAR)
            walk = f.smaller(f.integer("sub", deep, near), str(NEAR))
            chunks = f.integer("sdiv", f.integer("add", walk, CHUNK - 1), CHUNK)
            more = f.value(f"icmp sgt i64 {near}, 0")

            def block(row: str, unit: str, down: str, sums: str) -> None:
                a, b = (f.at(f.at(start, f.integer("mul", number, strips * PIECE)),
                             f.integer("mul", at, PIECE // SIDE))
                        for start, strips, at in (("%tile", GROUP // SIDE, down), (packed, WIDE // SIDE, unit)))
                f.line(f"call void @block(ptr {a}, ptr {b}, i64 {chunks}, i1 {more}, ptr {sums})")

            each(block)
        each(partial(_write_out, f, f.value(f"icmp sgt i64 {k}, 0"), last, column, wide))


def _write_out(f: Function, more: str, last: str, column: str, wide: str, row: str, unit: str, down: str,
               sums: str) -> None:
    """The sums of a block to where they belong, added to what is there if this is not the first depth."""
    stride = _word(f, "out_stride")
    out = f.at(f.at(_word(f, "out", "ptr"), f.integer("mul", row, stride)),
               f.integer("mul", f.integer("add", column, unit), 4))
    masks = [f.first_lanes(f.integer("sub", f.integer("sub", wide, unit), half * SIDE)) for half in range(2)]
    with f.loop("0", f.smaller(f.integer("sub", last, row), str(BLOCK))) as k:
        tile = f.integer("mul", f.integer("sdiv", k, SIDE), 2 * TILE)
        here = f.at(f.at(sums, tile), f.integer("mul", f.integer("srem", k, SIDE), ROW))
        for half, mask in enumerate(masks):
            there = f.at(f.at(out, f.integer("mul", k, stride)), half * ROW)
            before = f.load_where(there, f.where(more, mask))
            f.store_where(f.arithmetic("fadd", before, f.load(f.at(here, half * TILE))), there, mask)
