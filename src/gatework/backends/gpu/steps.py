"""Receives a loop with weights of any size, hands on its turns one by one, a kernel for each stage."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...compiler import Cell
from ..batch import Batch
from ..plan import Loop
from . import device
from .load import load, words
from .memory import DEPTH, Layout, filled
from .replays import Turns
from .source import name_of, padded
from .stages import ENTRIES, joined, signature, write

# Rows and units of a program. Registers are spilled by programs with more, as the compiler says
# (`benchmarks/gpu/offline.py`); which of them to take is estimated from what is read, not measured.
ROWS = {torch.float32: (16, 32), torch.bfloat16: (16, 32, 64), torch.float16: (16, 32, 64)}
UNITS = 16, 32
# So many processors take all that the second cache gives: 64 bytes of a clock each, and 5.5 TB/s of an H100.
HUNGRY = 50
AHEAD = 96 << 10  # bytes of operands and weights that are on their way to a program


class Steps:
    """One loop as a kernel for every stage of every turn."""

    def __init__(self, loop: Loop, cell: Cell, dtype: torch.dtype, accurate: str):
        self.loop = loop = joined(loop)
        self.cell, self.dtype, self.accurate = cell, dtype, getattr(torch, accurate)
        self.source = write(loop, cell, str(dtype).removeprefix("torch."), accurate)
        self.module = load(self.source)
        self.sequences = [n for n, b in loop.buffers.items() if b.kind == "sequence"]
        self.longest = max(loop.size(e) for step in loop.passes for e in step.stage.nodes)
        self.operands_read = max(len(step.stage.by_operand()) for step in loop.passes)
        self.matrices_read = max(sum(len(e.attr) for e in step.stage.products) for step in loop.passes)
        types = {"given": dtype, "accurate": self.accurate, "words": torch.int64, "number": None}
        self.takes = {name: types[kind] for name, kind in signature(loop).items()}
        self.layout = Layout(loop)
        self.edges_of_states = {(p.buffer, p.offset) for p in loop.reads.values() if p.turn == -1 and p.edge}
        self.packed = self._families()
        self.turns: dict[tuple, Turns] = {}

    def _families(self) -> list[tuple[str, int, list[int], int, int]]:
        """Where each family of matrices begins, its gates that are in use, and the units and features of one."""
        found: dict[str, tuple[str, int, list[int], int, int]] = {}
        for m, begin in self.layout.matrix_at.items():
            family, gate = m.attr
            rows, columns = (self.loop.sizes[d] for d in m.dims)
            found.setdefault(family, (family, begin, [], rows, columns))[2].append(
                self.cell.families[family].gates.index(gate))
        return list(found.values())

    def suited(self, xp, batch: Batch) -> list[Steps]:
        return [self]

    def pack(self, xp, parameters: dict[str, Any]) -> Tensor:
        """All matrices of the loop, each filled up with zeros."""
        packed = torch.zeros(self.layout.matrices_size, dtype=self.dtype, device=xp.device)
        for family, begin, gates, rows, columns in self.packed:
            high, wide = filled(rows), filled(columns)
            given = parameters[family].view(-1, rows, columns)
            if gates != list(range(len(given))):
                given = torch.stack([given[g] for g in gates])
            into = packed[begin:begin + len(gates) * high * wide].view(len(gates), high, wide)
            into[:, :rows, :columns] = given
        return packed

    def release(self, xp, weights: Tensor) -> None:
        """Nobody asks for their memory."""

    def grid(self, rows: int) -> tuple[tuple[int, int], dict[str, int]]:
        """Programs for so many rows, and how they are made: rows and units of each among it."""
        def shape(tall: int, wide: int) -> tuple[int, int]:
            return -(-rows // tall), -(-self.longest // wide)

        def cost(size: tuple[int, int]) -> float:
            """What is read in a step, by the processor that reads the most, or by all of them."""
            programs, read = math.prod(shape(*size)), self.operands_read * size[0] + self.matrices_read * size[1]
            return max(-(-programs // device.processors()), programs / HUNGRY) * read

        # Every program reads all parts of a sum, for all its rows.
        talls = [t for t in ROWS[self.dtype] if t == 16 or (t < 2 * rows and not self.layout.sums)]
        tall, wide = min(((t, w) for t in talls for w in UNITS), key=cost)
        tiles, members = shape(tall, wide)
        # Rounded up to three digits, so that batches of many sizes share a few recorded graphs: programs without rows
        # have next to nothing to do.
        coarse = 1 << max(0, tiles.bit_length() - 3)
        tiles = -(-tiles // coarse) * coarse
        operands = 1 if self.operands_read <= 1 else ENTRIES
        at_once = DEPTH * (operands * tall + ENTRIES * wide) * self.dtype.itemsize
        # Matrix units take the last of them from registers.
        room = min(AHEAD, device.shared_bytes() - (8 << 10)) // at_once + (self.dtype != torch.float32)
        stages = max(2, min(6, room))
        # In float32 a thread multiplies by itself; in halves more warps than entries would multiply the same again.
        warps = 2 * ENTRIES if self.dtype == torch.float32 and tall * wide >= 512 else ENTRIES
        return (tiles, members), dict(ROWS=tall, UNITS=wide, MEMBERS=padded(members), STAGES=stages, num_warps=warps)

    def call(self, xp, batch: Batch, span: tuple[int, int], from_end: bool, arrays, edges, weights, passing=frozenset(),
             still=frozenset()) -> bool:
        if span != (0, batch.steps):
            raise ValueError(f"all steps run in one call; asked for were {span} of {batch.steps}")
        grid, sizes = self.grid(batch.rows)
        memory = self._memory(grid[0] * sizes["ROWS"], sizes["MEMBERS"], xp.device)
        self._begin(memory, batch.rows, arrays, edges)
        offsets, ends = words(batch, xp.device)
        given = {"offsets": offsets, "sizes": ends, "first": batch.steps - 1 if from_end else 0, "rows": batch.rows,
                 **{name_of(n): a for n, a in arrays.items()},
                 **{f"{name_of(n)}_moves": int(n not in still) for n in self.sequences},
                 **{f"{name_of(n)}_edge": a for n, a in edges.items()}, "weights": weights, **memory}
        options = dict(FROM_END=from_end, **sizes, OVERLAP=False,
                       PRECISION=device.precision())
        for name, dtype in self.takes.items():  # kernels are told addresses alone
            if dtype is not None and given[name].dtype != dtype:
                raise TypeError(f"{name} must be {dtype}; given was {given[name].dtype}")
        self._run([given[name] for name in self.takes], batch.steps, grid, options, xp.device)
        self._end(memory, batch, arrays)
        return True

    def _run(self, given: list, turns: int, grid: tuple[int, int], options: dict[str, Any],
             where: torch.device) -> None:
        key = grid, tuple(options.items()), where
        with torch.cuda.device_of(given[0]):  # Triton launches on the current one
            if key not in self.turns:
                self.turns[key] = Turns(self.module, len(given), grid, options, where)
            self.turns[key].run(given, turns)

    def _memory(self, rows: int, members: int, where: torch.device) -> dict[str, Tensor]:
        """What the kernels hand over and keep, for whole programs of rows. Operands are zeros where nothing is."""
        exact = dict(dtype=self.accurate, device=where)
        return {"handed": torch.zeros(2, rows, self.layout.handed_width, dtype=self.dtype, device=where),
                "carried": torch.empty(2, rows, self.layout.carried_width, **exact),
                "totals": torch.empty(2, rows, len(self.layout.sums), members, **exact),
                "scratch": torch.empty(rows, self.loop.scratch_row, **exact)}

    def _begin(self, memory: dict[str, Tensor], rows: int, arrays, edges) -> None:
        """Write what the first turn of a row finds to both sides, since rows may begin in any turn."""
        kinds = {name: b.kind for name, b in self.loop.buffers.items()}
        for key, size in self.layout.carried.items():
            name, offset = key
            into = memory["carried"][:, :rows, self.layout.carried_at[key]:self.layout.carried_at[key] + size]
            if kinds[name] == "rows" or key in self.edges_of_states:
                into.copy_((arrays if kinds[name] == "rows" else edges)[name][:, offset:offset + size])
            else:  # nothing was there before the first turn
                into.zero_()
        for key, v in self.layout.handed.items():
            if isinstance(key, tuple) and (kinds[key[0]] == "rows" or key in self.edges_of_states):
                name, offset = key
                begin, size = self.layout.handed_at[key], self.loop.size(v)
                memory["handed"][:, :rows, begin:begin + size] = (
                    arrays if kinds[name] == "rows" else edges)[name][:, offset:offset + size]

    def _end(self, memory: dict[str, Tensor], batch: Batch, arrays) -> None:
        """Read what the last turn left."""
        side = memory["carried"][(batch.steps - 1) % 2, :batch.rows]
        for (name, offset), size in self.layout.carried.items():
            if self.loop.buffers[name].kind == "rows":
                at = self.layout.carried_at[name, offset]
                arrays[name][:, offset:offset + size] = side[:, at:at + size]
