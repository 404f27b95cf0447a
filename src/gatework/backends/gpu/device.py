"""Hands on what the smallest GPU here has and may do; an H100 where there is none, so that kernels are the same."""

from __future__ import annotations

from functools import cache

import torch

PROCESSORS, SHARED = 132, 227 << 10  # of an H100
SHARED_OF_AMD = 64 << 10  # of an MI300


@cache
def processors() -> int:
    """Programs that run side by side, each with a processor of its own."""
    return min((p.multi_processor_count for p in _properties()), default=PROCESSORS)


@cache
def shared_bytes() -> int:
    """Shared memory that a program may have."""
    return min((getattr(p, "shared_memory_per_block_optin", p.shared_memory_per_block) for p in _properties()),
               default=SHARED)


def precision() -> str:
    """Of products of float32: the user's word for all of torch's, and not cuDNN's own."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def multiplies_from_memory() -> bool:
    """Whether matrix units read weights where they lie in shared memory. AMD's read registers, too few for matrices."""
    return torch.version.hip is None


def _properties() -> list:
    return [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
