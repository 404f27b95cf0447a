"""Receives a scan and sizes, hands on callables over whole sequences; compiles on first use.

Arrays are numpy's or torch's: all that is asked of them is in `Numpy` and its twin in `gatework.autograd`.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from ...compiler import Cell, Scan, split
from ...compiler.expr import Expr
from . import jit, threads
from .emit import emit, panel_values, scratch_values
from .plan import Backward, Forward, Loop, Place, plan_backward, plan_forward
from .target import Target, target

# Handing work to another thread costs some ten microseconds: below this many multiplications it does not pay.
WORTH_A_THREAD = 1 << 19


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

    def copy(self, a: np.ndarray) -> np.ndarray:
        return a.copy()

    def add_product(self, out: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
        out += a @ b

    def address(self, a: np.ndarray) -> int:
        return a.ctypes.data

    def version(self, a: np.ndarray):
        return None  # a numpy array may change unseen

    def threads(self) -> int:
        return 1


class _Compiled:
    """One loop as machine code."""

    def __init__(self, loop: Loop, machine: Target, size: int):
        self.loop, self.lanes, self.size = loop, machine.lanes(size), size
        self.code = jit.load(emit(loop, machine, size), machine)
        word, pointer = ctypes.c_int64, ctypes.c_void_p
        self.run = self.code.function("run", pointer, word, word, pointer)
        self.panels = [(step, panel, self.code.function(f"pack_{panel.name}", pointer, pointer))
                       for step in loop.passes for panel in step.panels]
        self.packed: dict[int, tuple] = {}
        self.multiplications = sum(panel.length * len(panel.slots) * step.size for step, panel, _ in self.panels)

    def pack(self, xp, number: int, parameters: dict[str, Any], cell: Cell):
        """The packed panel of the weights as they are now; kept as long as they do not change."""
        step, panel, pack = self.panels[number]
        names = sorted({m[0] for _, matrices in panel.pieces for m in matrices})
        versions = [xp.version(parameters[n]) for n in names]
        old = self.packed.get(number)
        if old is not None and None not in versions and old[0] == versions:
            return old[1]
        sources = {n: xp.ascontiguousarray(parameters[n]) for n in names}
        table = []
        for _, matrices in panel.pieces:
            for family, gate, _ in matrices:
                gates = cell.families[family].gates
                block = sources[family].shape[0] // len(gates) * sources[family].shape[1] * self.size
                table.append(xp.address(sources[family]) + gates.index(gate) * block)
        packed = xp.empty(panel_values(self.loop, step, panel, self.lanes))
        words = (ctypes.c_int64 * len(table))(*table)
        pack(ctypes.addressof(words), xp.address(packed))
        if None not in versions:
            self.packed[number] = (versions, packed)
        return packed

    def call(self, xp, steps: int, rows: int, buffers: dict[str, tuple[Any, int, Any]], parameters, cell: Cell) -> None:
        """Run all turns. A buffer is (array of the first turn, stride of a turn in bytes, array of the edge)."""
        words: list[int] = [steps]
        for name in self.loop.buffers:
            words += buffers[name]
        panels = [self.pack(xp, k, parameters, cell) for k in range(len(self.panels))]
        words += [xp.address(p) for p in panels]
        arguments = (ctypes.c_int64 * len(words))(*words)
        work = steps * rows * max(self.multiplications, 256)
        parts = threads.share(rows, min(xp.threads(), 1 + work // WORTH_A_THREAD))
        needs = [scratch_values(self.loop, n, self.lanes) + self.lanes for _, n in parts]
        scratch = xp.empty(sum(needs))
        starts = [xp.address(scratch) + n * self.size for n in itertools.accumulate(needs, initial=0)]
        pointer = ctypes.addressof(arguments)
        threads.run([(*p, s) for p, s in zip(parts, starts)], lambda p: self.run(pointer, p[0], p[1], p[2]))


class Kernel:
    """The loops of one cell for one set of sizes and one dtype, each compiled when it is first needed."""

    def __init__(self, scan: Scan, sizes: dict[str, int], bytes_per_value: int, machine: Target):
        self.scan, self.cell, self.sizes, self.size, self.machine = scan, scan.cell, sizes, bytes_per_value, machine

    @cached_property
    def _inference(self) -> tuple[Forward, _Compiled]:
        return self._forward_loop(train=False)

    @cached_property
    def _training(self) -> tuple[Forward, _Compiled]:
        return self._forward_loop(train=True)

    def _forward_loop(self, train: bool) -> tuple[Forward, _Compiled]:
        plan = plan_forward(self.scan, self.sizes, self.machine, self.size, train)
        return plan, _Compiled(plan.loop, self.machine, self.size)

    @cached_property
    def _backward(self) -> tuple[Backward, _Compiled]:
        plan = plan_backward(self.scan, self.sizes, self.machine, self.size, self._training[0])
        return plan, _Compiled(plan.loop, self.machine, self.size)

    @cached_property
    def kept(self) -> list[str]:
        """The buffers that a forward pass hands to the backward pass, beside its output."""
        plan = plan_forward(self.scan, self.sizes, self.machine, self.size, True)
        states = [plan.sequences[s] for s in self.scan.stored if s != self.cell.output]
        return states + list(dict.fromkeys(p.buffer for p in plan.saved.values()))

    def kept_width(self, name: str) -> int:
        return self._training_buffers[name].width

    @cached_property
    def _training_buffers(self):
        return plan_forward(self.scan, self.sizes, self.machine, self.size, True).loop.buffers

    def forward(self, xp, inputs: Sequence, states: Sequence, parameters: Sequence, reverse: bool, train: bool):
        """Return (output [T, B, size], last states [B, size], kept buffers [T, B, width]; none unless `train`)."""
        plan, compiled = self._training if train else self._inference
        cell, given = self.cell, dict(zip(self.cell.families, parameters))
        by_name = {k: xp.ascontiguousarray(v) for k, v in zip(cell.inputs, inputs)}
        steps, rows = inputs[0].shape[:2]
        arrays, edges = {f"in_{k}": v for k, v in by_name.items()}, {}
        for buffer, family, gates, name in plan.products:
            x, w = by_name[name], self._rows(xp, given[family], family, gates)
            arrays[buffer] = xp.empty(*x.shape[:-1], w.shape[0])
            xp.matmul(x.reshape(-1, x.shape[-1]), w.T, out=arrays[buffer].reshape(-1, w.shape[0]))
        for s, first in zip(cell.states, states):
            if s in plan.rolling:
                arrays[plan.rolling[s]] = xp.copy(xp.ascontiguousarray(first))
            else:
                edges[plan.sequences[s]] = xp.ascontiguousarray(first)
        arrays |= {f"param_{k}": xp.ascontiguousarray(v) for k, v in given.items()}
        for name, b in compiled.loop.buffers.items():
            if name not in arrays:
                arrays[name] = xp.empty(steps, rows, b.width)
        self._call(compiled, xp, steps, rows, arrays, edges, given, reverse)
        end = 0 if reverse else -1
        last = [arrays[plan.rolling[s]] if s in plan.rolling else xp.copy(arrays[plan.sequences[s]][end])
                for s in cell.states]
        kept = [arrays[name] for name in self.kept] if train else []
        return arrays[plan.sequences[cell.output]], last, kept

    def _call(self, compiled: _Compiled, xp, steps, rows, arrays, edges, parameters, from_end: bool) -> None:
        described = {}
        for name, b in compiled.loop.buffers.items():
            a = arrays[name]
            address, stride = xp.address(a), 0
            if b.kind == "sequence" and a.ndim == 3:
                stride = rows * b.width * self.size
                if from_end:
                    address, stride = address + (steps - 1) * stride, -stride
            edge = edges.get(name)
            described[name] = (address, stride, 0 if edge is None else xp.address(edge))
        compiled.call(xp, steps, rows, described, parameters, self.cell)

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

    def backward(self, xp, upstream, last: Sequence, inputs: Sequence, states: Sequence, parameters: Sequence, output,
                 kept: Sequence, reverse: bool, needs: Sequence[bool]) -> list:
        """Gradients of inputs, first states and parameters, in this order; None where `needs` says so.

        upstream: gradient of the output or None; last: of each last state, or None. The kept buffers are overwritten.
        """
        plan, compiled = self._backward
        cell, given = self.cell, dict(zip(self.cell.families, parameters))
        steps, rows = inputs[0].shape[:2]
        by_name = {k: xp.ascontiguousarray(v) for k, v in zip(cell.inputs, inputs)}
        first = {s: xp.ascontiguousarray(v) for s, v in zip(cell.states, states)}
        arrays = {f"in_{k}": v for k, v in by_name.items()} | dict(zip(self.kept, kept))
        arrays |= {f"seq_{cell.output}": output} | {f"param_{k}": xp.ascontiguousarray(v) for k, v in given.items()}
        edges = {f"seq_{s}": v for s, v in first.items()}
        self._upstream(xp, arrays, edges, upstream, dict(zip(cell.states, last)), rows, reverse)
        starts = {f"d{s}": g for s, g in zip(cell.states, last) if g is not None and s != cell.output}
        for e, name in plan.carried.items():
            start = starts.get(e.attr) if e.op == "carry" else None
            size = self.sizes[e.dims[0]] if e.dims else 1
            arrays[name] = xp.zeros(rows, size) if start is None else xp.copy(xp.ascontiguousarray(start))
        for buffer, family, gates, name in self._training[0].products:
            if self.cell.inputs[name].op == "constant":
                w = self._rows(xp, given[family], family, gates)
                arrays[buffer] = xp.matmul(by_name[name], w.T)
        for name, b in compiled.loop.buffers.items():
            if name not in arrays:
                arrays[name] = xp.empty(steps, rows, b.width)
        self._call(compiled, xp, steps, rows, arrays, edges, given, not reverse)
        return _Products(self, xp, plan, arrays, by_name, first, given, reverse).gradients(needs)

    def _upstream(self, xp, arrays, edges, upstream, last, rows: int, reverse: bool) -> None:
        """The gradient from outside: in the first turn it also holds that of the last state."""
        end, at_end = last[self.cell.output], 0 if reverse else -1
        if upstream is None:
            size = self.sizes[self.cell.states[self.cell.output].dims[0]]
            arrays["upstream"] = xp.zeros(rows, size)  # the same rows of zeros in all turns
            edges["upstream"] = arrays["upstream"] if end is None else xp.ascontiguousarray(end)
            return
        arrays["upstream"] = xp.ascontiguousarray(upstream)
        here = arrays["upstream"][at_end]
        edges["upstream"] = here if end is None else xp.ascontiguousarray(here + end)


class _Products:
    """The large products after the backward loop: whole sequences at once, by the array library's BLAS."""

    def __init__(self, kernel: Kernel, xp, plan: Backward, arrays, inputs, first, parameters, reverse: bool):
        self.kernel, self.xp, self.plan, self.arrays, self.reverse = kernel, xp, plan, arrays, reverse
        self.inputs, self.first, self.parameters = inputs, first, parameters
        self.scan, self.cell = kernel.scan, kernel.cell
        self.sums: dict[str, Any] = {}

    def gradients(self, needs: Sequence[bool]) -> list:
        wanted = [*((self._input, n) for n in self.cell.inputs), *((self._state, s) for s in self.cell.states),
                  *((self._family, f) for f in self.cell.families)]
        return [make(name) if need else None for (make, name), need in zip(wanted, needs, strict=True)]

    # ---- places as matrices

    def _sequence(self, place: Place):
        """The values of a place, [T, B, size]; a view."""
        return self.arrays[place.buffer][:, :, place.offset:place.offset + place.size]

    @staticmethod
    def _flat(a):
        return a.reshape(-1, a.shape[-1])

    def _runs(self, items: list[tuple[str, str, Place]]):
        """Join (family, row, place) whose rows and places both follow each other: fewer, larger products."""
        items = sorted(items, key=lambda i: self.cell.families[i[0]].gates.index(i[1]))
        runs: list[list] = []
        for family, gate, place in items:
            index = self.cell.families[family].gates.index(gate)
            if runs:
                known, begin, count, joined = runs[-1]
                end = joined.offset + joined.size
                if known == family and begin + count == index and joined.buffer == place.buffer and end == place.offset:
                    runs[-1][2:] = [count + 1, Place(joined.buffer, joined.offset, joined.size + place.size)]
                    continue
            runs.append([family, index, 1, place])
        for family, begin, count, place in runs:
            size = self.parameters[family].shape[0] // len(self.cell.families[family].gates)
            yield family, slice(begin * size, (begin + count) * size), place

    def _place(self, e: Expr) -> Place | None:
        forward = self.kernel._training[0]
        return self.plan.emitted.get(e) or forward.saved.get(e)

    def _products(self, products, sequence_of, out):
        """out (+)= sum of values @ matrix rows; returns out, or None if there is nothing to add up."""
        by_family: dict[str, list] = {}
        for matrix, d in products:
            by_family.setdefault(matrix.attr[0], []).append((*matrix.attr, self.plan.emitted[d]))
        begun = False
        for items in by_family.values():
            for family, rows, place in self._runs(items):
                a, w = sequence_of(place), self.parameters[family][rows]
                if begun:
                    self.xp.add_product(out, a, w)
                else:
                    self.xp.matmul(a, w, out=out)
                begun = True
        return begun

    # ---- gradients

    def _input(self, name: str):
        terms, x = self.scan.backward.inputs[name], self.inputs[name]
        out = self.xp.empty(*x.shape)
        constant = self.cell.inputs[name].op == "constant"
        begun = self._products(terms.products, self._added_up if constant else lambda p: self._flat(self._sequence(p)),
                               self._flat(out))
        if not begun:
            out[...] = 0
        if terms.rest is not None:
            out += self.arrays[self.plan.carried[terms.rest]] if constant else self._sequence(self._known(terms.rest))
        return out

    def _known(self, e: Expr) -> Place:
        place = self._place(e)
        if place is None:
            raise AssertionError(f"{e!r} is read after the loop but not kept")
        return place

    def _added_up(self, place: Place):
        """The sum over all steps, [B, size]."""
        return self._sequence(place).sum(0)

    def _state(self, name: str):
        terms = self.scan.backward.states[name]
        t = -1 if self.reverse else 0
        out = self.xp.empty(*self.first[name].shape)
        if not self._products(terms.products, lambda p: self._sequence(p)[t], out):
            out[...] = 0
        for e, buffer in self.plan.carried.items():
            if e.op == "carry" and e.attr == f"d{name}":
                out += self.arrays[buffer]
        return out

    def _family(self, name: str):
        family, xp = self.cell.families[name], self.xp
        out = xp.empty(*self.parameters[name].shape)
        if family.columns is None:
            self._vector(name, out)
            return out
        size = out.shape[0] // len(family.gates)
        rounds: dict[tuple[Expr, int], list] = {}
        for k, gate in enumerate(family.gates):
            pairs = self.scan.backward.matrices[name, gate]
            if not pairs:
                out[k * size:(k + 1) * size] = 0
            for number, (d, operand) in enumerate(pairs):
                rounds.setdefault((operand, number), []).append((name, gate, self._known(d)))
        for (operand, number), items in sorted(rounds.items(), key=lambda r: r[0][1]):
            for _, rows, place in self._runs(items):
                self._outer(out[rows], place, operand, more=number > 0)
        return out

    def _outer(self, out, place: Place, operand: Expr, more: bool) -> None:
        """out (+)= sum over steps and rows of the outer products of two sequences."""
        xp, d = self.xp, self._sequence(place)
        pairs = [(d, None)]
        if operand.op == "state":
            # The state before step t is what step t - 1 wrote, or the first state.
            before, first = self.arrays[f"seq_{operand.attr}"], self.first[operand.attr]
            pairs = [(d[:-1], before[1:]), (d[-1], first)] if self.reverse else [(d[1:], before[:-1]), (d[0], first)]
        elif operand.op == "constant":
            pairs = [(d.sum(0), self.inputs[operand.attr])]
        elif operand.op == "input":
            pairs = [(d, self.inputs[operand.attr])]
        else:
            pairs = [(d, self._value(operand))]
        for a, b in pairs:
            if a.shape[0] == 0:
                continue
            if more:
                xp.add_product(out, self._flat(a).T, self._flat(b))
            else:
                xp.matmul(self._flat(a).T, self._flat(b), out=out)
            more = True
        if not more:
            out[...] = 0

    def _value(self, e: Expr):
        """A value of the step as a sequence."""
        for s in self.scan.stored:
            if self.cell.next[s] is e:
                return self.arrays[f"seq_{s}"]
        return self._sequence(self._known(e))

    def _vector(self, name: str, out) -> None:
        gates = self.cell.families[name].gates
        size = out.shape[0] // len(gates)
        for k, gate in enumerate(gates):
            e = self.scan.backward.vectors[name, gate]
            rows = slice(k * size, (k + 1) * size)
            if e in self.plan.carried:
                out[rows] = self.arrays[self.plan.carried[e]].sum(0)
            else:
                place = self._known(e)
                out[rows] = self._sum(place.buffer)[place.offset:place.offset + place.size]

    def _sum(self, buffer: str):
        """The sum of a whole buffer over steps and rows, made once: biases share it."""
        if buffer not in self.sums:
            self.sums[buffer] = self._flat(self.arrays[buffer]).sum(0)
        return self.sums[buffer]


@lru_cache(maxsize=None)
def _kernel(cell: Cell, sizes: tuple[tuple[str, int], ...], bytes_per_value: int, machine: Target) -> Kernel:
    return Kernel(split(cell), dict(sizes), bytes_per_value, machine)


def kernel(cell: Cell, sizes: dict[str, int], bytes_per_value: int) -> Kernel:
    """The kernel of a cell for sizes (names as in the cell) and 4 or 8 bytes per value."""
    return _kernel(cell, tuple(sorted(sizes.items())), bytes_per_value, target())
