"""Memory that outlasts a call: for all that a step of training makes, and for work.

The allocator gives what is free back to the system, and the next step maps, and clears, every page of it anew: a fifth
of a large step, and half of one that has large weights and few rows. Here outputs, what is kept for the backward pass,
and gradients lie in memory that comes back when nobody has a tensor in it any more, and serves the next step. More is
held than was in use at once where a step needs pieces of one kind after it has let go of others: half as much again at
most, of a height that is forgotten if it does not come again. A forward pass without gradients lets go of what is free.
Work, such as packed weights, has one piece of memory for each call that runs at the same time, as large as the largest
was.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Sequence
from threading import Lock

import numpy as np
import torch
from torch import Tensor

LARGE, LARGE_WORK = 1 << 18, 1 << 17  # bytes: what is smaller stays with the allocator
MOST_LARGER = 1.5  # memory serves arrays that are shorter by up to this factor
MOST_HELD = 1.5    # of what was in use at once
FORGET = 0.999     # of that height, with every array that is taken: one that never comes again is not held forever


class _Pool:
    """Pieces of memory, arrays of bytes. All but `back` is used under the lock."""

    def __init__(self):
        self.back: deque[np.ndarray] = deque()  # come back: at any time, in any thread, also in the one with the lock
        self.free: list[np.ndarray] = []        # the same, settled; what came first at the front
        self.lent = self.most_lent = 0          # bytes

    def settle(self) -> None:
        while self.back:
            self.free.append(self.back.popleft())
            self.lent -= len(self.free[-1])

    def take(self, size: int) -> np.ndarray:
        """A piece for so many bytes, or somewhat more."""
        self.settle()
        fitting = [k for k, m in enumerate(self.free) if size <= len(m) <= MOST_LARGER * size]
        found = self.free.pop(min(fitting, key=lambda k: len(self.free[k]))) if fitting else None
        lent = self.lent + (size if found is None else len(found))
        self.most_lent = max(FORGET * self.most_lent, lent)
        held = lent + sum(map(len, self.free))
        while self.free and held > MOST_HELD * self.most_lent:
            held -= len(self.free.pop(0))
        if found is None:
            found = torch.empty(size, dtype=torch.uint8).numpy()
        self.lent = lent  # now that there is such memory
        return found

    def let_go(self) -> None:
        self.settle()
        self.free.clear()
        self.most_lent = self.lent


_pool = _Pool()
_work: list[Tensor] = []  # of bytes, the largest one at the end
_lock = Lock()


def _after_fork() -> None:
    global _lock
    _lock = Lock()  # another thread may have held it


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)


def take(shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    """An array with any values in it, no view; None where the allocator does as well."""
    size = dtype.itemsize
    for n in shape:
        size *= n
    if size < LARGE:
        return None
    with _lock:
        memory = _pool.take(size)
    lent = memory[:size]  # an array of its own, which lives as long as a tensor in it
    weakref.finalize(lent, _pool.back.append, memory)
    return torch.empty(0, dtype=dtype).set_(torch.from_numpy(lent).untyped_storage(), 0, tuple(shape))


def borrow(size: int) -> Tensor:
    """At least so many bytes to work in, until they are given to `give_back`."""
    if size < LARGE_WORK:
        return torch.empty(size, dtype=torch.uint8)
    with _lock:
        memory = _work.pop() if _work else None
    if memory is None or memory.numel() < size:
        memory = torch.empty(size, dtype=torch.uint8)
    return memory


def give_back(memory: Tensor) -> None:
    if memory.numel() < LARGE_WORK:
        return
    with _lock:
        _work.append(memory)
        _work.sort(key=Tensor.numel)


def let_go() -> None:
    """Give what is free back to the system."""
    with _lock:
        _pool.let_go()
