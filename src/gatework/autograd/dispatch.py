"""The way into torch: one function that runs any cell over a whole sequence, with its derivative.

Eager code goes through a bare `autograd.Function`, the shortest way; compilers see the operator that `.registered`
makes of the same work. The reference backend serves what kernels cannot: other devices and dtypes, derivatives of
derivatives, and the transforms of `torch.func`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from ..backends import reference
from ..compiler import Cell
from .functions import FUSED, eager, kernel_of, narrowed
from .registered import registered_scan

BACKENDS = ("auto", "cpu", "gpu", "reference")


def scan(cell: Cell, inputs: Sequence[Tensor], states: Sequence[Tensor], parameters: Sequence[Tensor],
         reverse: bool = False, backend: str = "auto", *, outputs: tuple[str, ...] = (), sizes: Tensor | None = None,
         checkpoint_every: int | str | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Run a cell over a whole sequence, from the last step to the first with `reverse`.

    inputs: [T, B, size] each ([B, size] for a Constant, [T, B, 1] for a Scalar), states: [B, size] each, parameters:
    one stacked tensor per family, all in the order of the cell. `outputs` names the states and recorded values to hand
    out, by default the cell's output. Returns these, [T, B, size] each, and the last states [B, size].

    sizes: [T] integers on the CPU, the rows of every step where these differ. Then rows are sorted, longest first, and
    sequences hold the rows of all steps one after the other, [N, size], like the data of a PackedSequence. N may be
    more than the sum of the sizes; what lies behind that comes out as 0.

    checkpoint_every: keep the states of every so many steps only, and compute all else again in the backward pass;
    "auto" chooses. The gradients are the same.

    "auto" takes the fused kernels for float32 and float64 on the CPU, else the reference backend; "gpu" are Triton's
    kernels. Raises TypeError where dtypes or devices are mixed, ValueError where a backend was asked for that cannot
    serve them, ModuleNotFoundError without Triton.
    """
    parameters = [reference.dense(f, p) for f, p in zip(cell.families.values(), parameters, strict=True)]
    device = inputs[0].device.type
    if torch.is_autocast_enabled(device):
        # The loop keeps the precision of its parameters: a state that is carried on does not forgive rounding.
        with torch.autocast(device, enabled=False):
            dtype = parameters[0].dtype
            inputs, states = [x.to(dtype) for x in inputs], [s.to(dtype) for s in states]
            return scan(cell, inputs, states, parameters, reverse, backend, outputs=outputs, sizes=sizes,
                        checkpoint_every=checkpoint_every)
    _check(cell, inputs, states, parameters)
    outputs = outputs or (cell.output,)
    if backend == "gpu":
        return _on_gpu(cell, outputs, inputs, states, parameters, reverse, sizes, checkpoint_every)
    if not _fused(inputs[0], backend):
        return narrowed(cell, inputs, sizes, lambda xs, counts: reference.run(
            cell, xs, states, parameters, reverse, outputs, counts))
    if torch.compiler.is_compiling():
        return registered_scan(cell, outputs, inputs, states, parameters, reverse, sizes, checkpoint_every)
    return narrowed(cell, inputs, sizes, lambda xs, counts: eager(
        kernel_of(cell, outputs, xs, states, parameters), xs, states, parameters, reverse, counts, checkpoint_every))


@torch.compiler.disable
def _on_gpu(cell: Cell, outputs, inputs, states, parameters, reverse, sizes, checkpoint_every):
    """Triton's kernels, which are never chosen by themselves, only asked for."""
    try:
        from ..backends import gpu
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'backend="gpu" needs {error.name}; type:  pip install "gatework[gpu]"',
                                  name=error.name) from error
    gpu.check(inputs[0])
    if torch._C._are_functorch_transforms_active():
        raise ValueError('backend="gpu" cannot be transformed by torch.func (vmap, grad, jvp, ...); use '
                         'backend="reference"')
    return narrowed(cell, inputs, sizes, lambda xs, counts: eager(
        kernel_of(cell, outputs, xs, states, parameters, on_gpu=True), xs, states, parameters, reverse, counts,
        checkpoint_every))


def _fused(like: Tensor, backend: str) -> bool:
    """Whether the kernels run, rather than the reference backend."""
    fused = like.device.type == "cpu" and like.dtype in FUSED
    if backend == "cpu" and not fused:
        raise ValueError(f'backend="cpu" serves float32 and float64 on the CPU; given was {like.dtype} on '
                         f'{like.device}. Use backend="auto" or "reference"')
    transformed = torch._C._are_functorch_transforms_active()  # vmap, torch.func.grad, ...
    if backend == "cpu" and transformed:
        raise ValueError('backend="cpu" cannot be transformed by torch.func (vmap, grad, jvp, ...); use '
                         'backend="auto", which takes the reference backend there')
    return fused and backend != "reference" and not transformed


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
