"""Receives the plan of a loop, hands on its LLVM IR: inner products, the packing of their panels, and the loop itself.

    for each turn of the loop, and in it for the rows that go on and those that begin (or end) in it
        for each stage
            for each block of units, for each tile of rows
                inner products into a small scratch      one function per number of rows, free of the cell
                for each vector of units, for each row   the cell's equations, on registers
"""

from __future__ import annotations

from functools import partial

from ...compiler.expr import Expr, number
from ..plan import Place
from ..schedule import is_invariant
from . import rounding, tiles
from .ir import Function, Module
from .maths import OPERATIONS
from .memory import Memory
from .panels import (
    NEAR,
    block_count,
    bytes_ahead,
    calls_next_block,
    inner_name,
    operand_width,
    vector_bytes,
    walk,
    write_inner_products,
    write_packing,
)
from .parts import report
from .shape import TILE_ROWS, TILES, Panel, Run, Shaped, Tiled, in_tiles, lies_ready, rounded, row_bytes
from .target import Target
from .threads import SIGNATURE, meet, share_of, waiting


def emit(loop: Shaped, target: Target, size: int) -> str:
    """The IR of a loop: `run` and `pack_<panel>`, both with the arguments of `threads.SIGNATURE`.

    `run` takes some rows, or all rows and a share of the units: then the members of a team wait for each other after
    every stage. `pack` takes some blocks of a panel.
    """
    module = Module(target, size)
    module.functions.append(waiting(target))
    for step in loop.passes:
        for panel in step.panels:
            if loop.on_unit:
                tiles.write_inner_products(module, step, panel, loop.parts)
            else:
                write_inner_products(module, loop, step, panel)
            if loop.parts:
                rounding.write_packing(module, step, panel, loop.parts)
            else:
                write_packing(module, loop, step, panel)
    _Kernel(module, loop).write()
    return module.text()


def splits_units(loop: Shaped, lanes: int) -> bool:
    """Whether threads may share the units of a loop: there must be some for each wherever products are made."""
    return all(not s.panels or block_count(s, lanes) > 1 for s in loop.passes)


def tile_values(loop: Shaped, lanes: int) -> int:
    """Sums of a tile, and behind them a word that says which way the walk before this one went."""
    sums = (max([1, *s.wide.values()]) * s.rows * len(s.stage.products) * s.vectors for s in loop.passes)
    return (max(sums, default=0) + 1) * lanes


class _Kernel(Memory):
    """Writes `run`: turns, stages, tiles, and the element-wise program at the end of each tile."""

    def __init__(self, module: Module, loop: Shaped):
        super().__init__(module, Function(module, "run", SIGNATURE, internal=False), loop)
        self.invariant: dict[Expr, bool] = {}
        self.shared = splits_units(loop, module.lanes)  # else one thread has all units of its rows
        self.index = {name: k for k, name in enumerate(loop.buffers)}
        self.seen = ""  # variable: lanes of operands that were infinite, or no number
        self.sums = tile_values(loop, module.lanes) * module.size  # bytes of the sums of a tile, and of a word
        self.back = ""  # whether this turn goes through the blocks from the last one to the first

    def write(self) -> None:
        f = self.f
        before = f.flush_denormals()
        if self.loop.parts:
            self.seen = f.variable("i16", "0")
        if self.loop.on_unit:
            tiles.begin(f)
        turns, first, direction = (f.load_word("%arguments", k) for k in range(3))
        offsets, sizes = (f.load_word("%arguments", k, "ptr") for k in (3, 4))
        words = 5 + 3 * len(self.loop.buffers)
        self.panels = {p.name: f.load_word("%arguments", words + k, "ptr") for k, p in enumerate(self.loop.panels)}
        for name, k in self.index.items():
            self.base[name] = f.load_word("%arguments", 5 + 3 * k, "ptr")
            if self.loop.buffers[name].kind == "sequence":
                self.stride[name] = f.load_word("%arguments", 6 + 3 * k)
                self.edge[name] = f.load_word("%arguments", 7 + 3 * k, "ptr")
        end = f.integer("add", "%first", "%rows")
        from_end = f.value(f"icmp slt i64 {direction}, 0")
        # Every other turn goes through the blocks backwards: it begins with the weights that the one before has left in
        # the caches. Whatever this word holds at first will do.
        ways = f.at("%tile", self.sums - 8)
        with f.loop("0", turns) as turn:
            way = f.integer("add", f.load_word(ways, 0), 1)
            f.line(f"store i64 {way}, ptr {ways}")
            self.back = f.value(f"trunc i64 {way} to i1")
            step = f.integer("add", first, f.integer("mul", turn, direction))
            here = f.at(offsets, f.integer("mul", step, 8))
            self.offset = {0: f.load_word(here, 0)}
            self.offset |= {away: f.value(f"load i64, ptr {f.at(here, f.integer('mul', direction, 8 * away))}")
                            for away in (-1, 1)}
            now, later = (f.load_word(f.at(sizes, f.integer("mul", step, 8)), k) for k in range(2))
            # Rows that have the step after this one too go on; the others have begun, or end, in this turn.
            if not any(place.edge == "last" for place in self.loop.reads.values()):
                later = f.value(f"select i1 {from_end}, i64 {later}, i64 0")
            at_start = f.value(f"icmp eq i64 {step}, 0")
            with f.loop("0", "2") as part:
                others = f.value(f"icmp eq i64 {part}, 1")
                self.at_edge = {edge: f.value(f"select i1 {from_end}, i1 {a}, i1 {b}") for edge, a, b in
                                (("first", others, at_start), ("last", at_start, others))}
                begin = f.value(f"select i1 {others}, i64 {later}, i64 0")
                until = f.value(f"select i1 {others}, i64 {now}, i64 {later}")
                self.row = f.larger(begin, "%first")
                self.rows = f.integer("sub", f.smaller(until, end), self.row)
                with f.when(f.value(f"icmp sgt i64 {self.rows}, 0")):
                    self._turn()
        if self.loop.on_unit:
            tiles.end(f)
        if self.loop.parts:
            report(f, self.seen, f.load_word("%arguments", words + len(self.panels), "ptr"))
        f.restore_denormals(before)
        f.finish()

    def _turn(self) -> None:
        """All stages of a turn, for the rows of one entry."""
        f = self.f
        self.find_all()
        for step in self.loop.passes:
            self._stage(step)
            meet(f)

    # ---- stages

    def _tiling(self, step: Tiled, count: str) -> tuple[str, str, str]:
        """For so many rows: (rows in a tile, tiles with one row more, blocks at once); tiles differ by one row at the
        most.

        But on a matrix unit, where they are full up to the last one.
        """
        f = self.f
        if not step.panels:
            return count, "0", "1"
        if self.loop.on_unit:
            return str(step.rows), "0", "1"
        tiles = f.integer("sdiv", f.integer("add", count, step.rows - 1), step.rows)
        tiles = f.larger(tiles, "1")
        blocks = "1"
        for rows, wide in step.wide.items():
            few = f.value(f"icmp eq i64 {count}, {rows}")
            blocks = f.value(f"select i1 {few}, i64 {wide}, i64 {blocks}")
        return f.integer("sdiv", count, tiles), f.integer("srem", count, tiles), blocks

    def _stage(self, step: Tiled) -> None:
        f = self.f
        if not step.stage.dims:
            with f.loop(*share_of(f, self.rows) if self.shared else ("0", self.rows)) as row:
                self._row(step, {}, row, "0", None)
            return
        if step.panels and self.loop.parts:
            self._round_operands(step)
        total = block_count(step, self.m.lanes)
        if not self.shared:
            self._blocks(step, "0", str(total), "0", self.rows)
            return
        if self.loop.on_unit or total == 1:
            self._blocks(step, *share_of(f, str(total)), "0", self.rows)
            return
        # Blocks that are left over when all have as many are shared by rows, where there are some for everybody.
        enough = f.value(f"icmp sge i64 {self.rows}, {f.integer('mul', '%all', 2)}")
        whole = f.value(f"select i1 {enough}, i64 {f.integer('mul', f.integer('sdiv', str(total), '%all'), '%all')}, "
                        f"i64 {total}")
        begin, end = share_of(f, whole)
        first, last = share_of(f, self.rows)
        with f.loop("0", "2") as part:
            left = f.value(f"icmp eq i64 {part}, 1")
            here = [f.value(f"select i1 {left}, i64 {there}, i64 {here}") for here, there in
                    ((begin, whole), (end, str(total)), ("0", first), (self.rows, last))]
            self._blocks(step, *here)

    def _blocks(self, step: Tiled, begin: str, end: str, first: str, last: str) -> None:
        """Some blocks of units, for some of the rows of this entry."""
        f = self.f
        usual, extra, at_once = self._tiling(step, f.integer("sub", last, first))
        done, total = f.variable("i64", "0"), f.integer("sub", end, begin)
        with f.while_below(done, total) as past:
            left = f.integer("sub", total, past)
            fits = f.value(f"icmp sle i64 {at_once}, {left}")
            blocks = f.value(f"select i1 {fits}, i64 {at_once}, i64 1")
            from_last = f.integer("add", begin, f.integer("sub", left, blocks))
            now = f.value(f"select i1 {self.back}, i64 {from_last}, i64 {f.integer('add', begin, past)}")
            begun, index = f.variable("i64", first), f.variable("i64", "0")
            with f.while_below(begun, last) as row:
                tile = f.value(f"load i64, ptr {index}")
                larger = f.value(f"zext i1 {f.value(f'icmp slt i64 {tile}, {extra}')} to i64")
                rows = f.smaller(f.integer("add", usual, larger), f.integer("sub", last, row))
                if step.panels:
                    self._prefetch(step, now, row, rows)
                # The block to come; after the last one it is this one, with which the next turn begins.
                along = f.value(f"select i1 {self.back}, i64 -1, i64 {blocks}")
                along = f.value(f"select i1 {f.value(f'icmp eq i64 {left}, {blocks}')}, i64 0, i64 {along}")
                after = f.integer("add", now, along)
                half = f.integer("and", tile, 1)
                for panel in step.panels:
                    if self.loop.on_unit:
                        self._multiply_tiles(step, panel, now, row, rows)
                    else:
                        self._multiply(step, panel, now, blocks, row, rows, after, half)
                self._epilogue(step, now, blocks, row, rows)
                f.line(f"store i64 {f.integer('add', tile, 1)}, ptr {index}")
                f.line(f"store i64 {f.integer('add', row, rows)}, ptr {begun}")
            f.line(f"store i64 {f.integer('add', past, blocks)}, ptr {done}")

    def _multiply(self, step: Tiled, panel: Panel, block: str, blocks: str, row: str, rows: str, after: str,
                  half: str) -> None:
        f = self.f
        across = len(panel.slots) * step.vectors * vector_bytes(self.m, panel)
        start = f.at(self.panels[panel.name], f.integer("mul", block, panel.steps * across))
        far = bytes_ahead(self.m, step, panel)
        if calls_next_block(self.m, step, panel):
            ahead = f.at(self.panels[panel.name], f.integer("mul", after, panel.steps * across))
            ahead = f.at(ahead, f.integer("mul", half, panel.steps * far))
        else:
            ahead = f.at(start, NEAR)
        done = 0
        for k, run in enumerate(panel.runs):
            length = str(walk(panel, run))
            if run.skip_first:
                length = f.value(f"select i1 {self.at_edge['first']}, i64 0, i64 {length}")
            operand, stride = self._where(step, run, row), operand_width(self.loop, step, run)
            here, there = f.at(start, done * across), f.at(ahead, done * far)
            done += panel.steps_of(run.length)

            self._call_variant(step, rows, blocks, [
                (r, b, f"call void @{inner_name(self.m, step, panel, r, b, stride)}(ptr {operand}, ptr {here}, "
                       f"i64 {length}, i1 {'true' if k else 'false'}, ptr %tile, ptr {there})")
                for r in range(1, step.rows + 1) for b in sorted({1, step.wide.get(r, 1)})])

    def _where(self, step: Tiled, run: Run, row: str) -> str:
        """Where an operand of inner products lies."""
        f = self.f
        if self.loop.parts and not lies_ready(self.loop, run):
            # Runs hold values of the cell, which refuse to be compared: they are told apart by what they read.
            at = {r.source: at for r, at in rounded(self.loop, step)}[run.source]
            return f.at(f.at("%tile", f.integer("mul", row, row_bytes(self.loop, step))), self.sums + at)
        return self.at(run.source, row, "0") if isinstance(run.source, Place) else self.in_scratch(run.source, row)

    def _round_operands(self, step: Tiled) -> None:
        """Round what the stage multiplies, or cut it into parts: all rows of the turn, behind the sums of tiles."""
        f, stride = self.f, row_bytes(self.loop, step)
        for run, at in rounded(self.loop, step):
            # What a lagged operand would be in the first turn is not there: nothing is multiplied then.
            rows = self.rows
            if run.skip_first:
                rows = f.value(f"select i1 {self.at_edge['first']}, i64 0, i64 {rows}")
            with f.loop("0", rows) as row:
                target = f.at(f.at("%tile", f.integer("mul", row, stride)), self.sums + at)
                rounding.write_rounding(f, run, self.loop.parts, target, partial(self._operand, run, row), self.seen)

    def _operand(self, run: Run, row: str, unit: str, valid: int | None) -> str:
        if isinstance(run.source, Place):
            return self.load(run.source, row, unit, valid)
        return self.f.load(self.in_scratch(run.source, row, unit), valid)

    def _multiply_tiles(self, step: Tiled, panel: Panel, block: str, row: str, rows: str) -> None:
        f = self.f
        across = self.loop.parts * len(panel.slots) * step.vectors * rounding.TILE
        start = f.at(self.panels[panel.name], f.integer("mul", block, panel.chunks * across))
        done, runs = 0, []
        for run in panel.runs:
            chunks = str(in_tiles(run.length))
            if run.skip_first:
                chunks = f.value(f"select i1 {self.at_edge['first']}, i64 0, i64 {chunks}")
            operand, apart = self._where(step, run, row), 4 * operand_width(self.loop, step, run)
            runs.append(f"ptr {operand}, i64 {apart}, i64 {chunks}, ptr {f.at(start, done * across)}")
            done += in_tiles(run.length)
        f.choose(f.integer("sdiv", f.integer("add", rows, TILE_ROWS - 1), TILE_ROWS), {
            down: partial(f.line, f"call void @{tiles.inner_name(step, panel, down)}(ptr %tile, {', '.join(runs)})")
            for down in range(1, TILES + 1)})

    def _call_variant(self, step: Tiled, rows: str, blocks: str, calls: list[tuple[int, int, str]]) -> None:
        """Make the call that is written for this many rows and blocks."""
        f = self.f
        selector = f.integer("add", f.integer("mul", blocks, step.rows + 1), rows)
        f.choose(selector, {b * (step.rows + 1) + r: partial(f.line, call) for r, b, call in calls})

    def _prefetch(self, step: Tiled, block: str, first: str, rows: str) -> None:
        """Call for the sequences that the equations read and write, while the inner products run.

        Every row and gate is a place of its own, visited for one vector at a time: no hardware guesses that.
        """
        f = self.f
        places = [self.loop.reads[e] for e in self.read_by(step)] + [p for _, p in step.stores]
        places = [p for p in dict.fromkeys(places) if self.loop.buffers[p.buffer].kind == "sequence"]
        unit = f.integer("mul", block, step.vectors * self.m.lanes)
        with f.loop("0", rows) as k:
            row = f.integer("add", first, k)
            for place in places:
                for line in range(step.vectors):
                    f.prefetch(f.at(self.at(place, row, unit), line * self.m.lanes * self.value_size(place)))

    def _epilogue(self, step: Tiled, block: str, blocks: str, first: str, rows: str) -> None:
        f, lanes, tail = self.f, self.m.lanes, step.size % self.m.lanes
        start = f.integer("mul", block, step.vectors)
        end = f.integer("add", start, f.integer("mul", blocks, step.vectors))
        with f.loop(start, end) as vector:
            unit = f.integer("mul", vector, lanes)
            slot = f.integer("sub", vector, start)
            with f.when(f.value(f"icmp sle i64 {unit}, {step.size - lanes}")):
                self._tile(step, unit, slot, first, rows, None)
            if tail:
                with f.when(f.value(f"icmp eq i64 {unit}, {step.size - tail}")):
                    self._tile(step, unit, slot, first, rows, tail)

    def _tile(self, step: Tiled, unit: str, slot: str, first: str, rows: str, valid: int | None) -> None:
        """All rows of a tile for one vector of units; what is the same for all rows is computed once."""
        f = self.f
        env: dict[Expr, str] = {}
        for e in step.stage.nodes:
            if e.dims and is_invariant(e, self.invariant):
                self._compute(step, e, env, "0", unit, valid)
        products = len(step.stage.products)
        column = f.integer("srem", slot, step.vectors)
        block = f.integer("sdiv", slot, step.vectors)
        with f.loop("0", rows) as k:
            inner = dict(env)
            row = f.integer("add", first, k)
            index = f.integer("add", f.integer("mul", block, step.rows), k)
            index = f.integer("add", f.integer("mul", index, products * step.vectors), column)
            acc = f.at("%tile", f.integer("mul", index, self.m.lanes * self.m.size))
            for j, e in enumerate(step.stage.products):
                inner[e] = f.load(f.at(acc, j * step.vectors * self.m.lanes * self.m.size))
            self._row(step, inner, row, unit, valid)

    def _row(self, step: Tiled, env: dict[Expr, str], row: str, unit: str, valid: int | None) -> None:
        """The element-wise program for one row; all loads come before the first store."""
        f = self.f
        for e in step.stage.nodes:
            if e not in env:
                self._compute(step, e, env, row, unit, valid)
        for e in step.stage.sums:
            self._value(e.args[0], env, row, unit, valid)
        for e, _ in step.stores:
            self._value(e, env, row, unit, valid)
        for e in step.stage.sums:
            f.store(f.keep_valid(env[e.args[0]], valid), self.in_scratch(e, row, unit))
        for e in step.keep:
            f.store(env[e], self.in_scratch(e, row, unit))
        for e, place in step.stores:
            if e.dims:
                self.store(env[e], place, row, unit, valid)
            else:
                self.store(env[e], place, row, "0", 1)

    def _compute(self, step: Tiled, e: Expr, env: dict[Expr, str], row: str, unit: str, valid: int | None) -> None:
        if e.op == "sum":
            env[e] = self.f.total(self._added_up(e, row))
            self.f.store(env[e], self.in_scratch(e, row))  # later stages read it there
            return
        args = [self._value(a, env, row, unit, valid) for a in e.args]
        env[e] = OPERATIONS[e.op](self.f, *args)

    def _added_up(self, e: Expr, row: str) -> str:
        """The vectors of a value that is summed, one after the other, whoever left them in scratch."""
        f, lanes = self.f, self.m.lanes
        total = f.variable(self.m.vector, "zeroinitializer")
        with f.loop("0", str(-(-self.loop.size(e.args[0]) // lanes))) as vector:
            part = f.load(self.in_scratch(e, row, f.integer("mul", vector, lanes)))
            f.line(f"store {self.m.vector} {f.arithmetic('fadd', f.load(total), part)}, ptr {total}")
        return f.load(total)

    def _value(self, e: Expr, env: dict[Expr, str], row: str, unit: str, valid: int | None) -> str:
        """A value on registers, loaded if this stage has not computed it."""
        if e in env:
            return env[e]
        f = self.f
        if e.op == "const":
            env[e] = f.number(number(e))
        elif e.op == "size":
            env[e] = f.number(self.loop.sizes[e.attr])
        elif e in self.loop.reads:
            place = self.loop.reads[e]
            env[e] = self.load(place, row, unit, valid) if e.dims else self.load_spread(place, row)
        else:
            env[e] = f.load(self.in_scratch(e, row, unit if e.dims else "0"))
        return env[e]
