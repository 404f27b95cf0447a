"""The products of BLAS that torch itself calls, for those who cannot go through torch."""

from __future__ import annotations

import ctypes
from array import array
from functools import cache

import torch
from torch import Tensor

from ..backends.cpu.recorded import letter

NAMES = {torch.float32: "sgemm_", torch.float64: "dgemm_", torch.bfloat16: "gemm_bf16bf16f32_"}


@cache
def gemm(dtype: torch.dtype) -> int | None:
    """The address of the function for operands of a dtype, arguments as in Fortran; None where it is not to be found.

    That for bfloat16, which is Intel's, adds up in float32 and leaves that.
    """
    try:
        function = getattr(ctypes.CDLL(torch._C.__file__), NAMES[dtype])
    except (OSError, AttributeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


def product(a: Tensor, b: Tensor, add_to: Tensor | None = None) -> Tensor:
    """a @ b, added to a matrix where one is given, as float32.

    The operands are bfloat16 and have their values side by side on one axis.
    """
    (rows, depth), columns = a.shape, b.shape[1]
    out = a.new_zeros(rows, columns, dtype=torch.float32) if add_to is None else add_to
    if out.numel() and depth:
        (left, left_step), (right, right_step) = letter(a.shape, a.stride()), letter(b.shape, b.stride())
        words = array("q", [right, left, columns, rows, depth, right_step, left_step, max(out.stride(0), columns)])
        numbers = array("f", [1.0, float(add_to is not None)])
        at, one = words.buffer_info()[0], numbers.buffer_info()[0]
        _function()(at, at + 8, at + 16, at + 24, at + 32, one, b.data_ptr(), at + 40, a.data_ptr(), at + 48, one + 4,
                    out.data_ptr(), at + 56, 1, 1)
    return out


@cache
def _function():
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 13, ctypes.c_int64, ctypes.c_int64)(gemm(torch.bfloat16))
