"""Receives loops, hands on machine code that runs them on arrays of numpy or torch, on several threads."""

from __future__ import annotations

import ctypes
from functools import cache, cached_property, partial
from typing import Any

import numpy as np

from ...compiler import Cell, Scan, split
from ...compiler.scan import with_before
from .. import kernel
from ..batch import Batch, share
from ..plan import Loop
from . import jit, rounding, threads
from .described import described
from .emit import emit, splits_units, tile_values
from .panels import block_count, panel_values, shortened
from .parts import PARTS
from .shape import TILE_ROWS, TILE_VALUES, Panel, in_tiles, row_bytes, shape
from .target import Target, target

# Values of weights from which packing them takes longer than a call of BLAS that reads them as they are, or than waking
# another thread for a part of it.
WORTH_A_CALL = 1 << 17
# A matrix unit multiplies float32 faster than vectors do where operands are as wide as this, tiles are as full, and the
# rows in parts stay in the second cache beside the weights.
LEAST_WIDTH, FULL, MOST_ROUNDED = 128, 0.85, 5 << 18
# Handing work to another thread costs some ten microseconds: below this many multiplications it does not pay.
WORTH_A_THREAD = 1 << 19
# Threads that own rows each read all panels in every step; beyond the second cache of a core, sharing the units and
# meeting after every stage is faster, if there is enough to do in between.
MOST_PANEL = 1 << 20
WORTH_A_MEETING, WORTH_A_TILE = 1 << 14, 1 << 20
# Bytes of input products that are made and used up before the next ones are made; in a product of fewer rows than these
# packing the weights would weigh.
AT_ONCE = 1 << 23
ROWS_AT_ONCE = 1024


# Packed panels, the address of each, and a word that is not 0 once a value was infinite; none where that is no matter.
Weights = tuple[Any, list[int], ctypes.c_int64 | None]


def _address(word: ctypes.c_int64 | None) -> int:
    return 0 if word is None else ctypes.addressof(word)


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


class Loops:
    """One loop as machine code: by vectors, or by a matrix unit that multiplies float32 in parts."""

    def __init__(self, loop: Loop, machine: Target, size: int, cell: Cell):
        self.loop = loop
        self.by_vectors = Compiled(loop, machine, size, cell)
        self.in_parts = None
        if machine.tiles and size == 4 and not loop.short and self.by_vectors.multiplications:
            self.in_parts = Compiled(loop, machine, size, cell, PARTS)

    def suited(self, xp, batch: Batch) -> list[Compiled]:
        """What may run this batch, the fastest first; each that fails leaves the work to the next."""
        if self.in_parts and self.in_parts.fills_tiles(batch, xp.threads()):
            return [self.in_parts, self.by_vectors]
        return [self.by_vectors]


class Compiled:
    """One loop as machine code, which is made when it first runs."""

    def __init__(self, loop: Loop, machine: Target, size: int, cell: Cell, parts: int = 0,
                 short_weights: bool = False):
        lanes = machine.lanes(size)
        loop = shape(loop, machine, lanes, parts, short_weights)
        self.loop, self.machine, self.size, self.cell = loop, machine, size, cell
        values = partial(rounding.panel_values, loop.parts) if loop.parts else panel_values
        self.panels = [(panel, block_count(step, lanes), values(step, panel, lanes))
                       for step in loop.passes for panel in step.panels]
        self.multiplications = sum(panel.length * len(panel.slots) * step.size
                                   for step in loop.passes for panel in step.panels)
        self.panel_values = sum(values for _, _, values in self.panels)
        self.tile_values = tile_values(loop, lanes) + lanes
        # Of operands in parts, in values of the loop, for each row of a thread.
        self.rounded_values = max(row_bytes(loop, s) for s in loop.passes) // size if loop.parts else 0
        self.shareable = splits_units(loop, lanes)
        # Of threads that share the units: a stage of scalars is one more, with next to nothing to do before it.
        self.meetings = 1 + sum(not step.stage.dims for step in loop.passes)
        self.buffers = [(b.name, b.width * (2 if b.short else size)) for b in loop.buffers.values()]

    @cached_property
    def code(self) -> jit.Code:
        write = partial(emit, self.loop, self.machine, self.size)
        return jit.load(f"loop {self.size} {described(self.loop)}", write, self.machine)

    @cached_property
    def run(self):
        return self.code.function("run", *threads.KINDS)

    @cached_property
    def packings(self) -> list[_Packing]:
        return [_Packing(self.code.function(f"pack_{panel.name}", *threads.KINDS), panel, blocks, values, self.cell,
                         self.loop.sizes, self.size) for panel, blocks, values in self.panels]

    def fills_tiles(self, batch: Batch, most: int) -> bool:
        """Whether a matrix unit runs this batch faster, in parts, than vectors do."""
        total = batch.total
        if total < TILE_ROWS * batch.steps or not self._is_broad:
            return False
        parts, together = self._parts(batch, total, batch.steps, most)
        rows = total / batch.steps / (1 if together else len(parts))
        return (rows >= FULL * TILE_ROWS * -(-rows // TILE_ROWS)
                and (rows > TILE_ROWS or not together or not self._is_wide(batch))
                and rows * self.rounded_values * self.size <= MOST_ROUNDED)

    @cached_property
    def _is_broad(self) -> bool:
        """Whether operands are wide enough for a matrix unit, and fill its tiles."""
        widths = [run.length for step in self.loop.passes for panel in step.panels for run in panel.runs]
        return min(widths) >= LEAST_WIDTH and sum(widths) >= FULL * sum(map(in_tiles, widths)) * TILE_VALUES

    def pack(self, xp, parameters: dict[str, Any]) -> Weights:
        """The packed panels of the weights, in one array, with their addresses and a word for what is infinite.

        The addresses are good as long as the array lives. It costs little beside the sequence.
        """
        packed, infinite = xp.work(self.panel_values), xp.flag() if self.loop.parts == PARTS else None
        address, addresses = xp.address(packed), []
        for p in self.packings:
            words = [xp.address(parameters[n]) + offset for n, offset in p.table]
            words.append(_address(infinite))
            shares = [(0, p.blocks)]
            if p.values >= WORTH_A_CALL:
                shares = share(p.blocks, min(xp.threads(), 1 + p.values // WORTH_A_CALL))
            xp.run(p.function, words, [(*share, 0, address) for share in shares])
            addresses.append(address)
            address += p.values * self.size
        return packed, addresses, infinite

    def shortened(self, packed: np.ndarray) -> np.ndarray:
        """Packed panels of float32 as bfloat16, one after the other; for `short_weights`."""
        lanes, begin, made = self.machine.lanes(self.size), 0, []
        for step in self.loop.passes:
            for panel in step.panels:
                end = begin + panel_values(step, panel, lanes)
                made.append(shortened(packed[begin:end], len(panel.slots) * step.vectors, lanes))
                begin = end
        return np.concatenate(made)

    def release(self, xp, weights: Weights) -> None:
        xp.give_back(weights[0])

    def call(self, xp, batch: Batch, span: tuple[int, int], from_end: bool, arrays, edges,
             weights: Weights, passing=frozenset(), still=frozenset()) -> bool:
        begin, end = batch.place(span[0]), batch.place(span[1])
        words = [*batch.turns(from_end, *span)]
        for name, width in self.buffers:
            address = xp.address(arrays[name])
            if name in still:
                width = 0
            elif name in passing:
                address -= begin * width
            words += address, width, xp.address(edges[name]) if name in edges else 0
        _, panels, infinite = weights
        words += *panels, _address(infinite)
        parts, together = self._parts(batch, end - begin, span[1] - span[0], xp.threads())
        own, at = [], batch.rows * self.loop.scratch_row
        for _, count in parts:
            own.append(at * self.size)
            at += self.own_values(count)
        scratch = xp.work(at)
        shared = xp.address(scratch)
        xp.run(self.run, words, [(*rows, shared + begins, shared) for rows, begins in zip(parts, own)], together)
        xp.give_back(scratch)
        return infinite is None or not infinite.value

    def own_values(self, rows: int) -> int:
        """Scratch that a thread has for itself: sums of a tile, and operands of its rows in parts, which a tile of few
        rows reads on behind."""
        if not self.rounded_values:  # `rows` may be a number that is told later
            return self.tile_values
        return self.tile_values + (rows + TILE_ROWS - 1) * self.rounded_values

    def _is_wide(self, batch: Batch) -> bool:
        """Whether the panels are more than a core's second cache holds beside the rest."""
        most = MOST_PANEL * (2 if self.loop.parts == PARTS else 1)  # the same weights are larger in parts
        return self.panel_values * self.size > most // (1 if batch.is_dense else 2)

    def _parts(self, batch: Batch, total: int, steps: int, most: int) -> tuple[list[tuple[int, int]], bool]:
        """Rows for every thread, and whether the threads share the units of the same rows instead; for so many steps
        of a batch, with so many rows in all."""
        count = min(most, 1 + total * max(self.multiplications, 256) // WORTH_A_THREAD)
        if count == 1:
            return [(0, batch.rows)], False
        rows = total / steps  # that a step has; a thread with few of them only waits for the panels
        if self.shareable and threads.team():
            work, few = rows * self.multiplications / count, rows < 2 * count or self._is_wide(batch)
            # A tile that all fill together is worth more than two that are half empty, but meeting weighs more there.
            torn = self.loop.parts == PARTS and rows / count < FULL * TILE_ROWS <= rows
            if (few and work > self.meetings * WORTH_A_MEETING) or (torn and work > WORTH_A_TILE):
                return [(0, batch.rows)] * count, True
        return batch.parts(count), False


class Kernel(kernel.Kernel):
    """The loops of one cell as machine code."""

    def __init__(self, scan: Scan, sizes: dict[str, int], bytes_per_value: int, machine: Target, short: bool = False):
        super().__init__(scan, sizes, short)
        self.size, self.machine, self.align = bytes_per_value, machine, machine.lanes(bytes_per_value)
        weights = sum(sizes[f.rows] * len(f.gates) * sizes[f.columns] for f in self.cell.families.values() if f.columns)
        self.packs = weights >= WORTH_A_CALL and not short

    def compile(self, loop: Loop) -> Loops:
        return Loops(loop, self.machine, self.size, self.cell)

    def team(self, batch: Batch, most: int, which: str) -> tuple[int, bool] | None:
        """Into how many parts a loop cuts a batch, and whether these share the units; None for a matrix unit.

        which: "inference", "training" or "backward".
        """
        loops = self._loops(which)
        if loops.in_parts and loops.in_parts.fills_tiles(batch, most):
            return None
        parts, together = loops.by_vectors._parts(batch, batch.total, batch.steps, most)
        return len(parts), together

    def leaves_threads_idle(self, batch: Batch, most: int, which: str) -> bool:
        """Whether a loop runs on one thread though half of it would be worth another one: it has too few rows."""
        work = batch.total * self._loops(which).by_vectors.multiplications
        return most > 1 and 2 * work >= WORTH_A_THREAD and self.team(batch, most, which) == (1, False)

    def _loops(self, which: str) -> Loops:
        return {"inference": lambda: self._inference, "training": lambda: self._training,
                "backward": lambda: self._backward}[which]()[1]

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
    # Rows of bfloat16 are multiplied as fast as the products would be read back from memory.
    return Kernel(with_before(scan, "constant") if short else scan, dict(sizes), bytes_per_value, machine, short)


def kernel_for(cell: Cell, sizes: dict[str, int], bytes_per_value: int, outputs: tuple[str, ...] = (),
               short: bool = False) -> Kernel:
    """The kernel of a cell for sizes (names as in the cell) and 4 or 8 bytes per value.

    `outputs` names the states and recorded values to hand out for every step; the cell's output if not given.
    `short`: multiply bfloat16. That needs 4 bytes per value and a `target()` that `multiplies_bfloat16`.
    """
    return _kernel(cell, outputs or (cell.output,), tuple(sorted(sizes.items())), bytes_per_value, target(), short)
