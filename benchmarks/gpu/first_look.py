"""What a GPU says of the Triton kernels: `python benchmarks/gpu/first_look.py --out FOLDER`, some minutes on one GPU.

Measures what the chip gives; then compiles each cell of the catalogue in three types and all forms of a loop, notes
registers and spilling, and checks values and gradients against the reference backend in float64. Each cell and form has
a process of its own, some at a time, and an end to its patience: a kernel that waits for ever takes only itself along.
What fails is written down with its message, and the rest goes on. Every result is in FOLDER/first_look.json as soon as
it is there. With TRITON_INTERPRET=1 and --smoke it only shows that the script itself works.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import chip
import torch
import triton
from measure import BOUNDS, Report, attempt, further, layer_of

import gatework
from gatework import cells
from gatework.autograd import functions
from gatework.backends import gpu
from gatework.backends.gpu import replays
from gatework.backends.gpu.steps import Steps
from gatework.nn import Recurrent

# T, B, I, H of the checks. The second needs more steps than are launched one by one.
FEW, STEPS = (7, 33, 20, 60), (12, 16, 192, 192)
FORMS = ["as chosen", "step by step", "overlapping", "shared"]
PATIENCE = 300  # seconds for a cell


def choose(form: str) -> None:
    """Make this process run loops in one form."""
    if form == "shared":
        gpu.kernel.FORMS = (gpu.kernel.Shared,)
    elif form != "as chosen":
        gpu.kernel.FORMS = ()
    replays.OVERLAP = form == "overlapping"
    gpu.kernel._kernel.cache_clear()
    functions.kernel_of_shapes.cache_clear()


def results(layer: Recurrent, x: torch.Tensor, inputs: dict) -> list[torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    output, _ = layer(x, **inputs)
    upstream = torch.linspace(-1, 1, output.numel(), device=x.device).view_as(output).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, [x, *layer.parameters()], upstream)]


def check(name: str, dtype: torch.dtype, device: str, sizes: tuple) -> dict:
    T, B, I, H = sizes  # noqa: E741
    ours, exact = (layer_of(name, I, H, backend, device) for backend in ("gpu", "reference"))
    exact.load_state_dict(ours.state_dict())
    ours, exact = ours.to(dtype), exact.to(dtype).double()
    x = torch.randn(T, B, I, device=device).to(dtype)
    inputs = {n: v.to(dtype) for n, v in further(ours, T, B, device).items()}
    begin = time.perf_counter()
    found = results(ours, x, inputs)
    seconds = time.perf_counter() - begin
    again = results(ours, x, inputs)
    expected = results(exact, x.double(), {n: v.double() for n, v in inputs.items()})
    worst = max(((a.double() - b).norm() / (b.norm() + 1e-6)).item() for a, b in zip(found, expected, strict=True))
    return {"first_call_s": round(seconds, 2), "worst_error": worst, "right": worst <= BOUNDS[dtype],
            "same_again": all(map(torch.equal, found, again)), **compiled(ours, dtype)}


def compiled(layer: Recurrent, dtype: torch.dtype) -> dict:
    """What the compiler said of both loops: registers of a thread, spilled ones, shared bytes."""
    kernel = gpu.kernel_for(layer.cell, layer.sizes, dtype)
    found = {"loops": [type(loop).__name__ for _, loop in (kernel._training, kernel._backward)]}
    for direction, (_, loop) in (("forward", kernel._training), ("backward", kernel._backward)):
        stages = [run for turns in loop.turns.values() for run in turns.stages] if type(loop) is Steps else loop.runs
        for number, run in enumerate(stages):
            for cached, *_ in getattr(run, "device_caches", {}).values():
                for one in cached.values():
                    found[f"{direction}, {number}"] = {"registers": one.n_regs, "spilled": one.n_spills,
                                                       "shared": one.metadata.shared}
    return found


def check_here(name: str, form: str, device: str, smoke: bool) -> None:
    """Check one cell in one form in this process; a line of JSON for each type."""
    choose(form)
    types = [torch.float16, torch.bfloat16] if form == "shared" else list(BOUNDS)
    sizes = FEW if form == "as chosen" else STEPS
    if smoke:
        types, sizes = [torch.float16 if form == "shared" else torch.float32], (2, 3, 4, 36)
    for dtype in types:
        found = attempt(check, name, dtype, device, sizes)
        print(json.dumps({"type": str(dtype), **found}), flush=True)


def checks(report: Report, names: list[str], smoke: bool, jobs: int) -> None:
    """All cells in all forms, some processes at a time."""
    def run(name: str, form: str) -> tuple[str, str, subprocess.CompletedProcess | subprocess.TimeoutExpired]:
        command = [sys.executable, __file__, "--check", name, "--form", form, *["--smoke"] * smoke]
        try:
            return name, form, subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired as late:
            return name, form, late

    with ThreadPoolExecutor(jobs) as pool:
        # Programs that meet come last: what fails there should hold up nothing else.
        for done in as_completed([pool.submit(run, name, form) for form in FORMS for name in names]):
            name, form, ended = done.result()
            output = ended.stdout.decode() if isinstance(ended.stdout, bytes) else ended.stdout or ""
            for line in output.splitlines():
                found = json.loads(line)
                report.put(f"checks, {form}", f"{name} {found.pop('type')}", found)
            if isinstance(ended, subprocess.TimeoutExpired):
                report.put(f"checks, {form}", f"{name}, the rest", {"failed": f"not done after {PATIENCE} s"})
            elif ended.returncode:
                report.put(f"checks, {form}", f"{name}, the rest", {"failed": ended.stderr[-2000:]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for first_look.json")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="processes at a time")
    parser.add_argument("--smoke", action="store_true", help="one cell, one tiny size, on the CPU in the interpreter")
    parser.add_argument("--check", metavar="CELL", help="check one cell in this process, for --form")
    parser.add_argument("--form", choices=FORMS, default=FORMS[0])
    options = parser.parse_args()
    device = "cpu" if options.smoke else "cuda"
    if options.check:
        check_here(options.check, options.form, device, options.smoke)
        return
    if options.out is None:
        parser.error("--out FOLDER is needed")
    report = Report(options.out / "first_look.json")
    report.add("machine", "device", lambda: {
        "name": "the interpreter" if options.smoke else torch.cuda.get_device_name(), "torch": torch.__version__,
        "triton": triton.__version__, "gatework": gatework.__version__})
    chip.look(report, device)
    checks(report, ["lstm"] if options.smoke else cells.__all__, options.smoke, options.jobs)


if __name__ == "__main__":
    main()
