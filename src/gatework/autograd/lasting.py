"""Memory that outlasts a call: for what is kept for the backward pass or written in it, and for work.

The allocator gives what is free back to the system, and the next step maps, and clears, every page of it anew: a fifth
of a large step, and nearly half of one that packs large weights for few rows. Here a backward pass leaves what it has
read and written to the next step. That adds nothing to the most that a step takes, since then all of it is in use; it
does hold memory from one step to the next. A forward pass without gradients ends that. Work, such as packed weights,
has one piece of memory for each call that runs at the same time, as large as the largest was.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from threading import Lock

import torch
from torch import Tensor

LARGE, LARGE_WORK = 1 << 20, 1 << 17  # bytes: what is smaller stays with the allocator
MOST_LARGER = 1.5  # memory serves arrays that are shorter by up to this factor

_free: list[Tensor] = []  # of bytes; the one that was left first at the front
_work: list[Tensor] = []  # of bytes, the largest one at the end
_lock = Lock()


def _after_fork() -> None:
    global _lock
    _lock = Lock()  # another thread may have held it


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)


def take(shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    """Memory for an array, with any values in it; None where the allocator does as well."""
    size = dtype.itemsize
    for n in shape:
        size *= n
    if size < LARGE:
        return None
    with _lock:
        fitting = [k for k, m in enumerate(_free) if size <= m.numel() <= MOST_LARGER * size]
        if fitting:
            memory = _free.pop(min(fitting, key=lambda k: _free[k].numel()))
        else:
            del _free[:1]  # so that no more is held than was in use
            memory = None
    if memory is None:
        memory = torch.empty(size, dtype=torch.uint8)
    return memory[:size].view(dtype).view(shape)


def leave(arrays: Sequence[Tensor], addresses: Sequence[int]) -> None:
    """Hand arrays that nobody reads any more to the next step, if they still lie where they were made. A GPU's memory
    stays with torch, which holds it anyway."""
    left = [torch.empty(0, dtype=torch.uint8).set_(a.untyped_storage()) for a, address in zip(arrays, addresses)
            if a.device.type == "cpu" and a.nbytes >= LARGE and a.data_ptr() == address]
    with _lock:
        _free.extend(left)


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
        _free.clear()
