"""Receives loops, hands on machine code that runs them on arrays of numpy or torch, on several threads."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from ...compiler import Cell, Scan, split
from ...compiler.scan import with_before
from .. import kernel
from ..batch import Batch, share
from ..plan import Loop
from . import jit, threads, tiles
from .emit import emit, splits_units, tile_values
from .panels import block_count, panel_values
from .shape import TILE_ROWS, Panel, shape
from .target import Target, target

# Values of weights from which packing them takes longer than a call of BLAS that reads them as they are.
WORTH_A_CALL = 1 << 17
# Handing work to another thread costs some ten microseconds: below this many multiplications it does not pay.
WORTH_A_THREAD = 1 << 19
# Threads that own rows each read all panels in every step; beyond the second cache of a core, sharing the units and
# meeting after every stage is faster, if there is enough to do in between.
MOST_PANEL = 1 << 20
WORTH_A_MEETING = 1 << 16
# Bytes of input products that are made and used up before the next ones are made; in a product of fewer rows than these
# packing the weights would weigh.
AT_ONCE = 1 << 22
ROWS_AT_ONCE = 1024


class _Packing:
    """How one panel is made: the function, the row blocks that it reads, and the shape of the result."""

    def __init__(self, function, panel: Panel, blocks: int, values: int, cell: Cell, sizes: dict[str, int], size: int):
        self.function, self.blocks, self.values = function, blocks, values
        self.table: list[tuple[str, int]] = []  # (family, offset in bytes of a row block), for every piece and slot
        for _, matrices in panel.pieces:
            for name, gate, _ in matrices:
                family = cell.families[name]
                block = sizes[family.rows] * sizes[family.columns] * size
                self.table.append((name, family.gates.index(gate) * block))
        self.families = list(dict.fromkeys(name for name, _ in self.table))


class Compiled:
    """One loop as machine code."""

    def __init__(self, loop: Loop, machine: Target, size: int, cell: Cell):
        lanes = machine.lanes(size)
        loop = shape(loop, machine, lanes)
        self.loop, self.size = loop, size
        self.code = jit.load(emit(loop, machine, size), machine)
        word, pointer = ctypes.c_int64, ctypes.c_void_p
        signature = [pointer if a.startswith("ptr") else word for a in threads.SIGNATURE]
        self.run = self.code.function("run", *signature)
        panels = [(step, panel) for step in loop.passes for panel in step.panels]
        values = tiles.panel_values if loop.short else panel_values
        self.packings = [_Packing(self.code.function(f"pack_{panel.name}", *signature), panel, block_count(step, lanes),
                                  values(step, panel, lanes), cell, loop.sizes, size) for step, panel in panels]
        self.multiplications = sum(panel.length * len(panel.slots) * step.size for step, panel in panels)
        self.panel_values = sum(p.values for p in self.packings)
        self.tile_values = tile_values(loop, lanes) + lanes
        # Of rounded operands, in values of the loop, for each row of a thread.
        self.rounded_values = max(tiles.row_bytes(loop, s) for s in loop.passes) // size if loop.short else 0
        self.shareable = splits_units(loop, lanes)
        self.buffers = [(b.name, b.width * (2 if b.short else size)) for b in loop.buffers.values()]

    def pack(self, xp, parameters: dict[str, Any]) -> tuple[Any, list[int]]:
        """The packed panels of the weights as they are now, in one array, and the address of each.

        The addresses are good as long as the array lives. It costs little beside the sequence.
        """
        packed = xp.empty(self.panel_values)
        address, addresses = xp.address(packed), []
        for p in self.packings:
            sources = {n: xp.address(parameters[n]) for n in p.families}
            words = (ctypes.c_int64 * len(p.table))(*[sources[n] + offset for n, offset in p.table])
            shares = share(p.blocks, min(xp.threads(), 1 + p.values // WORTH_A_THREAD))
            threads.run(p.function, ctypes.addressof(words), [(*share, 0, address) for share in shares])
            addresses.append(address)
            address += p.values * self.size
        return packed, addresses

    def call(self, xp, batch: Batch, span: tuple[int, int], from_end: bool, arrays, edges,
             weights: tuple[Any, list[int]], passing=frozenset(), still=frozenset()) -> None:
        """Run the turns of some steps. A `passing` buffer holds these steps only; a `still` one the same for all."""
        begin = int(batch.offsets[span[0]])
        total = int(batch.offsets[span[1]]) - begin
        words = list(batch.turns(from_end, *span))
        for name, width in self.buffers:
            address = xp.address(arrays[name])
            if name in still:
                width = 0
            elif name in passing:
                address -= begin * width
            words += address, width, xp.address(edges[name]) if name in edges else 0
        words += weights[1]
        arguments = (ctypes.c_int64 * len(words))(*words)
        parts, together = self._parts(batch, total, xp.threads())
        # Each thread has sums of a tile, and rounded operands of its rows: a tile of few rows reads on behind them.
        own = [self.tile_values + (count + TILE_ROWS - 1) * self.rounded_values for _, count in parts]
        scratch = xp.empty(batch.rows * self.loop.scratch_row + sum(own))
        shared = xp.address(scratch)
        behind = shared + batch.rows * self.loop.scratch_row * self.size
        parts = [(first, count, behind + sum(own[:k]) * self.size, shared) for k, (first, count) in enumerate(parts)]
        threads.run(self.run, ctypes.addressof(arguments), parts, together)

    def _parts(self, batch: Batch, total: int, most: int) -> tuple[list[tuple[int, int]], bool]:
        """Rows for every thread, and whether the threads share the units of the same rows instead."""
        count = min(most, 1 + total * max(self.multiplications, 256) // WORTH_A_THREAD)
        rows = total / batch.steps  # that a step has; a thread with few of them only waits for the panels
        if (count > 1 and self.shareable and threads.has_team()
                and (self.panel_values * self.size > (MOST_PANEL if batch.is_dense else MOST_PANEL // 2)
                     or rows < 2 * count)
                and rows * self.multiplications > count * WORTH_A_MEETING):
            return [(0, batch.rows)] * count, True
        return batch.parts(count), False


class Kernel(kernel.Kernel):
    """The loops of one cell as machine code."""

    def __init__(self, scan: Scan, sizes: dict[str, int], bytes_per_value: int, machine: Target, short: bool = False):
        super().__init__(scan, sizes, short)
        self.size, self.machine, self.align = bytes_per_value, machine, machine.lanes(bytes_per_value)
        weights = sum(sizes[f.rows] * len(f.gates) * sizes[f.columns] for f in self.cell.families.values() if f.columns)
        self.packs = weights >= WORTH_A_CALL and not short

    def compile(self, loop: Loop) -> Compiled:
        return Compiled(loop, self.machine, self.size, self.cell)

    def rows_at_once(self, width: int) -> int:
        return max(ROWS_AT_ONCE, AT_ONCE // max(1, width * self.size))

    def ir(self) -> dict[str, str]:
        """The IR of the loops that training runs, before LLVM sees it."""
        return {name: emit(shape(plan.loop, self.machine, self.align), self.machine, self.size) for name, plan in
                (("forward", self._training_plan), ("backward", self._backward_plan))}


@cache
def _kernel(cell: Cell, outputs: tuple[str, ...], sizes: tuple[tuple[str, int], ...], bytes_per_value: int,
            machine: Target, short: bool) -> Kernel:
    scan = split(cell, outputs)
    # Rows of inputs pass through a matrix unit as fast as they would be read back from memory.
    return Kernel(with_before(scan, "constant") if short else scan, dict(sizes), bytes_per_value, machine, short)


def kernel_for(cell: Cell, sizes: dict[str, int], bytes_per_value: int, outputs: tuple[str, ...] = (),
               short: bool = False) -> Kernel:
    """The kernel of a cell for sizes (names as in the cell) and 4 or 8 bytes per value.

    `outputs` names the states and recorded values to hand out for every step; the cell's output if not given.
    `short`: multiply bfloat16 on the matrix unit. That needs 4 bytes per value and a `target()` with `tiles`.
    """
    return _kernel(cell, outputs or (cell.output,), tuple(sorted(sizes.items())), bytes_per_value, target(), short)
