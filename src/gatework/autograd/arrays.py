"""What kernels ask of an array library, as torch has it, and where products or sums of our own are faster."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..backends.cpu import gemm, sums, vector_gemm
from ..backends.cpu.record import MOST_MULTIPLICATIONS
from ..backends.cpu.shape import TILE_ROWS
from ..backends.cpu.target import Target, target
from ..backends.cpu.threads import launch
from ..backends.cpu.turning import SQUARE, turn_over
from ..backends.kernel import Kernel
from . import blas, lasting


class Torch:
    """What kernels ask of an array library; the twin of `backends.cpu.arrays.Numpy`."""

    trains = True  # a step of training finds the memory of the one before; else nothing is held afterwards

    matmul = staticmethod(torch.matmul)
    threads = staticmethod(torch.get_num_threads)
    run = staticmethod(launch)

    def __init__(self, like: Tensor):
        self.like, self.dtype, self.device = like, like.dtype, like.device

    @staticmethod
    def operand(a: Tensor) -> Tensor:
        return a

    factor = output = operand

    def empty(self, *shape: int, short: bool = False) -> Tensor:
        return self.like.new_empty(shape)

    def work(self, count: int) -> Tensor:
        return lasting.borrow(count * self.dtype.itemsize)

    give_back = staticmethod(lasting.give_back)

    def lasting(self, *shape: int, short: bool = False) -> Tensor:
        memory = self._take(shape, self.dtype)
        return self.empty(*shape) if memory is None else memory

    def _take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
        return lasting.take(shape, dtype) if self.trains and self.device.type == "cpu" else None

    def zeros(self, *shape: int) -> Tensor:
        return self.like.new_zeros(shape)

    def sum_of_rows(self, a: Tensor) -> Tensor:
        return a.sum(0)

    def copy(self, a: Tensor) -> Tensor:
        memory = self._take(a.shape, a.dtype)
        return a.clone(memory_format=torch.contiguous_format) if memory is None else memory.copy_(a)

    @staticmethod
    def ascontiguousarray(a: Tensor) -> Tensor:
        return a.contiguous()

    @staticmethod
    def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
        out.addmm_(a, b)

    def take(self, a: Tensor, rows: np.ndarray) -> Tensor:
        index = torch.from_numpy(rows).to(self.device)
        memory = self._take((len(rows), *a.shape[1:]), a.dtype)
        return a.index_select(0, index) if memory is None else torch.index_select(a, 0, index, out=memory)

    def spread(self, a: Tensor, rows: np.ndarray, count: int) -> Tensor:
        """Zeros, and where it says so the rows of `a`."""
        memory = self._take((count, a.shape[1]), a.dtype)
        made = a.new_zeros(count, a.shape[1]) if memory is None else memory.zero_()
        return made.index_copy_(0, torch.from_numpy(rows).to(self.device), a)

    def sum_by(self, a: Tensor, rows: np.ndarray, count: int) -> Tensor:
        return self.zeros(count, a.shape[1]).index_add_(0, torch.from_numpy(rows).to(self.device), a)

    @staticmethod
    def address(a: Tensor) -> int:
        return a.data_ptr()

    @staticmethod
    def flag() -> ctypes.c_int64:
        return ctypes.c_int64(0)


class Cpu(Torch):
    """The same for kernels of the CPU, which have sums of their own, and products where those are faster."""

    def sum_of_rows(self, a: Tensor) -> Tensor:
        made = self.empty(a.shape[1])
        sums.sum_of_rows(self, target(), a.element_size(), tuple(a.shape), a.data_ptr(), a.stride(0), made.data_ptr())
        return made

    def matmul(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        made = self.empty(a.shape[0], b.shape[-1]) if out is None else out
        return made if _widely_multiplied(self, a, b, made) else torch.matmul(a, b, out=made)

    def add_product(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        if not _widely_multiplied(self, a, b, out, more=True):
            out.addmm_(a, b)


@cache
def wide_products(machine: Target) -> frozenset[int]:
    """The sizes of values of which kernels of our own multiply matrices faster than MKL does, which is torch's BLAS."""
    if not torch.backends.mkl.is_available():
        return frozenset()
    short = {2} if machine.pairs and not machine.tiles else set()
    return frozenset(short | ({4, 8} if machine.wider_than_blas else set()))


def _widely_multiplied(xp: Torch, a: Tensor, b: Tensor, out: Tensor, more: bool = False) -> bool:
    """Whether a kernel of our own has made out = a @ b, or increased it by that; of bfloat16 in float32."""
    machine, size = target(), a.element_size()
    if (size not in wide_products(machine) or out.element_size() < 4 or a.dim() != 2 or b.dim() != 2
            or not vector_gemm.suits(*a.shape, b.shape[1])):
        return False
    sides = [vector_gemm.Side(t.data_ptr(), *t.stride()) for t in (a, b, out)]
    return vector_gemm.multiply(xp, machine, size, (*a.shape, b.shape[1]), *sides, more)


class Short(Cpu):
    """The same for kernels that multiply bfloat16: products round what is not, and add up in float32."""

    def __init__(self, device: torch.device):
        super().__init__(torch.empty(0, device=device))

    def operand(self, a: Tensor) -> Tensor:
        behind = a.untyped_storage().nbytes() - a.element_size() * (a.storage_offset() + a.numel())
        if a.dtype == torch.bfloat16 and a.is_contiguous() and behind >= 2 * a.shape[1] * (TILE_ROWS - 1):
            return a
        return self.empty(*a.shape, short=True).copy_(a)

    @staticmethod
    def factor(a: Tensor) -> Tensor:
        return a.bfloat16()

    @staticmethod
    def output(a: Tensor) -> Tensor:
        return whole(a, a.shape) if a.dtype == torch.bfloat16 else a.bfloat16()

    @staticmethod
    def after_each_other(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b])

    def empty(self, *shape: int, short: bool = False) -> Tensor:
        if not short:
            return super().empty(*shape)
        rows, width = shape  # the last tile of rows is read whole, so there is memory behind it
        return torch.empty(rows + TILE_ROWS - 1, width, dtype=torch.bfloat16, device=self.device)[:rows]

    def lasting(self, *shape: int, short: bool = False) -> Tensor:
        if not short:
            return super().lasting(*shape)
        rows, width = shape
        memory = self._take((rows + TILE_ROWS - 1, width), torch.bfloat16)
        return self.empty(*shape, short=True) if memory is None else memory[:rows]

    def copy(self, a: Tensor) -> Tensor:
        return self.lasting(*a.shape, short=a.dtype == torch.bfloat16).copy_(a)

    def matmul(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        a, b = a.bfloat16(), b.bfloat16()
        made = self.empty(a.shape[0], b.shape[-1]) if out is None else out
        if _widely_multiplied(self, a, b, made):
            return made
        if _is_small(a, b):
            product = blas.product(a, b)
            return product if out is None else out.copy_(product)
        if out is not None and out.dtype == torch.bfloat16:
            return torch.matmul(a, b, out=out)
        product = self._product(a, b)
        return product.float() if out is None else out.copy_(product)

    def add_product(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        a, b = a.bfloat16(), b.bfloat16()
        if _widely_multiplied(self, a, b, out, more=True):
            return
        if _is_small(a, b) and out.stride(1) == 1 and out.dtype == torch.float32:
            blas.product(a, b, out)
        else:
            out.add_(self._product(a, b))

    @staticmethod
    def _product(a: Tensor, b: Tensor) -> Tensor:
        if a.stride(0) == 1 and b.shape[1] < a.shape[0]:
            # A product of many rows with many rows wants its left side turned over: the smaller of the two is.
            return turned(turned(b) @ a.T)
        return a @ b

    def sum_by(self, a: Tensor, rows: np.ndarray, count: int) -> Tensor:
        return super().sum_by(a.float(), rows, count)


def whole(memory: Tensor, shape: Sequence[int]) -> Tensor:
    """What lies at the beginning of some memory, as a tensor of its own: no view, for users and autograd."""
    return memory.new_empty(0).set_(memory.untyped_storage(), memory.storage_offset(), tuple(shape))


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


def _is_small(a: Tensor, b: Tensor) -> bool:
    """Whether BLAS is faster than torch, which rounds what comes out, too."""
    in_line = a.dim() == b.dim() == 2 and all(1 in x.stride() and 0 not in x.stride() for x in (a, b))
    return in_line and a.shape[0] * b.numel() < MOST_MULTIPLICATIONS and blas.gemm(torch.bfloat16) is not None


class Parts(Cpu):
    """The same where a matrix unit multiplies float32, in parts, faster than BLAS does: large products do it there."""

    def matmul(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        if a.dim() != 2 or b.dim() != 2 or not _is_large(*a.shape, b.shape[1]):
            return torch.matmul(a, b, out=out)
        if out is None:
            out = self.empty(a.shape[0], b.shape[1])
        # It reads rows or columns whose values lie side by side, and infinite values have no parts: the rest is BLAS's.
        in_line = 1 in a.stride() and 1 in b.stride() and out.stride(1) == 1
        return out if in_line and _multiplied(a, b, out) else torch.matmul(a, b, out=out)


# A product is large from so many multiplications on, if no side is shorter than this: packing has to pay.
LARGE, LEAST_SIDE = 1 << 26, 64


def _is_large(rows: int, depth: int, columns: int) -> bool:
    return min(rows, depth, columns) >= LEAST_SIDE and rows * depth * columns >= LARGE


def _multiplied(a: Tensor, b: Tensor, out: Tensor) -> bool:
    """Whether out = a @ b was made by the matrix unit; the operands have their values side by side on one axis."""
    count = torch.get_num_threads()
    work = lasting.borrow(gemm.bytes_of_work(count))
    words = dict(rows=a.shape[0], depth=a.shape[1], columns=b.shape[1], out=out.data_ptr(),
                 out_stride=4 * out.stride(0))
    for name, side, inner, outer in (("left", a, 1, 0), ("right", b, 0, 1)):
        across = side.stride(inner) != 1
        words |= {name: side.data_ptr(), f"{name}_across": across,
                  f"{name}_stride": 4 * side.stride(inner if across else outer)}
    made = gemm.multiply(words, work.data_ptr(), target(), count)
    lasting.give_back(work)
    return made


def arrays_of(kernel: Kernel, like: Tensor, train: bool = True) -> Torch:
    """What a kernel asks of torch, for tensors like this input."""
    if kernel.short:
        made = Short(like.device)
    elif not kernel.on_cpu:
        made = Torch(like)
    else:
        made = Parts(like) if like.dtype == torch.float32 and kernel.machine.tiles else Cpu(like)
    made.trains = train
    return made
