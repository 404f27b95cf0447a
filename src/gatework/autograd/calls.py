"""Receives a kernel and tensors, hands on what its loops and products make of them, in as few steps as can be.

The first call with tensors of some shapes walks through the kernel with torch. The second one records the walk, and
from then on a program repeats it: memory for the results, and one call of machine code. A program of ragged batches
serves all that are cut alike, of up to twice as many places. Large products and what else programs do not have are left
to torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ..backends import reference
from ..backends.batch import Batch
from ..backends.cpu import threads
from ..backends.cpu.any_batch import AnyBatch, Known, NotRecorded, numbers
from ..backends.cpu.record import Recorder, ShortRecorder
from ..backends.cpu.replay import NOTHING, Program, run_side_by_side
from ..backends.cpu.shape import TILE_ROWS
from ..backends.cpu.target import target
from ..backends.kernel import Kernel
from ..compiler import Cell
from . import blas, lasting
from .arrays import arrays_of, whole, wide_products

AT_ONCE = False  # record the first call already, as tests do; a length that never comes again is not worth it
MOST_PROGRAMS = 256  # sizes of dense batches, and programs of ragged ones, of one kernel; then they begin anew
# Values that a call reads and writes, from which on nobody notices how it was called, and bytes that it may work in:
# they are held from then on.
MOST_VALUES, MOST_WORK = 1 << 23, 1 << 25

_Result = tuple[tuple[int, ...], torch.dtype, bool, bool]


@dataclass
class _Recorded:
    """A walk as a program. Of its results: None, or shape and dtype, whether there is a tail behind them, and whether
    that is so little that the allocator has it."""

    program: Program
    batch: Batch | None  # a dense one, which the program points into
    results: list[_Result | None]
    train: bool
    idle: bool  # whether it leaves threads without work

    def __call__(self, tensors: Sequence[Tensor], told: Mapping[str, int] = NOTHING) -> list[Tensor | None]:
        """Of a ragged batch it is `told` the numbers."""
        given = [t.contiguous() for t in tensors]
        made, addresses, work = self.lay_out(given, told)
        self.program.run(addresses, work.data_ptr(), told)
        lasting.give_back(work)
        return made

    def lay_out(self, given: Sequence[Tensor], told: Mapping[str, int] = NOTHING
                ) -> tuple[list[Tensor | None], list[int], Tensor]:
        """Memory for the results, the addresses of all, and memory to work in, which is to be given back."""
        made: list[Tensor | None] = []
        for result in self.results:
            if result is None:
                made.append(None)
                continue
            front, dtype, tail, small = result
            if small:
                made.append(torch.empty(front, dtype=dtype))
                continue
            if told:
                front = tuple(told[n.name] if isinstance(n, Known) else n for n in front)
            shape = (math.prod(front[:-1]) + TILE_ROWS - 1, front[-1]) if tail else front
            memory = lasting.take(shape, dtype) if self.train else None
            memory = torch.empty(shape, dtype=dtype) if memory is None else memory
            made.append(whole(memory, front) if tail else memory)
        work = lasting.borrow(self.program.work_for(told["total"] if told else 0))
        return made, [t.data_ptr() for t in (*given, *made) if t is not None], work


@dataclass(eq=False)
class Call:
    """A kernel over a batch in one direction; outputs are [*shape, size].

    Programs of a dense batch are found here at once, by the little that tells calls of these sizes apart.
    """

    keeps_outputs: ClassVar[bool] = True  # for the backward pass, or it does without
    batch_first: ClassVar[bool] = False

    kernel: Kernel
    batch: Batch
    shape: tuple[int, ...]
    reverse: bool
    _known: dict[tuple, _Recorded | object | None] = field(default_factory=dict)

    @classmethod
    def of(cls, kernel: Kernel, batch: Batch, shape: tuple[int, ...], reverse: bool) -> Call:
        """The call for these, made once for dense batches."""
        if not batch.is_dense:
            return cls(kernel, batch, shape, reverse)
        key = (*shape, batch.rows, reverse)
        found = kernel.programs.get(key)  # once: another thread may make room meanwhile
        if found is None:
            _make_room(kernel)
            found = kernel.programs[key] = cls(kernel, batch, shape, reverse)
        return found

    @property
    def handed(self) -> int:
        """How many outputs it hands out."""
        return len(self.kernel.scan.outputs)

    def forward(self, tensors: Sequence[Tensor], train: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """`Kernel.forward` for inputs, first states and parameters in one list."""
        key = self._key(tensors, train)
        found = self._known.get(key)
        if type(found) is _Recorded:
            return self._sorted(found(tensors))
        return self._sorted(self._any_forward(key, tensors, train))

    def _sorted(self, made: list) -> tuple[list, list, list]:
        """Outputs, last states, and what is kept."""
        handed = self.handed
        ended = handed + len(self.kernel.states)
        return made[:handed], made[handed:ended], made[ended:]

    def _any_forward(self, key: tuple, tensors: Sequence[Tensor], train: bool) -> list[Tensor]:
        kernel, handed = self.kernel, self.handed

        def walk(xp, batch, given):
            return [t for part in self._walk_forward(xp, batch, list(map(flat, given)), train) for t in part]

        def shapes(batch, made):
            return [(*self._front(batch), y.shape[1]) for y in made[:handed]] + [t.shape for t in made[handed:]]

        repeat = self._repeated(key, tensors, _sequences(kernel.cell), "training" if train else "inference", walk,
                                shapes, 0)
        if repeat is not None:
            return repeat(tensors)
        made = walk(arrays_of(kernel, tensors[0], train), self.batch, tensors)
        for y in made[:handed]:
            y.resize_(*self._front(self.batch), y.shape[1])  # a view would be one more function for autograd
        return made

    def _walk_forward(self, xp, batch: Batch, given: list, train: bool) -> tuple[list, list, list]:
        """Outputs, last states, and what is kept, of sequences that are [N, size] or as the caller lays them out."""
        return self.kernel.forward(xp, batch, *parts_of(self.kernel.cell, given), self.reverse, train)

    def _walk_backward(self, xp, batch: Batch, upstream: list, last: list, tensors: list, handed: list, kept: list,
                       needs: tuple[bool, ...]) -> list:
        """Their gradients."""
        return self.kernel.backward(xp, batch, upstream, last, *parts_of(self.kernel.cell, tensors), handed, kept,
                                    self.reverse, needs)

    def _front(self, batch: Batch) -> tuple[int, ...]:
        """The shape of a sequence as the caller lays it out, without its features."""
        return self.shape if batch.is_dense else (batch.total,)

    def backward(self, upstream: Sequence[Tensor | None], last: Sequence[Tensor | None], tensors: Sequence[Tensor],
                 handed: Sequence[Tensor], kept: Sequence[Tensor], needs: tuple[bool, ...]) -> list[Tensor | None]:
        """`Kernel.backward`, likewise; the gradients have the shapes of the tensors."""
        what, given = _asked(upstream, last, tensors, handed, kept, needs)
        key = self._key(given, what)
        found = self._known.get(key)
        if type(found) is _Recorded:
            return found(given)
        return self._any_backward(key, what, given, len(upstream), tensors, len(handed), len(kept))

    def _any_backward(self, key: tuple, what: tuple, given: Sequence[Tensor], outputs: int, tensors: Sequence[Tensor],
                      handed: int, kept: int) -> list[Tensor | None]:
        kernel, (needs, there, _) = self.kernel, what
        ends = [outputs, len(there), len(there) + len(tensors), len(there) + len(tensors) + handed]

        def walk(xp, batch, given):
            left = iter(map(flat, given))
            parts = [next(left) if here else None for here in there] + list(left)
            a, b, c, d = ends
            return self._walk_backward(xp, batch, parts[:a], parts[a:b], parts[b:c], parts[c:d], parts[d:], needs)

        def shapes(batch, made):
            front = None if batch.is_dense else self._front(batch)
            return [None if not need else (*front, t.shape[-1]) if front and grows else t.shape
                    for t, need, grows in zip(tensors, needs, own)]

        own = _sequences(kernel.cell)
        sequences = [k < outputs for k, here in enumerate(there) if here] + own + [True] * (handed + kept)
        repeat = self._repeated(key, given, sequences, "backward", walk, shapes, kept)
        if repeat is not None:
            return repeat(given)
        return [None if d is None else d.view(t.shape)
                for t, d in zip(tensors, walk(arrays_of(kernel, tensors[0]), self.batch, given))]

    def differentiable(self, tensors: Sequence[Tensor], upstream: Sequence[Tensor | None],
                       last: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
        """The gradients as functions that can be differentiated again: by the reference backend, from the start."""
        like = tensors[-1]  # a parameter: inputs of another dtype are cast
        given = parts_of(self.kernel.cell, [flat(t).to(like.dtype) for t in tensors])
        handed, ends = reference.run(self.kernel.cell, *given, self.reverse, self.kernel.scan.outputs,
                                     self.batch.sizes.tolist())
        outside = [*(None if d is None else d.flatten(0, -2) for d in upstream), *last]
        given = [(y, d) for y, d in zip((*handed, *ends), outside) if d is not None and y.requires_grad]
        wanted = [t for t, need in zip(tensors, needs) if need]
        made = iter(torch.autograd.grad([y for y, _ in given], wanted, [d for _, d in given], create_graph=True,
                                        allow_unused=True))
        return [next(made) if need else None for need in needs]

    def _key(self, given: Sequence[Tensor], what) -> tuple:
        # A forked child has no team, so it is not to find the programs of its parent.
        key = (what, torch.get_num_threads(), threads.team() is None)
        return (*key, *(t.dtype for t in given)) if self.kernel.short else key

    def _repeated(self, key: tuple, given: Sequence[Tensor], sequences: Sequence[bool], loop: str, walk: Callable,
                  shapes: Callable, were_kept: int
                  ) -> Callable[[Sequence[Tensor]], list[Tensor | None]] | None:
        """The program for this call; None where there is none, or where this is the first such call."""
        kernel, batch, known, parts = self.kernel, self.batch, self._known, 1
        if not kernel.on_cpu:
            return None
        if not batch.is_dense:
            team = kernel.team(batch, torch.get_num_threads(), loop)
            if team is None or batch.live < batch.rows:
                return None
            parts = 1 if team[1] else team[0]
            known = kernel.programs
            key = (*key, loop, self.reverse, *team, batch.rows, batch.total.bit_length(), batch.padding is None,
                   self.batch_first)
        found = known.get(key, _NEW)
        if found is _NEW:
            if known is kernel.programs:
                _make_room(kernel)
            found = known[key] = _WALKED
            if not AT_ONCE:
                return None
        if found is _WALKED:
            found = known[key] = _record(kernel, batch, given, sequences, walk, shapes, loop, were_kept)
        if found is None or batch.is_dense:
            return found
        return partial(found, told=numbers(batch, found.program.names, parts, self.reverse))


def _asked(upstream: Sequence[Tensor | None], last: Sequence[Tensor | None], tensors: Sequence[Tensor],
           handed: Sequence[Tensor], kept: Sequence[Tensor], needs: tuple[bool, ...]) -> tuple[tuple, list[Tensor]]:
    """What tells one backward pass from another, and all that it is given."""
    outside = (*upstream, *last)
    there = tuple([d is not None for d in outside])
    return (needs, there, len(tensors[0].shape)), [*(d for d in outside if d is not None), *tensors, *handed, *kept]


class Pair:
    """The calls of both directions as one: what one is given and makes comes first, then that of the other.

    Where a direction has too few rows for more than one thread both run at once.
    """

    keeps_outputs = True

    def __init__(self, kernel: Kernel, batch: Batch, shape: tuple[int, ...]):
        self.kernel = kernel
        self._calls = [Call.of(kernel, batch, shape, reverse) for reverse in (False, True)]
        self.handed = 2 * self._calls[0].handed

    def _apart(self, *lists: Sequence) -> list[tuple]:
        """Each call with its half of some lists."""
        return [(call, *(items[k * len(items) // 2:(k + 1) * len(items) // 2] for items in lists))
                for k, call in enumerate(self._calls)]

    def forward(self, tensors: Sequence[Tensor], train: bool) -> tuple[list[Tensor], ...]:
        parts = self._apart(tensors)
        made = _side_by_side([call._known.get(call._key(own, train)) for call, own in parts], [own for _, own in parts])
        if made is None:
            made = [call.forward(own, train) for call, own in parts]
        else:
            made = [call._sorted(own) for (call, _), own in zip(parts, made)]
        return tuple([*one, *other] for one, other in zip(*made))

    def backward(self, *lists: Sequence) -> list[Tensor | None]:
        parts = self._apart(*lists)
        found, given = [], []
        for call, *own in parts:
            what, tensors = _asked(*own)
            found.append(call._known.get(call._key(tensors, what)))
            given.append(tensors)
        made = _side_by_side(found, given)
        if made is None:
            made = [call.backward(*own) for call, *own in parts]
        return [*made[0], *made[1]]

    def differentiable(self, *lists: Sequence) -> list[Tensor | None]:
        return [d for call, *own in self._apart(*lists) for d in call.differentiable(*own)]


def _side_by_side(found: Sequence, tensors: Sequence[Sequence[Tensor]]) -> list[list[Tensor | None]] | None:
    """What programs make of some tensors, if all are programs and leave threads idle."""
    if not all(type(f) is _Recorded and f.idle for f in found):
        return None
    given = [[t.contiguous() for t in own] for own in tensors]
    laid = [f.lay_out(own) for f, own in zip(found, given)]
    size = given[0][0].element_size()
    run_side_by_side([(f.program, addresses, work.data_ptr()) for f, (_, addresses, work) in zip(found, laid)], size)
    for _, _, work in laid:
        lasting.give_back(work)
    return [made for made, _, _ in laid]


def _make_room(kernel: Kernel) -> None:
    if len(kernel.programs) >= MOST_PROGRAMS:
        kernel.programs.clear()


def parts_of(cell: Cell, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """inputs, states and parameters out of one list."""
    a, b = len(cell.inputs), len(cell.inputs) + len(cell.states)
    return list(tensors[:a]), list(tensors[a:b]), list(tensors[b:])


def flat(t: Tensor) -> Tensor:
    """A sequence as the kernels take it, [N, size]."""
    return t.reshape(-1, t.shape[2]) if len(t.shape) == 3 else t


def _sequences(cell: Cell) -> list[bool]:
    """Of inputs, states and parameters in one list: which grow with the batch."""
    return [e.op == "input" for e in cell.inputs.values()] + [False] * (len(cell.states) + len(cell.families))


_NEW, _WALKED = object(), object()  # stand for what has not been done, and has been done once and not been recorded


def _record(kernel: Kernel, batch: Batch, given: Sequence[Tensor], sequences: Sequence[bool], walk: Callable,
            shapes: Callable, loop: str, were_kept: int) -> _Recorded | None:
    gemms = [blas.gemm(torch.float32 if kernel.short else given[0].dtype)]
    gemms += [blas.gemm(torch.bfloat16)] * kernel.short
    if None in gemms or sum(t.numel() for t in given) > MOST_VALUES:
        return None
    count = torch.get_num_threads()
    wide = wide_products(target())
    xp = (ShortRecorder(count, *gemms, wide) if kernel.short else
          Recorder(given[0].dtype.itemsize, count, *gemms, wide))
    dense = batch.is_dense
    seen = batch if dense else AnyBatch(batch)
    short = [t.dtype == torch.bfloat16 for t in given]
    # What is padded has three axes, and as many rows as its batch has steps for each row.
    inputs = [xp.given(t.shape if dense or not grows else
                       (seen.total if t.dim() == 2 else seen.steps * seen.rows, t.shape[-1]),
                       s, s and number >= len(given) - were_kept)
              for number, (t, s, grows) in enumerate(zip(given, short, sequences, strict=True))]
    try:
        made = walk(xp, seen, inputs)
        program = xp.finish(inputs, [a for a in made if a is not None])
    except NotRecorded:
        return None
    if program.work_for(batch.total) > MOST_WORK:
        return None
    dtype = torch.float32 if kernel.short else given[0].dtype
    results = [None if a is None else (tuple(shape), torch.bfloat16 if a.short else dtype, a.tail, not a.tail and dense
                                       and math.prod(shape) * dtype.itemsize < lasting.LARGE)
               for a, shape in zip(made, shapes(seen, made))]
    return _Recorded(program, batch if dense else None, results, loop != "inference",
                     kernel.leaves_threads_idle(batch, count, loop))
