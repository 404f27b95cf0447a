"""Receives a loop with weights of any size, hands on its turns one by one: products of torch and Triton kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...compiler import Cell
from ...compiler.expr import Expr
from ..batch import Batch
from ..plan import Loop, Pass
from .load import load, words
from .source import padded
from .stages import carried, edges, write

# Values of a vector of units, over all rows of a program, that it works on.
MOST_VALUES = 1 << 12


@dataclass
class _Product:
    """One operand with the matrices that multiply it, side by side: for each of some slots in a row."""

    operand: Expr
    first: int  # slot
    matrices: list[tuple[Expr, str]]


class Steps:
    """One loop as a product and a kernel for every stage of every turn."""

    def __init__(self, loop: Loop, cell: Cell, accurate: str):
        self.loop, self.cell, self.accurate = loop, cell, getattr(torch, accurate)
        self.source = write(loop, cell, accurate)
        module = load(self.source)
        self.runs = [getattr(module, f"stage_{k}") for k in range(len(loop.passes))]
        self.products = [_products(step) for step in loop.passes]
        self.sequences = [n for n, b in loop.buffers.items() if b.kind == "sequence"]
        self.edges, self.carried = edges(loop), carried(loop)
        widest = max((padded(n) for n in loop.sizes.values()), default=1)
        self.rows = max(1, min(16, MOST_VALUES // widest))  # of a program

    def suited(self, xp, batch: Batch) -> list[Steps]:
        return [self]

    def pack(self, xp, parameters: dict[str, Any]) -> list[list[Tensor]]:
        """For every product its weights, [what is multiplied, units of all slots]."""
        return [[torch.cat([self._matrix(parameters, *m) for m in p.matrices], 1) for p in products]
                for products in self.products]

    def _matrix(self, parameters: dict[str, Any], m: Expr, flag: str) -> Tensor:
        family, gate = m.attr
        size = self.loop.sizes[m.dims[0]]
        begin = self.cell.families[family].gates.index(gate) * size
        rows = parameters[family][begin:begin + size]
        return rows.T if flag == "N" else rows

    def release(self, xp, weights: list[list[Tensor]]) -> None:
        """Nobody asks for their memory."""

    def call(self, xp, batch: Batch, span: tuple[int, int], from_end: bool, arrays, edges, weights, passing=frozenset(),
             still=frozenset()) -> bool:
        if span != (0, batch.steps):
            raise ValueError(f"all steps run in one call; asked for were {span} of {batch.steps}")
        _Call(self, xp, batch, from_end, arrays, edges, still).run(weights)
        return True


def _products(step: Pass) -> list[_Product]:
    """The products of a stage; those of neighbouring slots that share an operand become one."""
    found: list[_Product] = []
    for v, of_slot in step.stage.by_operand():
        last = None
        for slot, m in sorted(of_slot.items(), key=lambda item: item[0]):
            if last is not None and slot == last + 1:
                found[-1].matrices.append(m)
            else:
                found.append(_Product(v, slot, [m]))
            last = slot
    return found


class _Call:
    """One walk through all turns. What goes from turn to turn is kept in the type that kernels compute in."""

    def __init__(self, steps: Steps, xp, batch: Batch, from_end: bool, arrays: dict[str, Tensor],
                 edges: dict[str, Tensor], still: frozenset):
        self.steps, self.batch, self.from_end, self.given, self.edge = steps, batch, from_end, arrays, edges
        self.still, loop = still, steps.loop
        self.places = words(batch, xp.device)
        options = dict(dtype=steps.accurate, device=xp.device)
        self.arrays = {n: arrays[n].to(steps.accurate) if b.kind == "rows" else arrays[n]
                       for n, b in loop.buffers.items()}
        self.strides = [0 if n in still else loop.buffers[n].width for n in steps.sequences]
        self.scratch = torch.empty(batch.rows, loop.scratch_row, **options)
        self.sums = [torch.empty(batch.rows, len(s.stage.products) * s.size, **options) for s in loop.passes]
        self.turns: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}  # rows of the turn before, and of this one
        for key, (place, _) in steps.carried.items():
            if place.edge:
                first = edges[place.buffer][:, place.offset:place.offset + place.size]
            else:  # nothing to multiply in the first turn
                first = torch.zeros(batch.rows, place.size, **options)
            # Rows that begin later begin with the same: nobody writes to them before.
            self.turns[key] = tuple(torch.empty(first.shape, **options).copy_(first) for _ in range(2))

    def run(self, weights: list[list[Tensor]]) -> None:
        for turn in range(self.batch.steps):
            t = self.batch.steps - 1 - turn if self.from_end else turn
            rows = int(self.batch.sizes[t])
            if rows == 0:
                continue
            self._turn(t, rows, weights)
            self.turns = {key: (now, before) for key, (before, now) in self.turns.items()}
        for name, buffer in self.steps.loop.buffers.items():
            if buffer.kind == "rows" and self.arrays[name] is not self.given[name]:
                self.given[name].copy_(self.arrays[name])

    def _turn(self, t: int, rows: int, weights: list[list[Tensor]]) -> None:
        steps = self.steps
        pointers = [*(self.arrays[n] for n in steps.loop.buffers), *self.strides, *(self.edge[n] for n in steps.edges),
                    *(a for pair in self.turns.values() for a in pair)]
        for stage, products, packed, sums in zip(steps.runs, steps.products, weights, self.sums):
            begun: set[int] = set()
            for p, w in zip(products, packed):
                size = w.shape[1] // len(p.matrices)
                out = sums[:rows, p.first * size:p.first * size + w.shape[1]]
                made = self._operand(p.operand, t, rows).to(w.dtype) @ w
                slots = set(range(p.first, p.first + len(p.matrices)))
                if slots.isdisjoint(begun):
                    out.copy_(made)
                    begun |= slots
                    continue
                for slot in slots - begun:
                    out[:, (slot - p.first) * size:(slot - p.first + 1) * size] = 0.0
                out += made
                begun |= slots
            with torch.cuda.device_of(sums):  # Triton launches on the current one
                stage[-(-rows // steps.rows),](*self.places, t, *pointers, sums, self.scratch, FROM_END=self.from_end,
                                               ROWS=steps.rows)

    def _operand(self, e: Expr, t: int, rows: int) -> Tensor:
        """What is multiplied in a turn, [rows, size]."""
        loop, place = self.steps.loop, self.steps.loop.reads.get(e)
        if place is None:
            return self.scratch[:rows, loop.scratch[e]:loop.scratch[e] + loop.size(e)]
        if place.turn == -1:
            return self.turns[place.buffer, place.offset][0][:rows]
        columns = slice(place.offset, place.offset + place.size)
        if loop.buffers[place.buffer].kind == "rows":
            return self.arrays[place.buffer][:rows, columns]
        # Nothing stands in for it at an edge: the loop copies what comes from outside before it multiplies that.
        begin = 0 if place.buffer in self.still else int(self.batch.offsets[t])
        return self.arrays[place.buffer][begin:begin + rows, columns]
