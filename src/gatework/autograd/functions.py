"""Receives a cell and tensors that the kernels can serve, hands on autograd functions over whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..backends import cpu, reference
from ..backends.batch import Batch
from ..backends.cpu.shape import TILE_ROWS
from ..backends.cpu.target import Target, target
from ..backends.cpu.turning import SQUARE, turn_over
from ..backends.kernel import Kernel
from ..compiler import Cell
from . import checkpoints

FUSED = {torch.float32: 4, torch.float64: 8}


class Torch:
    """What the CPU kernels ask of an array library; the twin of `backends.cpu.kernel.Numpy`."""

    matmul = staticmethod(torch.matmul)
    threads = staticmethod(torch.get_num_threads)

    def __init__(self, like: Tensor):
        self.dtype, self.device = like.dtype, like.device

    @staticmethod
    def operand(a: Tensor) -> Tensor:
        return a

    @staticmethod
    def output(a: Tensor) -> Tensor:
        return a

    def empty(self, *shape: int, short: bool = False) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def ones(self, *shape: int) -> Tensor:
        return torch.ones(shape, dtype=self.dtype, device=self.device)

    @staticmethod
    def copy(a: Tensor) -> Tensor:
        return a.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def ascontiguousarray(a: Tensor) -> Tensor:
        return a.contiguous()

    @staticmethod
    def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
        out.addmm_(a, b)

    def take(self, a: Tensor, rows: np.ndarray) -> Tensor:
        return a.index_select(0, torch.from_numpy(rows).to(self.device))

    def sum_by(self, a: Tensor, rows: np.ndarray, count: int) -> Tensor:
        return self.zeros(count, a.shape[1]).index_add_(0, torch.from_numpy(rows).to(self.device), a)

    @staticmethod
    def address(a: Tensor) -> int:
        return a.data_ptr()


class Short(Torch):
    """The same for kernels that multiply bfloat16: products round what is not, and add up in float32."""

    def __init__(self, device: torch.device):
        self.dtype, self.device = torch.float32, device

    def operand(self, a: Tensor) -> Tensor:
        behind = a.untyped_storage().nbytes() - a.element_size() * (a.storage_offset() + a.numel())
        if a.dtype == torch.bfloat16 and a.is_contiguous() and behind >= 2 * a.shape[1] * (TILE_ROWS - 1):
            return a
        return self.empty(*a.shape, short=True).copy_(a)

    @staticmethod
    def output(a: Tensor) -> Tensor:
        return a.bfloat16()  # in memory of its own, unlike an operand: not a view, for users and autograd

    @staticmethod
    def after_each_other(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b])

    def empty(self, *shape: int, short: bool = False) -> Tensor:
        if not short:
            return super().empty(*shape)
        rows, width = shape  # the last tile of rows is read whole, so there is memory behind it
        return torch.empty(rows + TILE_ROWS - 1, width, dtype=torch.bfloat16, device=self.device)[:rows]

    def copy(self, a: Tensor) -> Tensor:
        return self.empty(*a.shape, short=a.dtype == torch.bfloat16).copy_(a)

    def matmul(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        if out is not None and out.dtype == torch.bfloat16:
            return torch.matmul(a.bfloat16(), b.bfloat16(), out=out)
        product = self._product(a.bfloat16(), b.bfloat16())
        return product.float() if out is None else out.copy_(product)

    def add_product(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        out.add_(self._product(a.bfloat16(), b.bfloat16()))

    @staticmethod
    def _product(a: Tensor, b: Tensor) -> Tensor:
        if b.dim() == 1:
            return (b[None] @ a.T)[0]  # matrix times vector would be slower
        if a.stride(0) == 1 and b.shape[1] < a.shape[0]:
            # A product of many rows with many rows wants its left side turned over: the smaller of the two is.
            return turned(turned(b) @ a.T)
        return a @ b

    def sum_by(self, a: Tensor, rows: np.ndarray, count: int) -> Tensor:
        return super().sum_by(a.float(), rows, count)


def turned(a: Tensor) -> Tensor:
    """The transpose of a matrix of bfloat16, as a matrix of its own."""
    a = a.contiguous()
    rows, columns = a.shape
    out = a.new_empty(columns, rows)
    turn_over(a.data_ptr(), out.data_ptr(), rows, columns, target(), torch.get_num_threads())
    whole_rows, whole_columns = rows // SQUARE * SQUARE, columns // SQUARE * SQUARE
    if whole_rows < rows:
        out[:, whole_rows:] = a[whole_rows:].T
    if whole_columns < columns:
        out[whole_columns:] = a[:, whole_columns:].T
    return out


def arrays_of(kernel: Kernel, like: Tensor) -> Torch:
    """What a kernel asks of torch, for tensors like this input."""
    return Short(like.device) if kernel.short else Torch(like)


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


def eager(kernel: Kernel, inputs, states, parameters, reverse, counts, checkpoint_every):
    cell, handed_out = kernel.cell, len(kernel.scan.outputs)
    batch = batch_of(inputs[0], len(states[0]), counts)
    tensors = (*flat(cell, inputs), *states, *parameters)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        every = checkpoints.distance(batch.steps, batch.rows, checkpoint_every)
        made = (_Scan.apply(kernel, batch, reverse, *tensors) if every >= batch.steps else
                _Checkpointed.apply(kernel, batch, reverse, every, *tensors))
        handed, last = made[:handed_out], list(made[handed_out:])
    else:
        handed, last, _ = kernel.forward(arrays_of(kernel, tensors[0]), batch, *parts_of(cell, tensors), reverse, False)
    shape = inputs[0].shape[:2] if counts is None else (batch.total,)
    return [y.view(*shape, y.shape[1]) for y in handed], last


def kernel_of(cell: Cell, outputs: tuple[str, ...], inputs, states, parameters, on_gpu: bool = False,
              short: bool = False) -> Kernel:
    """The kernel for tensors of these shapes and of this dtype, for the CPU or as Triton makes them."""
    return kernel_of_shapes(cell, outputs, tuple(shapes_of(inputs, states, parameters)), parameters[0].dtype,
                            None if on_gpu or inputs[0].is_cuda else target(), short)


def shapes_of(inputs, states, parameters) -> list[int]:
    """The features of every tensor, and the rows of every parameter; no steps and no rows of a batch."""
    return [*[t.shape[-1] for t in inputs], *[t.shape[-1] for t in states], *[n for t in parameters for n in t.shape]]


@cache
def kernel_of_shapes(cell: Cell, outputs: tuple[str, ...], shapes: tuple[int, ...], dtype: torch.dtype,
                     machine: Target | None, short: bool = False) -> Kernel:
    """The same from the features of every tensor; `machine` is the CPU, or None for a GPU."""
    left = iter(shapes)
    sizes = {}
    for e in (*cell.inputs.values(), *cell.states.values()):
        sizes |= dict.fromkeys(e.dims, next(left))
    for family in cell.families.values():
        sizes[family.rows] = next(left) // len(family.gates)
        if family.columns:
            sizes[family.columns] = next(left)
    if machine is None:
        from ..backends import gpu  # only here: Triton is an extra

        return gpu.kernel_for(cell, sizes, dtype, outputs)
    return cpu.kernel_for(cell, sizes, FUSED[dtype], outputs, short)


def parts_of(cell: Cell, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """inputs, states and parameters out of one list."""
    a, b = len(cell.inputs), len(cell.inputs) + len(cell.states)
    return list(tensors[:a]), list(tensors[a:b]), list(tensors[b:])


class _Scan(torch.autograd.Function):
    """A whole sequence, with all that its derivative needs."""

    @staticmethod
    def forward(ctx, kernel: Kernel, batch: Batch, reverse: bool, *tensors: Tensor):
        handed, last, kept = kernel.forward(arrays_of(kernel, tensors[0]), batch, *parts_of(kernel.cell, tensors),
                                            reverse, True)
        ctx.of = kernel, batch, reverse
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *handed, *kept)
        return *handed, *last

    @staticmethod
    def backward(ctx, *gradients):
        kernel, batch, reverse = ctx.of
        needs, saved, outputs = ctx.needs_input_grad[3:], ctx.saved_tensors, len(kernel.scan.outputs)
        count = len(needs)
        tensors, handed, kept = saved[:count], saved[count:count + outputs], saved[count + outputs:]
        if torch.is_grad_enabled():
            return *[None] * 3, *_differentiable(kernel, batch, reverse, tensors, gradients, needs)
        xp = arrays_of(kernel, tensors[0])
        if torch._C._autograd._get_current_graph_task_keep_graph():
            kept = [xp.copy(k) for k in kept]  # another backward pass may follow, and this one writes over them
        made = kernel.backward(xp, batch, gradients[:outputs], gradients[outputs:],
                               *parts_of(kernel.cell, tensors), handed, kept, reverse, needs)
        return *[None] * 3, *made


def _differentiable(kernel: Kernel, batch: Batch, reverse, tensors, gradients, needs) -> list[Tensor | None]:
    """The gradients as functions that can be differentiated again: by the reference backend, from the start."""
    like = tensors[-1]  # a parameter: inputs of another dtype are cast
    handed, last = reference.run(kernel.cell, *parts_of(kernel.cell, [t.to(like.dtype) for t in tensors]), reverse,
                                 kernel.scan.outputs, batch.sizes.tolist())
    given = [(y, d) for y, d in zip((*handed, *last), gradients) if d is not None and y.requires_grad]
    wanted = [t for t, need in zip(tensors, needs) if need]
    made = iter(torch.autograd.grad([y for y, _ in given], wanted, [d for _, d in given], create_graph=True,
                                    allow_unused=True))
    return [next(made) if need else None for need in needs]


class _Checkpointed(torch.autograd.Function):
    """A whole sequence of which only the states at the checkpoints are kept."""

    @staticmethod
    def forward(ctx, kernel: Kernel, batch: Batch, reverse: bool, every: int, *tensors: Tensor):
        handed, last, starts = checkpoints.forward(kernel, arrays_of(kernel, tensors[0]), batch, every,
                                                   *parts_of(kernel.cell, tensors), reverse)
        ctx.of = kernel, batch, reverse, every
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *starts)
        return *handed, *last

    @staticmethod
    def backward(ctx, *gradients):
        kernel, batch, reverse, every = ctx.of
        needs, outputs = ctx.needs_input_grad[4:], len(kernel.scan.outputs)
        tensors, starts = ctx.saved_tensors[:len(needs)], ctx.saved_tensors[len(needs):]
        if torch.is_grad_enabled():
            return *[None] * 4, *_differentiable(kernel, batch, reverse, tensors, gradients, needs)
        return *[None] * 4, *checkpoints.backward(
            kernel, arrays_of(kernel, tensors[0]), batch, every, gradients[:outputs], gradients[outputs:],
            *parts_of(kernel.cell, tensors), starts, reverse, needs)
