"""What the CPU's kernels ask of an array library, as numpy has it. They run without torch."""

from __future__ import annotations

import ctypes

import numpy as np

from .threads import launch


class Numpy:
    """What the kernels ask of an array library."""

    matmul = staticmethod(np.matmul)
    ascontiguousarray = staticmethod(np.ascontiguousarray)

    def __init__(self, like: np.ndarray):
        self.dtype = like.dtype

    def operand(self, a: np.ndarray) -> np.ndarray:
        """An array as loops and products read it."""
        return a

    def factor(self, a: np.ndarray) -> np.ndarray:
        """An array as products after the loop read it."""
        return a

    def output(self, a: np.ndarray) -> np.ndarray:
        """An array as it is handed out."""
        return a

    def empty(self, *shape: int, short: bool = False) -> np.ndarray:
        return np.empty(shape, self.dtype)

    def work(self, count: int) -> np.ndarray:
        """Memory for so many values, or more, until it is given back."""
        return self.empty(count)

    def give_back(self, memory: np.ndarray) -> None:
        """Memory of `work` that is read no more."""

    def lasting(self, *shape: int, short: bool = False) -> np.ndarray:
        """The same for what a step of training makes, which the next one makes again."""
        return self.empty(*shape)

    def zeros(self, *shape: int) -> np.ndarray:
        return np.zeros(shape, self.dtype)

    def sum_of_rows(self, a: np.ndarray) -> np.ndarray:
        return a.sum(0)

    def copy(self, a: np.ndarray) -> np.ndarray:
        return a.copy()

    def add_product(self, out: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
        out += a @ b

    def take(self, a: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return a[rows]

    def sum_by(self, a: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
        """Add the rows of `a` up into `count` rows, each where `rows` says."""
        out = self.zeros(count, a.shape[1])
        np.add.at(out, rows, a)
        return out

    def address(self, a: np.ndarray) -> int:
        return a.ctypes.data

    def threads(self) -> int:
        return 1

    def flag(self) -> ctypes.c_int64:
        """A word that is 0, for code that sets it."""
        return ctypes.c_int64(0)

    run = staticmethod(launch)
