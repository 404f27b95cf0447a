"""The way into torch: one function that runs any cell over a whole sequence, with its derivative.

Eager code goes through a bare `autograd.Function`, the shortest way; compilers see the operator that `.registered`
makes of the same work. The reference backend serves what kernels cannot: other devices and dtypes, derivatives of
derivatives, and the transforms of `torch.func`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from ..backends import reference
from ..backends.batch import Batch
from ..backends.cpu.shape import TILE_ROWS
from ..backends.cpu.target import Target, target
from ..backends.kernel import Kernel
from ..compiler import Cell
from . import checkpoints
from .calls import Call, Pair
from .functions import FUSED, eager, kernel_of, narrowed, run
from .padded import Padded
from .ragged import Ragged
from .registered import multiplies_bfloat16, registered_scan

_Given = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]  # inputs, states, parameters

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

    "auto" takes the fused kernels for float32 and float64 on the CPU, and for bfloat16 where it multiplies that,
    else the reference backend; "gpu" are Triton's kernels. Under autocast the outputs come in its dtype (but for
    float64, which autocast leaves alone), and products are of bfloat16 if that is it and the CPU multiplies it; states
    keep the dtype of the parameters. "gpu" rounds all that it is given, as cuDNN does, and carries float32. Raises
    TypeError where dtypes or devices are mixed, ValueError where a backend was asked for that cannot serve them,
    ModuleNotFoundError without Triton, ImportError for a version of it that does not make the kernels.
    """
    parameters = [reference.dense(f, p) for f, p in zip(cell.families.values(), parameters, strict=True)]
    options = reverse, backend, outputs or (cell.output,), sizes, checkpoint_every
    like, dtype = inputs[0], parameters[0].dtype
    if torch.is_autocast_enabled(like.device.type):
        low, short = torch.get_autocast_dtype(like.device.type), _rounds(like, dtype, backend)
        with torch.autocast(like.device.type, enabled=False):
            if backend == "gpu" and dtype == torch.float32:  # all is rounded but what is carried from step to step
                rounded = [[t.to(low) for t in tensors] for tensors in (inputs, states, parameters)]
                handed, last = _run(cell, *rounded, *options)
                return handed, [s.to(dtype) for s in last]
            states = [s.to(dtype) for s in states]
            inputs = inputs if short else [x.to(dtype) for x in inputs]
            handed, last = (_short if short else _run)(cell, inputs, states, parameters, *options)
            return handed if dtype == torch.float64 else [y.to(low) for y in handed], last
    _check(cell, inputs, states, parameters)
    if dtype == torch.bfloat16 and _multiplies_bfloat16(like, backend):
        states, parameters = [s.float() for s in states], [p.float() for p in parameters]
        handed, last = _short(cell, inputs, states, parameters, *options)
        return handed, [s.bfloat16() for s in last]
    return _run(cell, inputs, states, parameters, *options)


def scan_both(cell: Cell, forth: _Given, back: _Given, backend: str = "auto", *, outputs: tuple[str, ...] = (),
              sizes: Tensor | None = None, checkpoint_every: int | str | None = None
              ) -> list[tuple[Sequence[Tensor], Sequence[Tensor]]]:
    """`scan` in both directions, each with its inputs, states and parameters of the same shapes: what it returns for
    each. Where one has too few rows for all threads they run side by side."""
    outputs = outputs or (cell.output,)
    if sizes is None and not (torch.is_autocast_enabled("cpu") or _is_transformed()):
        for given in (forth, back):
            _check(cell, *given)
        plan = planned(cell, *forth, backend, checkpoint_every, outputs)
        if plan is not None:
            return plan.both(forth, back)
    return [scan(cell, *given, reverse, backend, outputs=outputs, sizes=sizes, checkpoint_every=checkpoint_every)
            for reverse, given in ((False, forth), (True, back))]


@dataclass(frozen=True)
class Plan:
    """The way that `scan` takes for dense tensors of some shapes and one dtype, with all its choices made."""

    kernel: Kernel
    machine: Target
    short: bool  # under autocast, by products of bfloat16

    def __call__(self, inputs: Sequence[Tensor], states: Sequence[Tensor], parameters: Sequence[Tensor],
                 ragged: Ragged | None = None, batch_first: bool = False
                 ) -> tuple[Sequence[Tensor], Sequence[Tensor]] | None:
        """What `scan` returns for tensors of these shapes, last states as [1, B, size]; None where another way is due.

        With `ragged` the batch is padded, its rows are in any order, and so is what comes out; [B, T, size] each with
        `batch_first`. Then T is any number.
        """
        if _is_transformed() or target() is not self.machine or torch.is_autocast_enabled("cpu") is not self.short:
            return None
        shape = tuple(inputs[0].shape[:2])
        if ragged is None:
            call = Call.of(self.kernel, Batch.dense(*shape), shape, False)
        else:
            call = Padded(self.kernel, ragged, shape, batch_first)
        if not self.short:
            return run(call, (*inputs, *states, *parameters), of_layer=True)
        if torch.get_autocast_dtype("cpu") is not torch.bfloat16 or call.batch.total < TILE_ROWS:
            return None
        torch.set_autocast_enabled("cpu", False)  # as `scan` does with a context, which takes ten times as long
        try:
            return run(call, (*inputs, *states, *parameters), of_layer=True)
        finally:
            torch.set_autocast_enabled("cpu", True)

    def both(self, forth: _Given, back: _Given) -> list[tuple[Sequence[Tensor], Sequence[Tensor]]]:
        """The same in both directions."""
        shape = tuple(forth[0][0].shape[:2])
        pair = Pair(self.kernel, Batch.dense(*shape), shape)
        handed, last = run(pair, tuple(t for given in (forth, back) for tensors in given for t in tensors))
        return list(zip(*([made[:len(made) // 2], made[len(made) // 2:]] for made in (handed, last))))


def planned(cell: Cell, inputs: Sequence[Tensor], states: Sequence[Tensor], parameters: Sequence[Tensor],
            backend: str, checkpoint_every: int | str | None, outputs: tuple[str, ...]) -> Plan | None:
    """The plan for tensors like these, of one dtype or under autocast; None where `scan` makes no use of the CPU's
    kernels as they are, or keeps checkpoints."""
    x, low = inputs[0], torch.is_autocast_enabled("cpu")
    if (backend not in ("auto", "cpu") or not x.is_cpu or _is_transformed()
            or any(f.kind == "Blocks" for f in cell.families.values())):
        return None
    steps, rows = x.shape[:2]
    serves = (steps * rows >= TILE_ROWS and _rounds(x, parameters[0].dtype, backend)) if low else x.dtype in FUSED
    if not serves or checkpoints.distance(steps, rows, checkpoint_every) < steps:
        return None
    return Plan(kernel_of(cell, outputs, inputs, states, parameters, short=low), target(), low)


def _is_transformed() -> bool:
    """Whether somebody transforms or compiles what is called."""
    return torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling()


def _rounds(like: Tensor, dtype: torch.dtype, backend: str) -> bool:
    """Whether autocast asks for products of bfloat16, with parameters of this dtype, and there are kernels for them."""
    return (torch.get_autocast_dtype(like.device.type) == torch.bfloat16 and dtype == torch.float32
            and _multiplies_bfloat16(like, backend))


def _multiplies_bfloat16(like: Tensor, backend: str) -> bool:
    """Whether there are kernels for products of bfloat16."""
    return (like.device.type == "cpu" and backend in ("auto", "cpu")
            and not torch._C._are_functorch_transforms_active()
            and (multiplies_bfloat16() if torch.compiler.is_compiling() else target().multiplies_bfloat16))


def _short(cell: Cell, inputs, states, parameters, reverse, backend, outputs, sizes, checkpoint_every):
    """Kernels that multiply bfloat16: what is the same for all steps, states and parameters are float32."""
    places = inputs[0].shape[0] * (inputs[0].shape[1] if inputs[0].dim() == 3 else 1)  # numel() would fix them
    if places < TILE_ROWS:  # rounding would take longer than multiplying
        handed, last = _run(cell, [x.float() for x in inputs], states, parameters, reverse, backend, outputs, sizes,
                            checkpoint_every)
        return [y.bfloat16() for y in handed], last
    inputs = [x.float() if e.op == "constant" else x for e, x in zip(cell.inputs.values(), inputs)]
    if torch.compiler.is_compiling():
        return registered_scan(cell, outputs, inputs, states, parameters, reverse, sizes, checkpoint_every, short=True)
    return narrowed(cell, inputs, sizes, lambda xs, counts: eager(
        kernel_of(cell, outputs, xs, states, parameters, short=True), xs, states, parameters, reverse, counts,
        checkpoint_every))


def _run(cell: Cell, inputs, states, parameters, reverse, backend, outputs, sizes, checkpoint_every):
    """All tensors are of one dtype."""
    on_gpu = backend == "gpu"
    if on_gpu and torch._C._are_functorch_transforms_active():
        raise ValueError('backend="gpu" cannot be transformed by torch.func (vmap, grad, jvp, ...); use '
                         'backend="reference"')
    if not on_gpu and not _fused(inputs[0], backend):
        return narrowed(cell, inputs, sizes, lambda xs, counts: reference.run(
            cell, xs, states, parameters, reverse, outputs, counts))
    if torch.compiler.is_compiling():
        return registered_scan(cell, outputs, inputs, states, parameters, reverse, sizes, checkpoint_every, on_gpu)
    return narrowed(cell, inputs, sizes, lambda xs, counts: eager(
        kernel_of(cell, outputs, xs, states, parameters, on_gpu), xs, states, parameters, reverse, counts,
        checkpoint_every))


def _fused(like: Tensor, backend: str) -> bool:
    """Whether the kernels run, rather than the reference backend."""
    fused = like.device.type == "cpu" and like.dtype in FUSED
    if backend == "cpu" and not fused:
        raise ValueError(f'backend="cpu" serves float32 and float64 on the CPU, and bfloat16 on one that multiplies it '
                         f'(AMX, AVX512-BF16); given was {like.dtype} on {like.device}. Use backend="auto" or '
                         f'"reference"')
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
