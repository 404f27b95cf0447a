"""Memory for what a forward pass keeps for its backward pass, handed from one training step to the next.

torch gives arrays beyond some tens of megabytes back to the system as soon as they are free, and the next step maps,
and clears, every page of them anew: up to a fifth of its time. Here a backward pass leaves them to the next forward
pass. That adds nothing to the most that a step takes, since then all of them are in use; it does hold memory from one
step to the next. A forward pass without gradients ends that.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import torch
from torch import Tensor

LARGE = 32 << 20  # bytes: smaller arrays are kept by the allocator itself
MOST_LARGER = 1.5  # memory serves arrays that are shorter by up to this factor

_free: list[Tensor] = []  # of bytes; the one that was left first at the front
_lock = Lock()


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
    """Hand arrays that nobody reads any more to the next forward pass, if they still lie where they were made."""
    left = [torch.empty(0, dtype=torch.uint8).set_(a.untyped_storage())
            for a, address in zip(arrays, addresses) if a.nbytes >= LARGE and a.data_ptr() == address]
    with _lock:
        _free.extend(left)


def let_go() -> None:
    """Give what is free back to the system."""
    with _lock:
        _free.clear()
