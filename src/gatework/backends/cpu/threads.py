"""Runs a kernel on several threads: each owns some rows for the whole sequence, so nobody waits inside.

The helpers sleep between calls and belong to one process: a forked child makes its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_pool: ThreadPoolExecutor | None = None
_size = 0


def _forget() -> None:
    global _pool, _size
    _pool, _size = None, 0


os.register_at_fork(after_in_child=_forget)


def share(rows: int, threads: int) -> list[tuple[int, int]]:
    """Cut rows into at most `threads` parts (first, count) that differ by one at the most."""
    threads = max(1, min(rows, threads))
    bounds = [rows * k // threads for k in range(threads + 1)]
    return [(a, b - a) for a, b in zip(bounds, bounds[1:])]


def run(parts: list, call: Callable) -> None:
    """Call with every part, the last one in this thread."""
    global _pool, _size
    if len(parts) == 1:
        call(parts[0])
        return
    if _size < len(parts) - 1:
        # An older, smaller pool ends by itself once its last call is done.
        _pool, _size = ThreadPoolExecutor(len(parts) - 1, thread_name_prefix="gatework"), len(parts) - 1
    pending = [_pool.submit(call, part) for part in parts[:-1]]
    call(parts[-1])
    for p in pending:
        p.result()
