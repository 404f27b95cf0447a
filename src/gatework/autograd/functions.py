"""Receives a cell and tensors that the kernels can serve, hands on autograd functions over whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..backends import reference
from ..backends.cpu.batch import Batch
from ..backends.cpu.kernel import Kernel, kernel_for
from ..backends.cpu.target import Target, target
from ..compiler import Cell
from . import checkpoints

FUSED = {torch.float32: 4, torch.float64: 8}


class Torch:
    """What the CPU kernels ask of an array library; the twin of `backends.cpu.kernel.Numpy`."""

    matmul = staticmethod(torch.matmul)
    threads = staticmethod(torch.get_num_threads)

    def __init__(self, like: Tensor):
        self.dtype = like.dtype

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype)

    def ones(self, *shape: int) -> Tensor:
        return torch.ones(shape, dtype=self.dtype)

    @staticmethod
    def copy(a: Tensor) -> Tensor:
        return a.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def ascontiguousarray(a: Tensor) -> Tensor:
        return a.contiguous()

    @staticmethod
    def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
        out.addmm_(a, b)

    @staticmethod
    def take(a: Tensor, rows: np.ndarray) -> Tensor:
        return a.index_select(0, torch.from_numpy(rows))

    def sum_by(self, a: Tensor, rows: np.ndarray, count: int) -> Tensor:
        return self.zeros(count, a.shape[1]).index_add_(0, torch.from_numpy(rows), a)

    @staticmethod
    def address(a: Tensor) -> int:
        return a.data_ptr()


def narrowed(cell: Cell, inputs: Sequence[Tensor], sizes: Tensor | None, run):
    """Run on the places that are in use, and fill up the outputs with zeros behind them."""
    if sizes is None:
        return run(inputs, None)
    counts = sizes.tolist()
    places, total = len(inputs[0]), sum(counts)
    if places > total:
        inputs = [x if e.op == "constant" else x[:total] for e, x in zip(cell.inputs.values(), inputs)]
    handed, last = run(inputs, counts)
    if places > total:
        handed = [torch.cat([y, y.new_zeros(places - total, y.shape[1])]) for y in handed]
    return handed, last


def batch_of(like: Tensor, rows: int, counts: Sequence[int] | None) -> Batch:
    return Batch.dense(*like.shape[:2]) if counts is None else Batch.ragged(tuple(counts), rows)


def flat(cell: Cell, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs as the kernels take them: sequences are [N, size]."""
    return [x if x.dim() == 2 else x.reshape(-1, x.shape[2]) for x in inputs]


def eager(cell: Cell, outputs, inputs, states, parameters, reverse, counts, checkpoint_every):
    batch = batch_of(inputs[0], len(states[0]), counts)
    tensors = (*flat(cell, inputs), *states, *parameters)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        every = checkpoints.distance(batch.steps, batch.rows, checkpoint_every)
        made = (_Scan.apply(cell, outputs, batch, reverse, *tensors) if every >= batch.steps else
                _Checkpointed.apply(cell, outputs, batch, reverse, every, *tensors))
        handed, last = made[:len(outputs)], list(made[len(outputs):])
    else:
        parts = parts_of(cell, tensors)
        handed, last, _ = kernel_of(cell, outputs, *parts).forward(Torch(tensors[0]), batch, *parts, reverse, False)
    shape = inputs[0].shape[:2] if counts is None else (batch.total,)
    return [y.view(*shape, y.shape[1]) for y in handed], last


def kernel_of(cell: Cell, outputs: tuple[str, ...], inputs, states, parameters) -> Kernel:
    return kernel_of_shapes(cell, outputs, tuple(shapes_of(inputs, states, parameters)), inputs[0].dtype, target())


def shapes_of(inputs, states, parameters) -> list[int]:
    """The features of every tensor, and the rows of every parameter; no steps and no rows of a batch."""
    return [*[t.shape[-1] for t in inputs], *[t.shape[-1] for t in states], *[n for t in parameters for n in t.shape]]


@cache
def kernel_of_shapes(cell: Cell, outputs: tuple[str, ...], shapes: tuple[int, ...], dtype: torch.dtype,
                     _: Target) -> Kernel:
    left = iter(shapes)
    sizes = {}
    for e in (*cell.inputs.values(), *cell.states.values()):
        sizes |= dict.fromkeys(e.dims, next(left))
    for family in cell.families.values():
        sizes[family.rows] = next(left) // len(family.gates)
        if family.columns:
            sizes[family.columns] = next(left)
    return kernel_for(cell, sizes, FUSED[dtype], outputs)


def parts_of(cell: Cell, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """inputs, states and parameters out of one list."""
    a, b = len(cell.inputs), len(cell.inputs) + len(cell.states)
    return list(tensors[:a]), list(tensors[a:b]), list(tensors[b:])


class _Scan(torch.autograd.Function):
    """A whole sequence, with all that its derivative needs."""

    @staticmethod
    def forward(ctx, cell: Cell, outputs: tuple[str, ...], batch: Batch, reverse: bool, *tensors: Tensor):
        parts = parts_of(cell, tensors)
        handed, last, kept = kernel_of(cell, outputs, *parts).forward(Torch(tensors[0]), batch, *parts, reverse, True)
        ctx.of = cell, outputs, batch, reverse
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *handed, *kept)
        return *handed, *last

    @staticmethod
    def backward(ctx, *gradients):
        cell, outputs, batch, reverse = ctx.of
        count = len(ctx.needs_input_grad) - 4
        needs, saved = ctx.needs_input_grad[4:], ctx.saved_tensors
        tensors, handed, kept = saved[:count], saved[count:count + len(outputs)], saved[count + len(outputs):]
        if torch.is_grad_enabled():
            return *[None] * 4, *_differentiable(cell, outputs, batch, reverse, tensors, gradients, needs)
        if torch._C._autograd._get_current_graph_task_keep_graph():
            kept = [k.clone() for k in kept]  # another backward pass may follow, and this one writes over them
        parts = parts_of(cell, tensors)
        made = kernel_of(cell, outputs, *parts).backward(
            Torch(tensors[0]), batch, gradients[:len(outputs)], gradients[len(outputs):], *parts, handed, kept, reverse,
            needs)
        return *[None] * 4, *made


def _differentiable(cell: Cell, outputs, batch: Batch, reverse, tensors, gradients, needs) -> list[Tensor | None]:
    """The gradients as functions that can be differentiated again: by the reference backend, from the start."""
    handed, last = reference.run(cell, *parts_of(cell, tensors), reverse, outputs, batch.sizes.tolist())
    given = [(y, d) for y, d in zip((*handed, *last), gradients) if d is not None and y.requires_grad]
    wanted = [t for t, need in zip(tensors, needs) if need]
    made = iter(torch.autograd.grad([y for y, _ in given], wanted, [d for _, d in given], create_graph=True,
                                    allow_unused=True))
    return [next(made) if need else None for need in needs]


class _Checkpointed(torch.autograd.Function):
    """A whole sequence of which only the states at the checkpoints are kept."""

    @staticmethod
    def forward(ctx, cell: Cell, outputs: tuple[str, ...], batch: Batch, reverse: bool, every: int, *tensors: Tensor):
        parts = parts_of(cell, tensors)
        handed, last, starts = checkpoints.forward(kernel_of(cell, outputs, *parts), Torch(tensors[0]), batch, every,
                                                   *parts, reverse)
        ctx.of = cell, outputs, batch, reverse, every
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *starts)
        return *handed, *last

    @staticmethod
    def backward(ctx, *gradients):
        cell, outputs, batch, reverse, every = ctx.of
        count = len(ctx.needs_input_grad) - 5
        needs, tensors, starts = ctx.needs_input_grad[5:], ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        if torch.is_grad_enabled():
            return *[None] * 5, *_differentiable(cell, outputs, batch, reverse, tensors, gradients, needs)
        parts = parts_of(cell, tensors)
        return *[None] * 5, *checkpoints.backward(
            kernel_of(cell, outputs, *parts), Torch(tensors[0]), batch, every, gradients[:len(outputs)],
            gradients[len(outputs):], *parts, starts, reverse, needs)
