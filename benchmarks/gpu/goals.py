"""The goals of a GPU, measured: `python benchmarks/gpu/goals.py --out FOLDER`, and the parts that are wanted.

Medians of device events, warmed up, contestants in turns in one run; input products and their gradients included. What
is compared is compared first: a contestant whose output is off is not timed. Every result is in FOLDER/goals.json as
soon as it is there, and the tables are printed at the end.

lstm, gru    beside cuDNN: training, inference, and memory held for the backward pass; dense and ragged
resets       rows that begin anew, over the plain call
cells        other cells: over our own LSTM for each product of a step, and over the loop in eager torch
compiled     two of them beside torch.compile of the loop, which takes minutes to be made
programs     the LSTM step by step, with other numbers of rows and units in a program than are estimated to be best
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import chip
import torch
import triton
from measure import BOUNDS, Report, held, timed, training

import gatework
from gatework import cells
from gatework.autograd import functions
from gatework.backends import gpu
from gatework.backends.gpu import replays, steps
from gatework.nn import (
    GRU,
    LSTM,
    CoupledLSTM,
    LayerNormLSTM,
    PeepholeLSTM,
    Recurrent,
)

sys.path.insert(0, str(Path(__file__).parents[1]))  # the loops in eager torch
from own_cell import leaky_memory  # noqa: E402
from peers import EAGER  # noqa: E402

SIZES = [(100, 32, 256), (2048, 8, 128), (1024, 16, 768), (100, 64, 512), (35, 20, 650), (64, 4096, 128),
         (365, 256, 256), (512, 128, 1024)]
LOOPS = [(100, 32, 256), (100, 64, 512)]
PARTS = ["lstm", "gru", "resets", "cells", "compiled", "programs"]
FORMS = {"resident": gpu.kernel.Compiled, "shared": gpu.kernel.Shared}
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "tf32": torch.float32}
# A cell -> how its layer is made, and the name of its loop.
CELLS = {"peephole": PeepholeLSTM, "coupled": CoupledLSTM, "layer-norm": LayerNormLSTM,
         "projected": lambda I, H, **k: LSTM(I, H, proj_size=H // 2, **k),  # noqa: E741
         "reset-before": lambda I, H, **k: Recurrent(cells.gru_reset_before, I, H, **k),  # noqa: E741
         "own": lambda I, H, **k: Recurrent(leaky_memory, I, H, **k)}  # noqa: E741


class Bench:
    """One run: where it goes, and on what."""

    def __init__(self, folder: Path, device: str, sizes: list[tuple[int, int, int]], types: list[str]):
        self.report, self.device, self.sizes, self.types = Report(folder / "goals.json"), device, sizes, types
        self.rates, self.barrier = {}, 0.0

    def machine(self) -> dict:
        return {"name": torch.cuda.get_device_name() if self.device == "cuda" else "the interpreter",
                "torch": torch.__version__, "triton": triton.__version__, "gatework": gatework.__version__,
                "overlap": replays.OVERLAP, "forms": [form.__name__ for form in gpu.kernel.FORMS]}

    def pair(self, kind: str, T: int, B: int, H: int, dtype: torch.dtype) -> tuple:
        theirs = getattr(torch.nn, kind)(H, H).to(self.device, dtype)
        ours = {"LSTM": LSTM, "GRU": GRU}[kind](H, H, backend="gpu").to(self.device, dtype)
        ours.load_state_dict(theirs.state_dict())
        return ours, theirs, torch.randn(T, B, H, device=self.device, dtype=dtype)

    def beside_cudnn(self, kind: str, size: tuple[int, int, int], type_name: str) -> dict:
        T, B, H = size
        ours, theirs, x = self.pair(kind, T, B, H, TYPES[type_name])
        with torch.no_grad():
            error = _error(ours(x)[0], theirs(x)[0])
        bound = 2 * BOUNDS[x.dtype] if type_name != "tf32" else 5e-3  # 11 digits of each operand
        if not error <= bound:
            return {"failed": f"the output is {error:.1e} off; not timed"}
        found = {"error": error, "fast_path": _has_fast_path(kind, size, type_name)}
        found["training_ms"] = timed({"gatework": training(ours, x), "cuDNN": training(theirs, x)}, self.device)
        with torch.no_grad():
            found["inference_ms"] = timed({"gatework": lambda: ours(x), "cuDNN": lambda: theirs(x)}, self.device)
        found["held_bytes"] = {"gatework": held(lambda x: ours(x)[0], x), "cuDNN": held(lambda x: theirs(x)[0], x)}
        found["limit_ms"] = self._limit(_products(ours), size, type_name)
        return found | {"ratio": _ratio(found["training_ms"]), "inference_ratio": _ratio(found["inference_ms"]),
                        "share_of_limit": found["limit_ms"] / found["training_ms"]["gatework"]}

    def _limit(self, products: int, size: tuple[int, int, int], type_name: str) -> float:
        """Milliseconds of training: products of a step forward and backward and two meetings of all programs, for each
        step; four products for the whole sequence; all at the rate of a large one."""
        T, B, H = size
        return 1e-9 * 6 * T * 2 * B * products * H * H / self.rates[type_name] + 1e-3 * 2 * T * self.barrier

    def ragged(self, kind: str, size: tuple[int, int, int], type_name: str) -> dict:
        """Rows of half the steps to all of them; over the same rows in cuDNN, and over our own dense call."""
        T, B, H = size
        ours, theirs, x = self.pair(kind, T, B, H, TYPES[type_name])
        lengths = torch.linspace(T, T // 2, B).long()

        def packed(x):
            made = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
            return torch.nn.utils.rnn.pad_packed_sequence(theirs(made)[0], total_length=T)[0]

        found = {"training_ms": timed({"gatework": training(ours, x, lambda x: ours(x, lengths=lengths)[0]),
                                       "cuDNN": training(theirs, x, packed), "dense": training(ours, x)}, self.device)}
        times = found["training_ms"]
        return found | {"ratio": _ratio(times), "over_dense": times["gatework"] / times["dense"]}

    def resets(self, kind: str, size: tuple[int, int, int], type_name: str) -> dict:
        T, B, H = size
        ours, _, x = self.pair(kind, T, B, H, TYPES[type_name])
        where = torch.rand(T, B, device=self.device) < 0.01
        found = {"training_ms": timed({"gatework": training(ours, x, lambda x: ours(x, resets=where)[0]),
                                       "dense": training(ours, x)}, self.device)}
        return found | {"over_dense": found["training_ms"]["gatework"] / found["training_ms"]["dense"]}

    def other_cell(self, name: str, size: tuple[int, int, int], type_name: str, compile_too: bool = False) -> dict:
        T, B, H = size
        dtype = TYPES[type_name]
        ours, plain = (make(H, H, backend="gpu").to(self.device, dtype) for make in (CELLS[name], LSTM))
        x = torch.randn(T, B, H, device=self.device, dtype=dtype)
        contestants = {"gatework": training(ours, x), "gatework LSTM": training(plain, x)}
        parameters = list(ours.parameters())
        if compile_too:
            loop = torch.compile(EAGER[name])
            contestants["torch.compile"] = training(ours, x, lambda x: loop(x, *parameters))
        elif size in LOOPS or self.device != "cuda":
            with torch.no_grad():
                error = _error(ours(x)[0], EAGER[name](x, *parameters))
            if not error <= 2 * BOUNDS[dtype]:
                return {"failed": f"the output is {error:.1e} off; not timed"}
            contestants["eager loop"] = training(ours, x, lambda x: EAGER[name](x, *parameters))
        times = timed(contestants, self.device)
        found = {"training_ms": times,
                 "per_product": times["gatework"] / times["gatework LSTM"] * _products(plain) / _products(ours)}
        return found | {f"over {n}": times[n] / times["gatework"] for n in times if not n.startswith("gatework")}

    def programs(self, kind: str, size: tuple[int, int, int], type_name: str) -> dict:
        """Milliseconds of training, by rows and units of a program."""
        T, B, H = size
        dtype, before = TYPES[type_name], (gpu.kernel.FORMS, dict(steps.ROWS), steps.UNITS)
        choices = {"estimated": (steps.ROWS[dtype], steps.UNITS)}
        choices |= {f"{tall} rows, {wide} units": ((tall,), (wide,)) for tall in steps.ROWS[dtype]
                    for wide in steps.UNITS if tall == 16 or tall < 2 * B}
        found: dict[str, float] = {}
        gpu.kernel.FORMS = ()
        try:
            for name, (steps.ROWS[dtype], steps.UNITS) in choices.items():
                self._forget_kernels()
                ours, _, x = self.pair(kind, T, B, H, dtype)
                found[name] = timed({name: training(ours, x)}, self.device)[name]
        finally:
            gpu.kernel.FORMS, steps.ROWS, steps.UNITS = before
            self._forget_kernels()
        return {"training_ms": found, "estimated_over_best": found["estimated"] / min(found.values())}

    def _forget_kernels(self) -> None:
        gpu.kernel._kernel.cache_clear()
        functions.kernel_of_shapes.cache_clear()

    def run(self, parts: list[str]) -> None:
        self.report.add("machine", "device", self.machine)
        self.rates = {name: self.report.add("chip", f"rate {name}", chip.rate, TYPES[name], self.device, name == "tf32")
                      .get("teraflops", math.nan) for name in self.types}
        if self.device == "cuda":
            self.barrier = self.report.add("chip", "meeting", chip.meeting, 1, 128).get("microseconds", math.nan)
        for part in parts:
            if part in ("lstm", "gru"):
                self._over_sizes(part, part.upper(), self.beside_cudnn)
                self._over_sizes(f"{part}, ragged", part.upper(), self.ragged, ("float16", "bfloat16"))
            elif part in ("resets", "programs"):
                self._over_sizes(part, "LSTM", getattr(self, part), ("bfloat16",))
            else:
                for size in LOOPS if self.device == "cuda" else self.sizes:
                    for name in CELLS if part == "cells" else ("peephole", "reset-before"):
                        for type_name in [t for t in self.types if t in ("bfloat16", "float32")] or self.types[:1]:
                            self.report.add(part, f"{name} {size} {type_name}", self.other_cell, name, size, type_name,
                                            part == "compiled")

    def _over_sizes(self, part: str, kind: str, measure: Callable[..., dict], only: tuple[str, ...] = ()) -> None:
        for size in self.sizes:
            for type_name in [t for t in self.types if not only or t in only] or self.types[:1]:
                for settings in (torch.backends.cuda.matmul, torch.backends.cudnn):
                    settings.allow_tf32 = type_name == "tf32"
                self.report.add(part, f"{kind} {size} {type_name}", measure, kind, size, type_name)

    def print_tables(self) -> None:
        for part, results in self.report.found.items():
            keys = ("ratio", "inference_ratio", "share_of_limit", "over_dense", "per_product", "over eager loop",
                    "over torch.compile", "estimated_over_best")
            shown = [key for key in keys if any(key in r for r in results.values())]
            if not shown:
                continue
            print(f"\n{part} | fast path | {' | '.join(shown)} | held\n{'--|' * (len(shown) + 3)}")
            for name, r in results.items():
                values = [f"{r[key]:.2f}" if key in r else "" for key in shown]
                share = r.get("held_bytes", {})
                values.append(f"{share['gatework'] / share['cuDNN']:.2f}" if share.get("cuDNN") else "")
                print(f"{name} | {'yes' * r.get('fast_path', False)} | {' | '.join(values)}")
            for key in shown:
                for fast in (True, False):
                    found = [r[key] for r in results.values() if key in r and r.get("fast_path", False) == fast]
                    if found:
                        print(f"{key}{', fast path of cuDNN' * fast}: geometric mean "
                              f"{statistics.geometric_mean(found):.2f}, least {min(found):.2f}, most {max(found):.2f}")


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).float().norm() / b.float().norm()).item()


def _ratio(times: dict[str, float]) -> float:
    return times["cuDNN"] / times["gatework"]


def _products(layer: Recurrent) -> int:
    """Products of a matrix and a vector in a step, in the loop."""
    kernel = gpu.kernel_for(layer.cell, layer.sizes, torch.float32)
    return sum(len(step.stage.products) for step in kernel._training_plan.loop.passes)


def _has_fast_path(kind: str, size: tuple[int, int, int], type_name: str) -> bool:
    """Whether torch asks cuDNN for a persistent kernel of one layer and direction (ATen, cudnn/RNN.cpp)."""
    _, B, H = size
    if H <= 128:
        return True
    return kind == "LSTM" and type_name == "float16" and H <= 1024 and H % 128 == 0 and B % 8 == 0 and B <= 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; the first four if none")
    parser.add_argument("--out", type=Path, required=True, help="folder for goals.json")
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=list(TYPES))
    parser.add_argument("--sizes", nargs="+", metavar="T,B,H", help="instead of the sizes of the goals")
    parser.add_argument("--overlap", action="store_true", help="kernels of a graph begin before the one before ends")
    parser.add_argument("--forms", nargs="*", default=["resident"], choices=list(FORMS),
                        help="what is tried in turn; with none, all loops run step by step")
    parser.add_argument("--smoke", action="store_true", help="one tiny size, on the CPU in the interpreter")
    options = parser.parse_args()
    replays.OVERLAP = options.overlap
    gpu.kernel.FORMS = tuple(FORMS[name] for name in options.forms)
    sizes = [tuple(map(int, text.split(","))) for text in options.sizes] if options.sizes else SIZES
    unknown = set(options.parts) - set(PARTS)
    if unknown or any(len(size) != 3 or math.prod(size) <= 0 for size in sizes):
        parser.error(f"parts are {', '.join(PARTS)}; sizes three numbers each, such as 100,32,256")
    bench = (Bench(options.out, "cpu", [(3, 4, 5)], ["float32"]) if options.smoke else
             Bench(options.out, "cuda", sizes, options.types))
    try:
        bench.run(options.parts or PARTS[:4])
    finally:
        bench.print_tables()


if __name__ == "__main__":
    main()
