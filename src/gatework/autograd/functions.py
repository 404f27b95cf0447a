"""Receives a cell and tensors that the kernels can serve, hands on autograd functions over whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from ..backends import cpu
from ..backends.batch import Batch
from ..backends.cpu.target import Target, target
from ..backends.kernel import Kernel
from ..compiler import Cell
from . import checkpoints, lasting
from .arrays import arrays_of
from .calls import Call, Pair, flat, parts_of

FUSED = {torch.float32: 4, torch.float64: 8}


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


def eager(kernel: Kernel, inputs, states, parameters, reverse, counts, checkpoint_every):
    batch = batch_of(inputs[0], len(states[0]), counts)
    shape = inputs[0].shape[:2] if counts is None else (batch.total,)
    tensors = (*inputs, *states, *parameters)
    every = checkpoints.distance(batch.steps, batch.rows, checkpoint_every)
    if every >= batch.steps or not _differentiates(tensors):
        return run(Call.of(kernel, batch, shape, reverse), tensors)
    made = _Checkpointed.apply(kernel, batch, reverse, every, *map(flat, inputs), *states, *parameters)
    handed = len(kernel.scan.outputs)
    return [y.view(*shape, y.shape[1]) for y in made[:handed]], made[handed:]


def run(call: Call | Pair, tensors: tuple[Tensor, ...], of_layer: bool = False
        ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Outputs and last states, differentiable if somebody may ask for that; the latter [1, B, size] with `of_layer`."""
    if _differentiates(tensors):
        made = _Scan.apply(call, of_layer, *tensors)
        return made[:call.handed], made[call.handed:]
    lasting.let_go()
    handed, last, _ = call.forward(tensors, False)
    return handed, _of_layer(last) if of_layer else last


def _of_layer(last: Sequence[Tensor]) -> list[Tensor]:
    """Fresh last states [B, size] as [1, B, size]: views would be a function each for autograd."""
    return [s.resize_(1, *s.shape) for s in last]


def _differentiates(tensors: tuple[Tensor, ...]) -> bool:
    if torch.is_grad_enabled():
        for t in tensors:
            if t.requires_grad:
                return True
    return False


def kernel_of(cell: Cell, outputs: tuple[str, ...], inputs, states, parameters, on_gpu: bool = False,
              short: bool = False) -> Kernel:
    """The kernel for tensors of these shapes and of this dtype, for the CPU or as Triton makes them."""
    if on_gpu:
        _gpu().check(inputs[0])
    return kernel_of_shapes(cell, outputs, tuple(shapes_of(inputs, states, parameters)), parameters[0].dtype,
                            None if on_gpu else target(), short)


def shapes_of(inputs, states, parameters) -> list[int]:
    """The features of every tensor, and the rows of every parameter; no steps and no rows of a batch."""
    return [*[t.shape[-1] for t in inputs], *[t.shape[-1] for t in states], *[n for t in parameters for n in t.shape]]


@cache
def kernel_of_shapes(cell: Cell, outputs: tuple[str, ...], shapes: tuple[int, ...], dtype: torch.dtype,
                     machine: Target | None, short: bool = False) -> Kernel:
    """The same from the features of every tensor; `machine` is the CPU, or None for a GPU."""
    sizes = _sizes(cell, shapes)
    if machine is None:
        return _gpu().kernel_for(cell, sizes, dtype, outputs)
    return cpu.kernel_for(cell, sizes, FUSED[dtype], outputs, short)


def _sizes(cell: Cell, shapes: tuple[int, ...]) -> dict[str, int]:
    """The lengths of a cell's sizes. Raises ValueError where a parameter has another shape than these need: the loops
    would read what is not its own."""
    left, sizes = list(shapes), {}
    for e in (*cell.inputs.values(), *cell.states.values()):
        sizes |= dict.fromkeys(e.dims, left.pop(0))
    for family in cell.families.values():
        count, dims = len(family.gates), [family.rows, family.columns][:1 + bool(family.columns)]
        shape, left = left[:len(dims)], left[len(dims):]
        for size, length in zip(dims, [n / k for n, k in zip(shape, (count, 1))]):
            sizes.setdefault(size, int(length))
        if shape != [sizes.get(size, 0) * k for size, k in zip(dims, (count, 1))]:
            known = ", ".join(f"{name} = {length}" for name, length in sizes.items())
            raise ValueError(f"parameter {family.name} of {cell.name} has the shape {shape}; needed is "
                             f"[{f'{count} * ' * (count > 1)}{', '.join(dims)}] with {known}")
    return sizes


def _gpu() -> ModuleType:
    """The GPU's backend, imported when it is first asked for: Triton is an extra."""
    try:
        from ..backends import gpu
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'backend="gpu" needs {error.name}; type:  pip install "gatework[gpu]"',
                                  name=error.name) from error
    return gpu


class _Scan(torch.autograd.Function):
    """A whole sequence, in one direction or both, with all that its derivative needs."""

    @staticmethod
    def forward(ctx, call: Call | Pair, of_layer: bool, *tensors: Tensor):
        handed, last, kept = call.forward(tensors, True)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *(handed if call.keeps_outputs else ()), *kept)
        return *handed, *(_of_layer(last) if of_layer else last)

    @staticmethod
    def backward(ctx, *gradients):
        call, needs, saved = ctx.call, ctx.needs_input_grad[2:], ctx.saved_tensors
        count, outputs = len(needs), call.handed
        behind = count + outputs * call.keeps_outputs
        tensors, handed, kept = saved[:count], saved[count:behind], saved[behind:]
        upstream = gradients[:outputs]
        last = [d if d is None or d.dim() == 2 else d.squeeze(0) for d in gradients[outputs:]]
        if torch.is_grad_enabled():
            return None, None, *call.differentiable(tensors, upstream, last, needs)
        if torch._C._autograd._get_current_graph_task_keep_graph():
            xp = arrays_of(call.kernel, tensors[0])
            kept = [xp.copy(k) for k in kept]  # another backward pass may follow, and this one writes over them
        return None, None, *call.backward(upstream, last, tensors, handed, kept, needs)


class _Checkpointed(torch.autograd.Function):
    """A whole sequence of which only the states at the checkpoints are kept."""

    @staticmethod
    def forward(ctx, kernel: Kernel, batch: Batch, reverse: bool, every: int, *tensors: Tensor):
        handed, last, starts = checkpoints.forward(kernel, batch, every, *parts_of(kernel.cell, tensors), reverse)
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
            call = Call.of(kernel, batch, (batch.total,), reverse)
            return *[None] * 4, *call.differentiable(tensors, gradients[:outputs], gradients[outputs:], needs)
        return *[None] * 4, *checkpoints.backward(
            kernel, batch, every, gradients[:outputs], gradients[outputs:], *parts_of(kernel.cell, tensors), starts,
            reverse, needs)
