"""What a GPU says of the Triton kernels: `python benchmarks/gpu/first_look.py --out FOLDER`, some minutes on one GPU.

Compiles each cell of the catalogue, notes registers and spilling; checks values and gradients against the reference
backend in float64; then times the LSTM and the GRU beside cuDNN, and a peephole LSTM beside a loop in eager torch, by
device events, in turns, medians. Larger sizes run step by step, and once more with units shared. What fails is written
down with its message, and the rest goes on. Every result is in FOLDER/gpu.json as soon as it is there. With
TRITON_INTERPRET=1 and --smoke it only shows that the script itself works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import triton

import gatework
from gatework import cells
from gatework.autograd import functions
from gatework.backends import gpu
from gatework.nn import GRU, LSTM, PeepholeLSTM, Recurrent

sys.path.insert(0, str(Path(__file__).parents[1]))  # the loops in eager torch
from peers import EAGER  # noqa: E402

# T, B, I, H of issue 6, and smaller ones around them. Up to H = 64, in halves 128, the weights of the loop stay in one
# program; beyond that every step is a product and a kernel, or several programs share the units.
SIZES = [(100, 32, 64, 64), (1024, 16, 128, 128), (2048, 8, 128, 128), (64, 4096, 128, 128), (100, 64, 32, 32),
         (100, 32, 256, 256), (365, 256, 256, 256), (100, 64, 512, 512), (35, 20, 650, 650), (1024, 16, 768, 768)]
STEPS = (8, 16, 192, 192)  # every cell is checked at this size too
ROUNDS = 20
# Relative to the norm of each result: float32 adds up in another order; tf32 is off. Halves round each operand.
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


class Report:
    """Results so far, written whole after each one."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.found = folder / "gpu.json", {}

    def add(self, part: str, name: str, make: Callable[..., dict], *given) -> None:
        try:
            result = make(*given)
        except Exception as error:  # a cell that does not compile is what this is to find out
            result = {"failed": f"{type(error).__name__}: {error}"[:2000], "where": traceback.format_exc()[-2000:]}
        self.found.setdefault(part, {})[name] = result
        print(part, name, json.dumps({k: v for k, v in result.items() if k != "where"}), flush=True)
        partial = self.file.with_suffix(".part")
        partial.write_text(json.dumps(self.found, indent=1))
        partial.replace(self.file)


def layer_of(name: str, features: int, hidden: int, backend: str, device: str) -> Recurrent:
    cell, options = getattr(cells, name), {}
    if name in ("slstm", "block_gru"):
        options = {"sizes": {"D": hidden // 4}}
    elif name == "ea_lstm":
        options = {"sizes": {"S": 3}}
    elif name == "projected_lstm":
        return LSTM(features, hidden, proj_size=hidden // 2, backend=backend).to(device)
    torch.manual_seed(0)
    return Recurrent(cell, features, hidden, backend=backend, **options).to(device)


def further(layer: Recurrent, T: int, B: int, device: str) -> dict[str, torch.Tensor]:
    found = {}
    for name, e in list(layer.cell.inputs.items())[1:]:
        width = layer.sizes[e.dims[0]] if e.dims else 1
        found[name] = torch.rand(*((B,) if e.op == "constant" else (T, B)), width, device=device)
    return found


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
    expected = results(exact, x.double(), {n: v.double() for n, v in inputs.items()})
    worst = max(((a.double() - b).norm() / (b.norm() + 1e-6)).item() for a, b in zip(found, expected, strict=True))
    return {"first_call_s": round(seconds, 2), "worst_error": worst, "right": worst <= BOUNDS[dtype],
            **compiled(ours, dtype)}


def compiled(layer: Recurrent, dtype: torch.dtype) -> dict:
    """What the compiler said of both loops: registers of a thread, spilled ones, shared bytes."""
    kernel, found = gpu.kernel_for(layer.cell, layer.sizes, dtype), {}
    runs = [(f"{name}, stage {k}" if len(loop.runs) > 1 else name, run)
            for name, (_, loop) in (("forward", kernel._training), ("backward", kernel._backward))
            for k, run in enumerate(loop.runs)]
    for name, run in runs:
        for cached, *_ in getattr(run, "device_caches", {}).values():
            for one in cached.values():
                found[name] = {"registers": one.n_regs, "spilled": one.n_spills, "shared": one.metadata.shared}
    return found


def timed(contestants: dict[str, Callable[[], object]], device: str) -> dict:
    """Median milliseconds of each, in turns; by events on a GPU, else by the clock."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run(), run()
    for _ in range(ROUNDS if device == "cuda" else 2):
        for name, run in contestants.items():
            if device == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                end.record()
                torch.cuda.synchronize()
                times[name].append(start.elapsed_time(end))
            else:
                begin = time.perf_counter()
                run()
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in times.items()}


def training(layer: torch.nn.Module, x: torch.Tensor, call: Callable | None = None) -> Callable[[], object]:
    x = x.detach().clone().requires_grad_()
    call = call or (lambda x: layer(x)[0])
    upstream = torch.randn_like(call(x))
    return lambda: torch.autograd.grad(call(x), [x, *layer.parameters()], upstream)


def beside_cudnn(kind: str, dtype: torch.dtype, device: str, sizes: tuple) -> dict:
    """Training and inference of our LSTM or GRU and of torch.nn's, with the same weights."""
    T, B, I, H = sizes  # noqa: E741
    theirs = getattr(torch.nn, kind)(I, H).to(device, dtype)
    ours = {"LSTM": LSTM, "GRU": GRU}[kind](I, H, backend="gpu").to(device, dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, I, device=device, dtype=dtype)
    with torch.no_grad():
        error = ((ours(x)[0] - theirs(x)[0]).float().norm() / theirs(x)[0].float().norm()).item()
    if not error <= 2 * BOUNDS[dtype]:
        return {"failed": f"the output is {error:.1e} off; not timed"}
    found = timed({"gatework": training(ours, x), "torch.nn": training(theirs, x)}, device)
    with torch.no_grad():
        read = timed({"gatework": lambda: ours(x), "torch.nn": lambda: theirs(x)}, device)
    return {"training_ms": found, "inference_ms": read, "training_ratio": found["torch.nn"] / found["gatework"],
            "inference_ratio": read["torch.nn"] / read["gatework"]}


def beside_a_loop(device: str, sizes: tuple) -> dict:
    """A peephole LSTM beside the loop in eager torch, and our own plain LSTM."""
    T, B, I, H = sizes  # noqa: E741
    ours, plain = (make(I, H, backend="gpu").to(device) for make in (PeepholeLSTM, LSTM))
    x = torch.randn(T, B, I, device=device)
    loop = training(ours, x, lambda x: EAGER["peephole"](x, *ours.parameters()))
    found = timed({"gatework": training(ours, x), "eager loop": loop, "gatework LSTM": training(plain, x)}, device)
    return {"training_ms": found, "ratio": found["eager loop"] / found["gatework"]}


def share_units() -> None:
    """From now on loops whose weights are too large for one program run in several, which meet."""
    gpu.kernel.FORMS = (*gpu.kernel.FORMS, gpu.kernel.Shared)
    gpu.kernel._kernel.cache_clear()
    functions.kernel_of_shapes.cache_clear()


def add_checks(report: Report, part: str, names: list[str], types: list, device: str, sizes: tuple) -> None:
    for name in names:
        for dtype in types:
            report.add(part, f"{name} {dtype}", check, name, dtype, device, sizes)


def add_times(report: Report, part: str, types: list, device: str, sizes: list[tuple]) -> None:
    for size in sizes:
        for dtype in types:
            for kind in ("LSTM", "GRU"):
                report.add(part, f"{kind} {dtype} {size}", beside_cudnn, kind, dtype, device, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
    parser.add_argument("--smoke", action="store_true", help="one cell, one tiny size, on the CPU in the interpreter")
    options = parser.parse_args()
    device = "cpu" if options.smoke else "cuda"
    report = Report(options.out)
    report.add("machine", "device", lambda: {
        "name": "the interpreter" if options.smoke else torch.cuda.get_device_name(), "torch": torch.__version__,
        "triton": triton.__version__, "gatework": gatework.__version__})
    names = ["lstm"] if options.smoke else cells.__all__
    types = [torch.float32] if options.smoke else list(BOUNDS)
    few, large, sizes = (7, 33, 20, 60), STEPS, SIZES
    if options.smoke:
        few, large, sizes = (3, 5, 7, 20), (2, 3, 4, 160), [(2, 3, 4, 5)]
    add_checks(report, "checks", names, types, device, few)
    add_checks(report, "checks, step by step", names, types, device, large)
    add_times(report, "cudnn", types, device, sizes)
    for size in sizes:
        report.add("peephole", str(size), beside_a_loop, device, size)
    # Last of all: programs that missed each other would wait for ever.
    share_units()
    halves = [torch.float16] if options.smoke else [torch.bfloat16, torch.float16]
    add_checks(report, "checks, units shared", names, halves, device, large)
    add_times(report, "cudnn, units shared", halves, device, [large] if options.smoke else sizes)


if __name__ == "__main__":
    main()
