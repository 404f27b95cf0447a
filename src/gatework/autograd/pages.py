"""Asks for large pages for large arrays: what is written for the first time is mapped page by page, 4 kB each else.

Memory that a call takes and gives back is new to the process every time; for long sequences a fifth of a training step
went into mapping it.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

from torch import Tensor

PAGE = 1 << 21   # bytes of a large page on x86-64 and, as a rule, on 64-bit Arm
ADVICE = 14      # MADV_HUGEPAGE of Linux
# Bytes from which it pays surely: where memory is in pieces, Linux takes its time to find a large page.
WORTH_ADVICE = 1 << 24


@cache
def _madvise():
    """Linux's call; None elsewhere. That a kernel is built or set up without large pages is no error."""
    if sys.platform != "linux":
        return None
    call = ctypes.CDLL(None).madvise
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return call


def in_large_pages(a: Tensor) -> Tensor:
    """The same array, new and not written to yet; large pages for what of it fills whole ones."""
    size = a.numel() * a.element_size()
    if size < WORTH_ADVICE or a.device.type != "cpu":
        return a
    begin = -(-a.data_ptr() // PAGE) * PAGE
    end = (a.data_ptr() + size) // PAGE * PAGE
    if _madvise() is not None and end > begin:
        _madvise()(begin, end - begin, ADVICE)
    return a
