"""Hands on what the smallest GPU here has; an H100 where there is none, so that kernels are the same everywhere."""

from __future__ import annotations

from functools import cache

import torch

PROCESSORS, SHARED = 132, 227 << 10  # of an H100


@cache
def processors() -> int:
    """Programs that run side by side, each with a processor of its own."""
    return _least("multi_processor_count", PROCESSORS)


@cache
def shared_bytes() -> int:
    """Shared memory that a program may have."""
    return _least("shared_memory_per_block_optin", SHARED)


def _least(name: str, of_h100: int) -> int:
    if not torch.cuda.is_available():
        return of_h100
    return min(getattr(torch.cuda.get_device_properties(k), name) for k in range(torch.cuda.device_count()))
