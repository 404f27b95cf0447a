"""What the scripts here share: results written as they come, layers by name, medians of device events, memory held."""

from __future__ import annotations

import json
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from gatework import cells
from gatework.nn import LSTM, Recurrent

# Relative to the norm of each result: float32 adds up in another order; tf32 is off. Halves round each operand.
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
ROUNDS, SECONDS = 20, 1.0  # of each contestant: so many repetitions, or fewer that take so long


def attempt(make: Callable[..., dict], *given) -> dict:
    """The result, or how it failed: that is what these scripts are to find out."""
    try:
        return make(*given)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:2000], "where": traceback.format_exc()[-2000:]}


class Report:
    """Results so far, written whole after each one."""

    def __init__(self, file: Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.found = file, {}

    def add(self, part: str, name: str, make: Callable[..., dict], *given) -> dict:
        result = attempt(make, *given)
        self.put(part, name, result)
        return result

    def put(self, part: str, name: str, result: dict) -> None:
        self.found.setdefault(part, {})[name] = result
        print(part, name, json.dumps({k: v for k, v in result.items() if k != "where"}), flush=True)
        partial = self.file.with_suffix(".part")
        partial.write_text(json.dumps(self.found, indent=1))
        partial.replace(self.file)


def layer_of(name: str, features: int, hidden: int, backend: str, device: str) -> Recurrent:
    """A layer of a cell of the catalogue, with the sizes that it needs besides."""
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
    """What a layer takes beside its input."""
    found = {}
    for name, e in list(layer.cell.inputs.items())[1:]:
        width = layer.sizes[e.dims[0]] if e.dims else 1
        found[name] = torch.rand(*((B,) if e.op == "constant" else (T, B)), width, device=device)
    return found


def training(layer: torch.nn.Module, x: torch.Tensor, call: Callable | None = None) -> Callable[[], object]:
    """A forward pass, and the gradients of the input and of every parameter."""
    x = x.detach().clone().requires_grad_()
    call = call or (lambda x: layer(x)[0])
    upstream = torch.randn_like(call(x))
    return lambda: torch.autograd.grad(call(x), [x, *layer.parameters()], upstream)


def timed(contestants: dict[str, Callable[[], object]], device: str) -> dict[str, float]:
    """Median milliseconds of each, in turns; by events on a GPU, else by the clock."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run(), run()
    spent = dict.fromkeys(contestants, 0.0)
    for _ in range(ROUNDS if device == "cuda" else 2):
        for name, run in contestants.items():
            if spent[name] < 1e3 * SECONDS or len(times[name]) < 3:
                times[name].append(_milliseconds(run, device))
                spent[name] += times[name][-1]
    return {name: statistics.median(values) for name, values in times.items()}


def _milliseconds(run: Callable[[], object], device: str) -> float:
    if device != "cuda":
        begin = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - begin)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def held(call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> int:
    """Bytes that a forward pass leaves for the backward pass, its output among them; 0 where that cannot be asked."""
    if not x.is_cuda:
        return 0
    x = x.detach().clone().requires_grad_()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    output = call(x)
    torch.cuda.synchronize()
    del x
    found = torch.cuda.memory_allocated() - before
    del output
    return found
