"""Receives a scan and sizes, hands on callables over whole sequences; compiles on first use.

Arrays are numpy's or torch's: all that is asked of them is in `Numpy` and its twin in `gatework.autograd`. Sequences
are [N, width], step by step, with the rows of every step as a `Batch` says.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np

from ...compiler import Cell, Scan, split
from . import jit, threads
from .batch import Batch
from .emit import emit, splits_units, tile_values
from .panels import block_count, panel_values
from .plan import Backward, Forward, Loop, Panel, Pass, plan_backward, plan_forward
from .products import Products
from .target import Target, target

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


class Numpy:
    """What the kernels ask of an array library."""

    matmul = staticmethod(np.matmul)
    ascontiguousarray = staticmethod(np.ascontiguousarray)

    def __init__(self, like: np.ndarray):
        self.dtype = like.dtype

    def empty(self, *shape: int) -> np.ndarray:
        return np.empty(shape, self.dtype)

    def zeros(self, *shape: int) -> np.ndarray:
        return np.zeros(shape, self.dtype)

    def ones(self, *shape: int) -> np.ndarray:
        return np.ones(shape, self.dtype)

    def copy(self, a: np.ndarray) -> np.ndarray:
        return a.copy()

    def add_product(self, out: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
        out += a @ b

    def take(self, a: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return a[rows]

    def sum_by(self, a: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
        """Add the rows of `a` up into `count` rows, each where `rows` says."""
        out = self.zeros(count, a.shape[1])
        np.add.at(out, rows, a)
        return out

    def address(self, a: np.ndarray) -> int:
        return a.ctypes.data

    def threads(self) -> int:
        return 1


class _Packing:
    """How one panel is made: the function, the row blocks that it reads, and the shape of the result."""

    def __init__(self, function, panel: Panel, step: Pass, lanes: int, cell: Cell, sizes: dict[str, int], size: int):
        self.function, self.blocks = function, block_count(step, lanes)
        self.values = panel_values(step, panel, lanes)
        self.table: list[tuple[str, int]] = []  # (family, offset in bytes of a row block), for every piece and slot
        for _, matrices in panel.pieces:
            for name, gate, _ in matrices:
                family = cell.families[name]
                block = sizes[family.rows] * sizes[family.columns] * size
                self.table.append((name, family.gates.index(gate) * block))
        self.families = list(dict.fromkeys(name for name, _ in self.table))


class _Compiled:
    """One loop as machine code."""

    def __init__(self, loop: Loop, machine: Target, size: int, cell: Cell):
        self.loop, self.size = loop, size
        lanes = machine.lanes(size)
        self.code = jit.load(emit(loop, machine, size), machine)
        word, pointer = ctypes.c_int64, ctypes.c_void_p
        signature = [pointer if a.startswith("ptr") else word for a in threads.SIGNATURE]
        self.run = self.code.function("run", *signature)
        panels = [(step, panel) for step in loop.passes for panel in step.panels]
        self.packings = [_Packing(self.code.function(f"pack_{panel.name}", *signature), panel, step, lanes, cell,
                                  loop.sizes, size) for step, panel in panels]
        self.multiplications = sum(panel.length * len(panel.slots) * step.size for step, panel in panels)
        self.panel_values = sum(p.values for p in self.packings)
        self.tile_values = tile_values(loop, lanes) + lanes
        self.shareable = splits_units(loop, lanes)
        self.buffers = [(b.name, b.width * size) for b in loop.buffers.values()]

    def pack(self, xp, parameters: dict[str, Any]) -> tuple[Any, list[int]]:
        """The packed panels of the weights as they are now, in one array, and the address of each.

        They are made anew for every call: no sign of a tensor tells reliably that its values are the old ones (writing
        through `.data` leaves all of them as they are), and it costs little beside the sequence.
        """
        packed = xp.empty(self.panel_values)
        address, addresses = xp.address(packed), []
        for p in self.packings:
            sources = {n: xp.address(parameters[n]) for n in p.families}
            words = (ctypes.c_int64 * len(p.table))(*[sources[n] + offset for n, offset in p.table])
            shares = threads.share(p.blocks, min(xp.threads(), 1 + p.values // WORTH_A_THREAD))
            threads.run(p.function, ctypes.addressof(words), [(*share, 0, address) for share in shares])
            addresses.append(address)
            address += p.values * self.size
        return packed, addresses

    def call(self, xp, batch: Batch, span: tuple[int, int], from_end: bool, arrays, edges, panels: list[int],
             passing=frozenset(), still=frozenset()) -> None:
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
        words += panels
        arguments = (ctypes.c_int64 * len(words))(*words)
        parts, together = self._parts(batch, total, xp.threads())
        scratch = xp.empty(batch.rows * self.loop.scratch_row + len(parts) * self.tile_values)
        shared = xp.address(scratch)
        tiles = shared + batch.rows * self.loop.scratch_row * self.size
        parts = [(first, count, tiles + k * self.tile_values * self.size, shared)
                 for k, (first, count) in enumerate(parts)]
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


class Kernel:
    """The loops of one cell for one set of sizes and one dtype, each compiled when it is first needed."""

    def __init__(self, scan: Scan, sizes: dict[str, int], bytes_per_value: int, machine: Target):
        self.scan, self.cell, self.sizes, self.size, self.machine = scan, scan.cell, sizes, bytes_per_value, machine
        self.inputs, self.states = [f"in_{n}" for n in scan.cell.inputs], list(scan.cell.states)
        self.families = list(scan.cell.families)

    def ir(self) -> dict[str, str]:
        """The IR of the loops that training runs, before LLVM sees it."""
        forward = plan_forward(self.scan, self.sizes, self.machine, self.size, True)
        backward = plan_backward(self.scan, self.sizes, self.machine, self.size, forward)
        return {name: emit(plan.loop, self.machine, self.size) for name, plan in
                (("forward", forward), ("backward", backward))}

    @cached_property
    def _inference(self) -> tuple[Forward, _Compiled]:
        return self._forward_loop(train=False)

    @cached_property
    def _training(self) -> tuple[Forward, _Compiled]:
        return self._forward_loop(train=True)

    def _forward_loop(self, train: bool) -> tuple[Forward, _Compiled]:
        plan = plan_forward(self.scan, self.sizes, self.machine, self.size, train)
        return plan, _Compiled(plan.loop, self.machine, self.size, self.cell)

    @cached_property
    def _backward(self) -> tuple[Backward, _Compiled]:
        plan = plan_backward(self.scan, self.sizes, self.machine, self.size, self._training[0])
        return plan, _Compiled(plan.loop, self.machine, self.size, self.cell)

    @cached_property
    def _products(self) -> Products:
        return Products(self.scan, self.sizes, self._training[0].saved, self._backward[0])

    @cached_property
    def kept(self) -> list[str]:
        """The buffers that a forward pass hands to the backward pass, beside its output."""
        plan = plan_forward(self.scan, self.sizes, self.machine, self.size, True)
        states = [plan.sequences[s] for s in self.scan.stored if plan.sequences[s] not in plan.outputs.values()]
        return states + list(dict.fromkeys(p.buffer for p in plan.saved.values()))

    def kept_width(self, name: str) -> int:
        return self._training_buffers[name].width

    @cached_property
    def _training_buffers(self):
        return plan_forward(self.scan, self.sizes, self.machine, self.size, True).loop.buffers

    def forward(self, xp, batch: Batch, inputs: Sequence, states: Sequence, parameters: Sequence, reverse: bool,
                train: bool):
        """Return (outputs [N, size], last states [B, size], kept buffers [N, width]; none unless `train`).

        Products of the inputs and the loop take turns, some steps at a time: what one writes the other finds in the
        cache, and without `train` a few steps are all the memory that the products take.
        """
        plan, compiled = self._training if train else self._inference
        parameters = [xp.ascontiguousarray(p) for p in parameters]
        arrays, edges, given = self._given(xp, inputs, parameters), {}, dict(zip(self.families, parameters))
        weights = {buffer: self._rows(xp, given[family], family, gates).T for buffer, family, gates, _ in plan.products}
        before = []
        for buffer, _, _, name in plan.products:
            if self.cell.inputs[name].op == "constant":  # one product for all steps
                arrays[buffer] = xp.matmul(arrays[f"in_{name}"], weights[buffer])
            else:
                before.append((buffer, arrays[f"in_{name}"], weights[buffer]))
        for s, first in zip(self.states, states):
            if s in plan.rolling:
                arrays[plan.rolling[s]] = xp.copy(first)
            else:
                edges[plan.sequences[s]] = xp.ascontiguousarray(first)
        width = sum(w.shape[1] for _, _, w in before) * self.size
        chunks = batch.chunks(max(ROWS_AT_ONCE, batch.rows, AT_ONCE // max(1, width)))
        passing = frozenset() if train else {buffer for buffer, _, _ in before}
        most = max((int(batch.offsets[end] - batch.offsets[begin]) for begin, end in chunks), default=0)
        for name, b in compiled.loop.buffers.items():
            if name not in arrays:
                arrays[name] = xp.empty(most if name in passing else batch.total, b.width)
        packed, panels = compiled.pack(xp, given)  # the addresses are good as long as `packed` lives
        for begin, end in reversed(chunks) if reverse else chunks:
            at = slice(int(batch.offsets[begin]), int(batch.offsets[end]))
            for buffer, x, w in before:
                out = arrays[buffer][:at.stop - at.start] if buffer in passing else arrays[buffer][at]
                xp.matmul(x[at], w, out=out)
            compiled.call(xp, batch, (begin, end), reverse, arrays, edges, panels, passing)
        last = [arrays[plan.rolling[s]] if s in plan.rolling
                else self._last(xp, batch, arrays[plan.sequences[s]], edges[plan.sequences[s]], reverse)
                for s in self.states]
        kept = [arrays[name] for name in self.kept] if train else []
        return [arrays[name] for name in plan.outputs.values()], last, kept

    def _last(self, xp, batch: Batch, sequence, first, reverse: bool):
        """The state of every row after its last turn; a row without steps keeps its first one."""
        at = batch.end(reverse)
        ends = sequence[at] if isinstance(at, slice) else xp.take(sequence, at)
        out = xp.copy(ends if batch.live == batch.rows else first)
        if batch.live < batch.rows:
            out[:batch.live] = ends
        return out

    def _given(self, xp, inputs: Sequence, parameters: Sequence) -> dict[str, Any]:
        """The buffers that the caller gives."""
        arrays = {name: xp.ascontiguousarray(x) for name, x in zip(self.inputs, inputs)}
        return arrays | {f"param_{name}": p for name, p in zip(self.families, parameters)}

    def _rows(self, xp, stacked, family: str, gates: list[str]):
        """Some row blocks of a stacked parameter, in the order asked for."""
        known = self.cell.families[family].gates
        if gates == known:
            return stacked
        size = stacked.shape[0] // len(known)
        out = xp.empty(size * len(gates), *stacked.shape[1:])
        for k, g in enumerate(gates):
            at = known.index(g) * size
            out[k * size:(k + 1) * size] = stacked[at:at + size]
        return out

    def backward(self, xp, batch: Batch, upstream: Sequence, last: Sequence, inputs: Sequence, states: Sequence,
                 parameters: Sequence, outputs: Sequence, kept: Sequence, reverse: bool, needs: Sequence[bool]) -> list:
        """Gradients of inputs, first states and parameters, in this order; None where `needs` says so.

        upstream: gradient of each output, or None; last: of each last state, or None. The kept buffers are overwritten.
        """
        plan, compiled = self._backward
        parameters = [xp.ascontiguousarray(p) for p in parameters]
        cell, given = self.cell, dict(zip(self.families, parameters))
        arrays = self._given(xp, inputs, parameters)
        by_name = dict(zip(cell.inputs, arrays.values()))
        first = {s: xp.ascontiguousarray(v) for s, v in zip(self.states, states)}
        arrays |= zip(self.kept, kept)
        arrays |= zip(self._training[0].outputs.values(), outputs)
        edges = {f"seq_{s}": v for s, v in first.items()}
        ends = dict(zip(self.states, last))
        still = {f"up_{name}" for name, d in zip(self.scan.outputs, upstream) if d is None}
        for name, d in zip(self.scan.outputs, upstream):
            self._upstream(xp, batch, arrays, edges, name, d, ends, reverse)
        for e, name in plan.carried.items():
            start = ends.get(e.attr[1:]) if e.op == "carry" else None
            arrays[name] = (xp.zeros(batch.rows, compiled.loop.buffers[name].width) if start is None
                            else xp.copy(start))
        for buffer, family, gates, name in self._training[0].products:
            if cell.inputs[name].op == "constant":
                arrays[buffer] = xp.matmul(by_name[name], self._rows(xp, given[family], family, gates).T)
        for name, b in compiled.loop.buffers.items():
            if name not in arrays:
                arrays[name] = xp.empty(batch.total, b.width)
        packed, panels = compiled.pack(xp, given)  # the addresses are good as long as `packed` lives
        compiled.call(xp, batch, (0, batch.steps), not reverse, arrays, edges, panels, still=still)
        return self._products.gradients(xp, batch, arrays, by_name, first, ends, given, reverse, needs)

    def _upstream(self, xp, batch: Batch, arrays, edges, name: str, d, ends: dict[str, Any], reverse: bool) -> None:
        """The gradient from outside; for a state, in the first turn of a row, with that of the last state."""
        buffer, size = f"up_{name}", self.width(name)
        arrays[buffer] = xp.zeros(batch.rows, size) if d is None else xp.ascontiguousarray(d)
        if name in self.scan.beside:
            return
        end = ends.pop(name)
        ends[f"{name} without steps"] = end
        if d is None:
            edges[buffer] = xp.zeros(batch.rows, size) if end is None else xp.ascontiguousarray(end)
            return
        at = batch.end(reverse)
        here = arrays[buffer][at] if isinstance(at, slice) else xp.take(arrays[buffer], at)
        edges[buffer] = here if end is None else xp.ascontiguousarray(here + end[:batch.live])

    def width(self, name: str) -> int:
        """The features of what is handed out."""
        dims = self.cell.value(name).dims
        return self.sizes[dims[0]] if dims else 1


@cache
def _kernel(cell: Cell, outputs: tuple[str, ...], sizes: tuple[tuple[str, int], ...], bytes_per_value: int,
            machine: Target) -> Kernel:
    return Kernel(split(cell, outputs), dict(sizes), bytes_per_value, machine)


def kernel_for(cell: Cell, sizes: dict[str, int], bytes_per_value: int, outputs: tuple[str, ...] = ()) -> Kernel:
    """The kernel of a cell for sizes (names as in the cell) and 4 or 8 bytes per value.

    `outputs` names the states and recorded values to hand out for every step; the cell's output if not given.
    """
    return _kernel(cell, outputs or (cell.output,), tuple(sorted(sizes.items())), bytes_per_value, target())
