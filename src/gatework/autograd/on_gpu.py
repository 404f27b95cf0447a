"""Triton's kernels, which are never chosen by themselves, only asked for."""

from __future__ import annotations

import torch

from ..compiler import Cell
from .functions import eager, kernel_of, narrowed


@torch.compiler.disable
def on_gpu(cell: Cell, outputs, inputs, states, parameters, reverse, sizes, checkpoint_every):
    """`scan` by Triton's kernels."""
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
