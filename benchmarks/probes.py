"""Measurements that need a process of their own: `python probes.py first-call CELL | memory WHO | import MODULE`.

Each prints one JSON object.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import statistics
import sys
import time
from functools import partial

FIRST_CALL_SIZES = (10, 4, 64, 256)
MEMORY_SIZES = (1000, 32, 256, 256)
LONG_SIZES = (100_000, 1, 256, 256)
FIRST_CALL_CELLS = ("elman", "lstm", "peephole_lstm", "coupled_lstm", "gru", "gru_reset_before", "projected_lstm",
                    "leaky_memory")


def first_call(name: str) -> dict:
    """Seconds that the first training call takes beyond the following ones: tracing, compiling or reading the cache."""
    import torch
    from own_cell import leaky_memory

    import gatework.nn
    torch.set_num_threads(2)
    T, B, I, H = FIRST_CALL_SIZES
    x = torch.randn(T, B, I, requires_grad=True)
    # torch starts its own threads and autograd engine on first use; that is none of ours
    torch.nn.LSTM(I, H)(x)[0].sum().backward()
    start = time.perf_counter()
    cell = leaky_memory if name == "leaky_memory" else getattr(gatework.cells, name)
    layer = gatework.nn.Recurrent(cell, I, H, proj_size=H // 2 if name == "projected_lstm" else 0)
    seconds = []
    for _ in range(6):
        layer(x)[0].sum().backward()
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    return {"first": seconds[0], "following": statistics.median(seconds[1:]),
            "seconds": seconds[0] - statistics.median(seconds[1:])}


def resident() -> int:
    """Bytes of this process in memory, after the C library (glibc) has given back all that is free."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


def memory(who: str) -> dict:
    """Bytes that the process grows by from before the first forward pass to after it, its graph still alive.

    Resident memory and not the saved tensors: it counts what an operator hides (workspaces, copies, buffers that it
    keeps for good) as well, and what both must hold, the output. A training step over two time steps goes before, so
    that compiling and the start of the threads are not counted.
    """
    import torch

    import gatework
    torch.set_num_threads(2)
    T, B, I, H = LONG_SIZES if who.startswith("long") else MEMORY_SIZES
    layer = {"gatework": gatework.nn.LSTM, "torch.nn": torch.nn.LSTM, "long": gatework.nn.LSTM,
             "long-checkpoints": partial(gatework.nn.LSTM, checkpoint_every="auto")}[who](I, H)
    x = torch.randn(T, B, I, requires_grad=True)
    layer(x[:2])[0].sum().backward()
    gc.collect()
    before = resident()
    output, last = layer(x)
    held = resident() - before
    if held < output.nbytes:
        raise RuntimeError(f"the process grew by {held} bytes, less than the output has; this measures nothing")
    return {"bytes": held, "output": output.nbytes}


def import_time(module: str) -> dict:
    """Seconds of the import in an interpreter in which torch cannot be imported; a cell must trace there."""
    sys.modules["torch"] = None
    start = time.perf_counter()
    importlib.import_module(module)
    seconds = time.perf_counter() - start
    import gatework
    gatework.trace(gatework.cells.lstm)
    return {"seconds": seconds}


if __name__ == "__main__":
    probe, *arguments = sys.argv[1:]
    print(json.dumps({"first-call": first_call, "memory": memory, "import": import_time}[probe](*arguments)))
