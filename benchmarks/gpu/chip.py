"""What a GPU gives: rates of products, bandwidth, the gap between two kernels of a graph, a meeting of programs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from measure import timed

from gatework.backends.gpu.load import load
from gatework.backends.gpu.shared import COUNTER, MEET
from gatework.backends.gpu.together import run_together

LINKS = 256  # kernels of a chain
MEETINGS = 1000

MEETING = f'''import triton
import triton.language as tl


{MEET}

@triton.jit(do_not_specialize=["turns"])
def run(counters, turns, MEMBERS: tl.constexpr):
    counter = counters + tl.program_id(0) * {COUNTER}
    met = tl.full([], 0, tl.int64)
    for turn in range(turns):
        met += MEMBERS
        meet(counter, met)
'''


@triton.jit
def link(source, target, programs, OVERLAP: tl.constexpr):
    """Each program reads what its neighbour wrote in the kernel before."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    lane = tl.arange(0, 32)
    value = tl.load(source + tl.program_id(0) * 32 + lane)
    tl.store(target + ((tl.program_id(0) + 1) % programs) * 32 + lane, value + 1)


def rate(dtype: torch.dtype, device: str, tf32: bool = False) -> dict:
    """Of a large product of random numbers."""
    size = 8192 if device == "cuda" else 64
    torch.backends.cuda.matmul.allow_tf32 = tf32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    milliseconds = timed({"product": lambda: a @ b}, device)["product"]
    torch.backends.cuda.matmul.allow_tf32 = False
    return {"teraflops": 2e-9 * size**3 / milliseconds}


def bandwidth(device: str) -> dict:
    a = torch.randn(1 << (29 if device == "cuda" else 16), device=device)
    b = torch.empty_like(a)
    milliseconds = timed({"copy": lambda: b.copy_(a)}, device)["copy"]
    return {"gigabytes_per_s": 2e-6 * a.nbytes / milliseconds}


def gap(programs: int, overlap: bool) -> dict:
    """Microseconds from kernel to kernel in a graph, each of which reads what the one before it wrote."""
    sides = torch.zeros(2, programs, 32, device="cuda")
    options = {"launch_pdl": True} if overlap else {}

    def chain() -> None:
        for k in range(LINKS):
            link[programs,](sides[k % 2], sides[(k + 1) % 2], programs, OVERLAP=overlap, **options)

    chain()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    sides.zero_()
    graph.replay()
    right = bool((sides[0] == LINKS).all())
    return {"microseconds": 1e3 * timed({"chain": graph.replay}, "cuda")["chain"] / LINKS, "right": right}


def meeting(groups: int, members: int) -> dict:
    """Microseconds of a meeting."""
    run = load(MEETING).run
    counters = torch.zeros(groups, COUNTER, dtype=torch.int64, device="cuda")

    def meetings() -> None:
        counters.zero_()
        run_together(run, (groups, members), counters, MEETINGS, MEMBERS=members, num_warps=8)

    return {"microseconds": 1e3 * timed({"meetings": meetings}, "cuda")["meetings"] / MEETINGS}


def look(report, device: str) -> None:
    """Put all of it into a report."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        report.add("chip", f"rate {dtype}", rate, dtype, device)
    report.add("chip", "rate tf32", rate, torch.float32, device, True)
    report.add("chip", "bandwidth", bandwidth, device)
    if device == "cuda":
        for programs in (16, 48, 128):
            for overlap in (False, True):
                report.add("chip", f"gap, {programs} programs{', overlapping' * overlap}", gap, programs, overlap)
        for groups, members in ((1, 4), (32, 4), (8, 16), (1, 64), (1, 128)):
            report.add("chip", f"meeting, {groups} groups of {members}", meeting, groups, members)
