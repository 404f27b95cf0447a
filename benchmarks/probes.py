"""Measurements that need a process of their own, each prints one JSON object:

    python probes.py first-call CELL | memory WHO T B I H | import HOW MODULE | limits | compiled T B I H ... |
                     per-step T B I H
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

from machine import THREADS, second_cache

PRODUCT = 3000  # rows and columns
FIRST_CALL_SIZES = (10, 4, 64, 256)
FIRST_CALL_CELLS = ("elman", "lstm", "peephole_lstm", "coupled_lstm", "gru", "gru_reset_before", "projected_lstm",
                    "layer_norm_lstm", "leaky_memory")


def first_call(name: str) -> dict:
    """Seconds that the first training call takes beyond the following ones: tracing, compiling or reading the cache."""
    import torch
    from own_cell import leaky_memory

    import gatework.nn
    torch.set_num_threads(THREADS)
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


def memory(who: str, *sizes: str) -> dict:
    """Bytes that the process grows by from before the first forward pass to after it, its graph still alive.

    Resident memory and not the saved tensors: it counts what an operator hides (workspaces, copies, buffers that it
    keeps for good) as well, and what both must hold, the output. A training step over two time steps goes before, so
    that compiling and the start of the threads are not counted.
    """
    import torch

    import gatework
    torch.set_num_threads(THREADS)
    T, B, I, H = map(int, sizes)
    layer = {"gatework": gatework.nn.LSTM, "torch.nn": torch.nn.LSTM,
             "checkpoints": partial(gatework.nn.LSTM, checkpoint_every="auto")}[who](I, H)
    x = torch.randn(T, B, I, requires_grad=True)
    layer(x[:2])[0].sum().backward()
    gc.collect()
    before = resident()
    output, last = layer(x)
    held = resident() - before
    if held < output.nbytes:
        raise RuntimeError(f"the process grew by {held} bytes, less than the output has; this measures nothing")
    return {"bytes": held, "output": output.nbytes}


def import_time(how: str, module: str) -> dict:
    """Seconds of the import: "after torch" has been imported, or where it cannot be; a cell must trace in each."""
    if how == "after torch":
        importlib.import_module("torch")
    else:
        sys.modules["torch"] = None
    start = time.perf_counter()
    importlib.import_module(module)
    seconds = time.perf_counter() - start
    import gatework
    gatework.trace(gatework.cells.lstm)
    return {"seconds": seconds}


def limits() -> dict:
    """What the machine does at best with two threads: operations and bytes in a second.

    Where the processor multiplies no bfloat16, torch does it value by value, a hundred times slower than float32: that
    is no limit, and is not measured.
    """
    import torch
    torch.set_num_threads(THREADS)

    def products(dtype) -> float:
        a, b = (torch.randn(PRODUCT, PRODUCT).to(dtype) for _ in range(2))
        # For float32 torch.mm is MKL's, which does not use all of an AMD processor; oneDNN, behind this one, does.
        linear = torch.ops.mkldnn._linear_pointwise
        return 2 * PRODUCT ** 3 / min(fastest(lambda: torch.mm(a, b)),
                                      fastest(lambda: linear(a, b, None, "none", [], "")))

    def bytes_read(megabytes: int) -> float:
        matrix = torch.randn(megabytes * 2 ** 18 // 1024, 1024)
        vector, out = torch.randn(1024), torch.empty(len(matrix))
        return matrix.nbytes / fastest(lambda: torch.mv(matrix, vector, out=out))

    def triad(megabytes: int) -> float:
        a, b, c = (torch.randn(megabytes * 2 ** 18) for _ in range(3))
        return 3 * a.nbytes / fastest(lambda: torch.add(a, b, alpha=2.0, out=c))

    second = THREADS * second_cache()
    near = second // 2 ** 21  # MB, half of them
    multiplies_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return {"float32_products": products(torch.float32),
            "bfloat16_products": products(torch.bfloat16) if multiplies_bfloat16 else None,
            "near_bytes": max(bytes_read(near), triad(max(1, near // 3))),
            "far_bytes": max(bytes_read(256), triad(128)), "second_caches": second}


def fastest(work) -> float:
    """Seconds of the fastest of some repetitions: a limit is what the machine can do, not what it usually does."""
    work()
    seconds, begin = [], time.perf_counter()
    while len(seconds) < 5 or time.perf_counter() - begin < 1.0:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def compiled(*sizes: str) -> dict:
    """Kernels in the cache folder after a training step and an inference at each size [T, B, I, H, T, B, ...]."""
    import torch

    import gatework
    torch.set_num_threads(THREADS)
    folder, counts = Path(os.environ["GATEWORK_CACHE"]), []
    numbers = list(map(int, sizes))
    layer = gatework.nn.LSTM(*numbers[2:4])
    for k in range(0, len(numbers), 4):
        x = torch.randn(*numbers[k:k + 3], requires_grad=True)
        layer(x)[0].sum().backward()
        with torch.no_grad():
            layer(x)
        counts.append(len(list(folder.glob("*.o"))))
    return {"kernels": counts}


def per_step(*sizes: str) -> dict:
    """Calls of Python functions and operations of torch, which allocate, in one training step of an LSTM."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    import gatework

    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.operations += 1
            return function(*args, **kwargs or {})

    torch.set_num_threads(THREADS)
    T, B, I, H = map(int, sizes)
    layer, x = gatework.nn.LSTM(I, H), torch.randn(T, B, I, requires_grad=True)
    for _ in range(3):  # compiled, recorded, and repeated
        layer(x)[0].sum().backward()
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    layer(x)[0].sum().backward()
    sys.setprofile(None)
    with Count() as seen:
        layer(x)[0].sum().backward()
    return {"calls": calls, "operations": seen.operations}


PROBES = {"first-call": first_call, "memory": memory, "import": import_time, "limits": limits, "compiled": compiled,
          "per-step": per_step}

if __name__ == "__main__":
    probe, *arguments = sys.argv[1:]
    print(json.dumps(PROBES[probe](*arguments)))
