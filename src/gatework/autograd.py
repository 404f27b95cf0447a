"""The way into torch: one operator that runs any cell over a whole sequence, with its derivative.

Eager code goes through a bare `autograd.Function`, the shortest way. Under `torch.compile` the same work is the
registered operator `gatework::scan`, which the compiler sees as one node and never looks into.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NoReturn

import torch
from torch import Tensor

from .backends import reference
from .backends.cpu.kernel import Kernel, kernel_for
from .backends.cpu.target import Target, target
from .compiler import Cell

BACKENDS = ("auto", "cpu", "reference")
_FUSED = {torch.float32: 4, torch.float64: 8}
_cells: dict[str, Cell] = {}


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
    def address(a: Tensor) -> int:
        return a.data_ptr()


def scan(cell: Cell, inputs: Sequence[Tensor], states: Sequence[Tensor], parameters: Sequence[Tensor],
         reverse: bool = False, backend: str = "auto") -> tuple[Tensor, list[Tensor]]:
    """Run a cell over a whole sequence, from the last step to the first with `reverse`.

    inputs: [T, B, size] each ([B, size] for a Constant), states: [B, size] each, parameters: one stacked tensor per
    family, all in the order of the cell. Returns the output [T, B, size] and the last states [B, size]. "auto" takes
    the fused kernels for float32 and float64 on the CPU, else the reference backend. Raises TypeError where dtypes or
    devices are mixed, ValueError where a backend was asked for that cannot serve them.
    """
    if torch.is_autocast_enabled(inputs[0].device.type):
        # The loop keeps the precision of its parameters: a state that is carried on does not forgive rounding.
        with torch.autocast(inputs[0].device.type, enabled=False):
            dtype = parameters[0].dtype
            inputs, states = [x.to(dtype) for x in inputs], [s.to(dtype) for s in states]
            return scan(cell, inputs, states, parameters, reverse, backend)
    _check(cell, inputs, states, parameters)
    like = inputs[0]
    fused = like.device.type == "cpu" and like.dtype in _FUSED
    if backend == "cpu" and not fused:
        raise ValueError(f'backend="cpu" serves float32 and float64 on the CPU; given was {like.dtype} on '
                         f'{like.device}. Use backend="auto" or "reference"')
    if backend == "reference" or not fused:
        output, last, _ = reference.run(cell, inputs, states, parameters, reverse)
        return output, last
    if torch.compiler.is_compiling():  # a layer has registered its cell when it was made
        train = torch.is_grad_enabled()
        output, *rest = torch.ops.gatework.scan(cell.fingerprint, inputs, states, parameters, reverse, train)
        return output, rest[:len(states)]
    tensors = (*inputs, *states, *parameters)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        output, *last = _Scan.apply(cell, reverse, *tensors)
        return output, last
    k = _kernel(cell, inputs, states, parameters)
    output, last, _ = k.forward(Torch(like), inputs, states, parameters, reverse, train=False)
    return output, last


def register(cell: Cell) -> Cell:
    """Make a cell known to the registered operator, which takes strings and tensors only.

    Returns the one that stands for all cells of these equations: layers that are alike share their kernels.
    """
    return _cells.setdefault(cell.fingerprint, cell)


def _check(cell: Cell, inputs, states, parameters) -> None:
    like = parameters[0]
    dtype, device = like.dtype, like.device
    for t in (*inputs, *states, *parameters):
        if t.dtype != dtype or t.device != device:
            _refuse(cell, inputs, states, parameters)


def _refuse(cell: Cell, inputs, states, parameters) -> NoReturn:
    """Name the tensor whose dtype or device is not that of the parameters."""
    named = [*zip((f"input {n}" for n in cell.inputs), inputs), *zip((f"first state {n}" for n in cell.states), states),
             *zip((f"parameter {n}" for n in cell.families), parameters)]
    like = parameters[0]
    what, t = next((what, t) for what, t in named if (t.dtype, t.device) != (like.dtype, like.device))
    raise TypeError(f"{what} of {cell.name} is {t.dtype} on {t.device}, its parameters are {like.dtype} on "
                    f"{like.device}; bring both together with .to(...)")


def _kernel(cell: Cell, inputs, states, parameters) -> Kernel:
    return _kernel_of_shapes(cell, tuple(_shapes(inputs, states, parameters)), inputs[0].dtype, target())


def _shapes(inputs, states, parameters) -> list[int]:
    """The features of every tensor, and the rows of every parameter; no steps and no rows of a batch."""
    return [*[t.shape[-1] for t in inputs], *[t.shape[-1] for t in states], *[n for t in parameters for n in t.shape]]


@cache
def _kernel_of_shapes(cell: Cell, shapes: tuple[int, ...], dtype: torch.dtype, _: Target) -> Kernel:
    left = iter(shapes)
    sizes = {e.dims[0]: next(left) for e in (*cell.inputs.values(), *cell.states.values())}
    for family in cell.families.values():
        sizes[family.rows] = next(left) // len(family.gates)
        if family.columns:
            sizes[family.columns] = next(left)
    return kernel_for(cell, sizes, _FUSED[dtype])


def _parts(cell: Cell, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """inputs, states and parameters out of one list."""
    a, b = len(cell.inputs), len(cell.inputs) + len(cell.states)
    return list(tensors[:a]), list(tensors[a:b]), list(tensors[b:])


class _Scan(torch.autograd.Function):
    """The operator in eager code."""

    @staticmethod
    def forward(ctx, cell: Cell, reverse: bool, *tensors: Tensor):
        parts = _parts(cell, tensors)
        output, last, kept = _kernel(cell, *parts).forward(Torch(tensors[0]), *parts, reverse, True)
        ctx.cell, ctx.reverse = cell, reverse
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output, *kept)
        return output, *last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream, *last):
        cell = ctx.cell
        count = len(cell.inputs) + len(cell.states) + len(cell.families)
        tensors, output, kept = ctx.saved_tensors[:count], ctx.saved_tensors[count], ctx.saved_tensors[count + 1:]
        if torch._C._autograd._get_current_graph_task_keep_graph():
            kept = [k.clone() for k in kept]  # another backward pass may follow, and this one writes over them
        parts = _parts(cell, tensors)
        needs = ctx.needs_input_grad[2:]
        gradients = _kernel(cell, *parts).backward(Torch(output), upstream, last, *parts, output, kept, ctx.reverse,
                                                   needs)
        return None, None, *gradients


# ---- the registered operator

_library = torch.library.Library("gatework", "DEF")
_library.define("scan(str cell, Tensor[] inputs, Tensor[] states, Tensor[] parameters, bool reverse, bool train)"
                " -> Tensor[]")
_library.define("scan_backward(str cell, Tensor? upstream, Tensor?[] last, Tensor[] tensors, Tensor output,"
                " Tensor[] kept, bool reverse, bool[] needs) -> Tensor[]")


@torch.library.impl("gatework::scan", "CPU", lib=_library)
def _scan_cpu(name, inputs, states, parameters, reverse, train):
    output, last, kept = _kernel(_cells[name], inputs, states, parameters).forward(
        Torch(inputs[0]), inputs, states, parameters, reverse, train)
    return [output, *last, *kept]


@torch.library.register_fake("gatework::scan", lib=_library)
def _scan_shapes(name, inputs, states, parameters, reverse, train):
    cell, x = _cells[name], inputs[0]
    steps, rows = x.shape[:2]
    # The compiler may leave any size open: those of features are fixed here.
    shapes = tuple(map(int, _shapes(inputs, states, parameters)))
    k = _kernel_of_shapes(cell, shapes, x.dtype, target())
    kept = [x.new_empty(steps, rows, k.kept_width(n)) for n in k.kept] if train else []
    first = states[list(cell.states).index(cell.output)]
    return [x.new_empty(steps, rows, first.shape[1]), *(s.new_empty(s.shape) for s in states), *kept]


def _scan_context(ctx, inputs, output):
    name, xs, states, parameters, reverse, _ = inputs
    count = 1 + len(states)
    ctx.name, ctx.reverse, ctx.counts = name, reverse, (len(xs), len(states), len(parameters))
    ctx.needs = [t.requires_grad for t in (*xs, *states, *parameters)]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*xs, *states, *parameters, output[0], *output[count:])


def _scan_gradient(ctx, gradients):
    a, b, c = ctx.counts
    count = a + b + c
    saved = ctx.saved_tensors
    made = iter(torch.ops.gatework.scan_backward(ctx.name, gradients[0], list(gradients[1:1 + b]), list(saved[:count]),
                                                 saved[count], list(saved[count + 1:]), ctx.reverse, ctx.needs))
    given = [next(made) if need else None for need in ctx.needs]
    return None, given[:a], given[a:a + b], given[a + b:], None, None


torch.library.register_autograd("gatework::scan", _scan_gradient, setup_context=_scan_context, lib=_library)


@torch.library.impl("gatework::scan_backward", "CPU", lib=_library)
def _scan_backward_cpu(name, upstream, last, tensors, output, kept, reverse, needs):
    parts = _parts(_cells[name], tensors)
    gradients = _kernel(_cells[name], *parts).backward(Torch(output), upstream, last, *parts, output,
                                                       [k.clone() for k in kept], reverse, needs)
    return [g for g in gradients if g is not None]


@torch.library.register_fake("gatework::scan_backward", lib=_library)
def _scan_backward_shapes(name, upstream, last, tensors, output, kept, reverse, needs):
    return [t.new_empty(t.shape) for t, need in zip(tensors, needs) if need]
