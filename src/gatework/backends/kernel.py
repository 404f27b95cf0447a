"""Receives a scan and sizes, hands on callables over whole sequences: the same for every backend but for the loops.

Arrays are numpy's or torch's: all that is asked of them is in `cpu.arrays.Numpy` and its twin in `gatework.autograd`.
Sequences are [N, width], step by step, with the rows of every step as a `Batch` says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

from ..compiler import Scan
from ..compiler.scan import with_before
from .batch import Batch
from .plan import Backward, Forward, Loop, plan_backward, plan_forward
from .products import Products


class Loops(Protocol):
    """A loop in all its forms."""

    loop: Loop

    def suited(self, xp, batch: Batch) -> Sequence[Compiled]:
        """The forms that can run a batch, the fastest first. Each but the last may fail and leave it to the next."""


class Compiled(Protocol):
    """A loop that can run."""

    def pack(self, xp, parameters: dict[str, Any]) -> Any:
        """The weights as the loop reads them, made anew for every call: no sign of a tensor tells reliably that its
        values are the old ones (writing through `.data` leaves all of them as they are)."""

    def release(self, xp, weights: Any) -> None:
        """Give the memory of `pack` back."""

    def call(self, xp, batch: Batch, span: tuple[int, int], from_end: bool, arrays: dict[str, Any],
             edges: dict[str, Any], weights: Any, passing: frozenset = frozenset(), still: frozenset = frozenset()
             ) -> bool:
        """Run the turns of some steps. A `passing` buffer holds these steps only; a `still` one the same for all.
        `edges` are what stands for the first or last values of a sequence, [B, width]. Returns whether it could: False
        where an operand was infinite, and this form has no such values."""


class Kernel(ABC):
    """The loops of one cell for one set of sizes and one dtype, each compiled when it is first needed.

    A backend says how a loop is compiled, and how many rows it should work on at a time.
    """

    align = 1      # of the scratch, in values
    on_cpu = True  # or on a GPU
    packs = False  # whether making the weights into what the loop reads takes long beside a single step

    def __init__(self, scan: Scan, sizes: dict[str, int], short: bool = False):
        self.scan, self.cell, self.sizes, self.short = scan, scan.cell, sizes, short
        self.inputs, self.states = [f"in_{n}" for n in scan.cell.inputs], list(scan.cell.states)
        self.families = list(scan.cell.families)
        self.parameters = [f"param_{n}" for n in self.families]
        self.programs: dict[tuple, Any] = {}  # what callers have recorded of it

    @abstractmethod
    def compile(self, loop: Loop) -> Loops: ...

    def rows_at_once(self, width: int) -> int | None:
        """Rows of the input products, `width` values each, that are made before the loop runs on them; None: all."""
        return None

    @cached_property
    def _inference(self) -> tuple[Forward, Loops]:
        plan = plan_forward(self.scan, self.sizes, False, self.align, self.short)
        return plan, self.compile(plan.loop)

    @cached_property
    def _single_step(self) -> tuple[Forward, Loops]:
        """Inference of one step: products of the first states come before the loop, too, so no weights are packed."""
        plan = plan_forward(with_before(self.scan, "input", "constant", "state"), self.sizes, False, self.align)
        return plan, self.compile(plan.loop)

    @cached_property
    def _training(self) -> tuple[Forward, Loops]:
        return self._training_plan, self.compile(self._training_plan.loop)

    @cached_property
    def _backward(self) -> tuple[Backward, Loops]:
        return self._backward_plan, self.compile(self._backward_plan.loop)

    @cached_property
    def _backward_plan(self) -> Backward:
        return plan_backward(self.scan, self.sizes, self._training_plan, self.align)

    @cached_property
    def _training_plan(self) -> Forward:
        return plan_forward(self.scan, self.sizes, True, self.align, self.short)

    @cached_property
    def _products(self) -> Products:
        return Products(self.scan, self.sizes, self._training_plan.saved, self._backward_plan)

    @cached_property
    def kept(self) -> list[str]:
        """The buffers that a forward pass hands to the backward pass, beside its output."""
        plan = self._training_plan
        handed = list(plan.outputs.values())
        states = [plan.sequences[s] for s in self.scan.stored if plan.sequences[s] not in handed]
        if self.short:  # an output is handed out rounded: where the loop reads it, as it was, it is kept besides
            states += [name for name in dict.fromkeys(handed) if name in self._backward_plan.loop.buffers]
        return states + list(dict.fromkeys(p.buffer for p in plan.saved.values()))

    def kept_width(self, name: str) -> int:
        return self._training_plan.loop.buffers[name].width

    def is_short(self, name: str) -> bool:
        """Whether a buffer that is kept holds bfloat16."""
        return self._training_plan.loop.buffers[name].short

    def forward(self, xp, batch: Batch, inputs: Sequence, states: Sequence, parameters: Sequence, reverse: bool,
                train: bool):
        """Return (outputs [N, size], last states [B, size], kept buffers [N, width]; none unless `train`).

        Products of the inputs and the loop take turns, some steps at a time: what one writes the other finds in the
        cache, and where the backward pass does not read them a few steps are all the memory that the products take.
        """
        single = batch.steps == 1 and self.packs
        plan, loops = self._training if train else self._single_step if single else self._inference
        parameters = [xp.ascontiguousarray(p) for p in parameters]
        for compiled in loops.suited(xp, batch):
            arrays, edges = self._given(xp, inputs, parameters), {}
            for s, value in zip(self.states, states):
                if s in plan.rolling:
                    arrays[plan.rolling[s]] = xp.copy(value)
                if s in plan.sequences:
                    value = xp.ascontiguousarray(value)
                    edges[plan.sequences[s]] = xp.operand(value) if s in plan.rolling else value
            if self._walk(xp, batch, plan, compiled, arrays, edges, dict(zip(self.families, parameters)),
                          dict(zip(self.states, states)), reverse, train):
                break
        last = [arrays[plan.rolling[s]] if s in plan.rolling
                else self._last(xp, batch, arrays[plan.sequences[s]], edges[plan.sequences[s]], reverse)
                for s in self.states]
        kept = [arrays[name] for name in self.kept] if train else []
        handed = [xp.output(arrays[name]) for name in plan.outputs.values()]
        return handed, last, kept

    def _walk(self, xp, batch: Batch, plan: Forward, compiled: Compiled, arrays: dict[str, Any], edges: dict[str, Any],
              given: dict[str, Any], first: dict[str, Any], reverse: bool, train: bool) -> bool:
        """The products of the inputs and the loop, in turns; whether the loop could run."""
        matrices = {buffer: xp.operand(self._rows(xp, given[family], family, gates)).T
                    for buffer, family, gates, _ in plan.products}
        before = []
        for buffer, _, _, name in plan.products:
            if name in first:
                before.append((buffer, first[name][:batch.live], matrices[buffer]))
            elif self.cell.inputs[name].op == "constant":  # one product for all steps
                arrays[buffer] = xp.matmul(arrays[f"in_{name}"], matrices[buffer])
            else:
                before.append((buffer, arrays[f"in_{name}"], matrices[buffer]))
        most = self.rows_at_once(sum(w.shape[1] for _, _, w in before))
        chunks = batch.chunks(max(batch.rows, batch.total if most is None else most))
        most = max((batch.place(end) - batch.place(begin) for begin, end in chunks), default=0)
        kept = self.kept if train else ()
        passing = frozenset(buffer for buffer, _, _ in before if buffer not in kept)
        for name, b in compiled.loop.buffers.items():
            if name not in arrays:
                arrays[name] = xp.lasting(most if name in passing else batch.total, b.width, short=b.short)
        weights, could = compiled.pack(xp, given), True
        for begin, end in reversed(chunks) if reverse else chunks:
            at = slice(batch.place(begin), batch.place(end))
            for buffer, x, w in before:
                out = arrays[buffer]
                if len(chunks) > 1:
                    x, out = x[at], out[:at.stop - at.start] if buffer in passing else out[at]
                xp.matmul(x, w, out=out)
            could = compiled.call(xp, batch, (begin, end), reverse, arrays, edges, weights, passing)
            if not could:
                break
        compiled.release(xp, weights)
        return could

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
        arrays = {name: xp.operand(xp.ascontiguousarray(x)) if e.op == "input" else xp.ascontiguousarray(x)
                  for name, e, x in zip(self.inputs, self.cell.inputs.values(), inputs)}
        arrays.update(zip(self.parameters, parameters))
        return arrays

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
        plan, loops = self._backward
        # It writes over what it reads, so it cannot start again: an infinite gradient may come out as no number.
        compiled = loops.suited(xp, batch)[0]
        parameters = [xp.ascontiguousarray(p) for p in parameters]
        cell, given = self.cell, dict(zip(self.families, parameters))
        arrays = self._given(xp, inputs, parameters)
        by_name = dict(zip(cell.inputs, arrays.values()))
        first = {s: xp.ascontiguousarray(v) for s, v in zip(self.states, states)}
        arrays |= zip(self._training_plan.outputs.values(), outputs)
        arrays |= zip(self.kept, kept)
        edges = {f"seq_{s}": v for s, v in first.items()}
        ends = dict(zip(self.states, last))
        still = {f"up_{name}" for name, d in zip(self.scan.outputs, upstream) if d is None}
        for name, d in zip(self.scan.outputs, upstream):
            self._upstream(xp, batch, arrays, edges, name, d, ends, reverse)
        for e, name in plan.carried.items():
            start = ends.get(e.attr[1:]) if e.op == "carry" else None
            arrays[name] = (xp.zeros(batch.rows, compiled.loop.buffers[name].width) if start is None
                            else xp.copy(start))
        for buffer, family, gates, name in self._training_plan.products:
            if cell.inputs[name].op == "constant":
                arrays[buffer] = xp.matmul(by_name[name], self._rows(xp, given[family], family, gates).T)
        arrays |= {name: xp.lasting(batch.total, b.width, short=b.short)
                   for name, b in compiled.loop.buffers.items() if name not in arrays}
        weights = compiled.pack(xp, given)
        compiled.call(xp, batch, (0, batch.steps), not reverse, arrays, edges, weights, still=still)
        compiled.release(xp, weights)
        return self._products.gradients(xp, batch, arrays, by_name, first, ends, given, reverse, needs)

    def _upstream(self, xp, batch: Batch, arrays, edges, name: str, d, ends: dict[str, Any], reverse: bool) -> None:
        """The gradient from outside; for a state, in the first turn of a row, with that of the last state."""
        buffer, size = f"up_{name}", self.width(name)
        arrays[buffer] = xp.operand(xp.zeros(batch.rows, size) if d is None else xp.ascontiguousarray(d))
        if name in self.scan.beside:
            return
        end = ends.pop(name)
        ends[f"{name} without steps"] = end
        if d is None:
            edges[buffer] = xp.operand(xp.zeros(batch.rows, size) if end is None else xp.ascontiguousarray(end))
            return
        at = batch.end(reverse)
        here = arrays[buffer][at] if isinstance(at, slice) else xp.take(arrays[buffer], at)
        edges[buffer] = xp.operand(here if end is None else xp.ascontiguousarray(here + end[:batch.live]))

    def width(self, name: str) -> int:
        """The features of what is handed out."""
        dims = self.cell.value(name).dims
        return self.sizes[dims[0]] if dims else 1
