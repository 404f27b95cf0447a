"""What is timed: torch modules and functions in this process, the JAX scan in another, all with the same interface.

A contestant has `results()`, its output and gradients for the check before the timing, and `run(n)`, the seconds of n
repetitions. Training is the forward pass and the gradients of the input and of every parameter, for a dense random
upstream gradient and a first state of zeros. Before every training repetition, outside of the timed part, each torch
parameter is written to, as an optimizer would, so that nothing which is kept per version of the weights (packed
panels, in gatework) is kept from one repetition to the next.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from own_cell import leaky_memory
from peers import EAGER
from torch import Tensor

import gatework

# Relative to the norm of each array. float32 sums of up to 8000 terms, added in another order, differ by some 1e-6 of
# it; a wrong term in an equation, or one that is left out, by 1e-2 or more.
TOLERANCE = 2e-5
HERE = Path(__file__).parent


class WrongResults(Exception):
    """A contestant differs from its peer, and so is not timed."""


@dataclass
class Training:
    call: Callable[[Tensor], Tensor]
    parameters: Sequence[Tensor]
    x: Tensor
    upstream: Tensor

    def step(self) -> tuple[Tensor, ...]:
        output = self.call(self.x)
        return output, *torch.autograd.grad(output, [self.x, *self.parameters], self.upstream)

    def results(self) -> list[np.ndarray]:
        return [v.detach().numpy() for v in self.step()]

    def run(self, repetitions: int) -> list[float]:
        seconds = []
        for _ in range(repetitions):
            with torch.no_grad():
                for p in self.parameters:
                    p.add_(0.0)
            start = time.perf_counter()
            self.step()
            seconds.append(time.perf_counter() - start)
        return seconds


@dataclass
class Inference:
    """eval() and no_grad(); the weights stay as they are, so both sides may keep what they made of them."""

    layer: torch.nn.Module
    x: Tensor

    def results(self) -> list[np.ndarray]:
        with torch.no_grad():
            return [self.layer.eval()(self.x)[0].numpy()]

    def run(self, repetitions: int) -> list[float]:
        seconds = []
        with torch.no_grad():
            for _ in range(repetitions):
                start = time.perf_counter()
                self.layer(self.x)
                seconds.append(time.perf_counter() - start)
        return seconds


class JaxScan:
    """A jitted scan with its gradients, in the worker process."""

    _worker: subprocess.Popen | None = None
    version = None

    def __init__(self, cell: str, training: Training, folder: Path):
        file = folder / f"{cell}.npz"
        np.savez(file, *(v.detach().numpy() for v in (training.upstream, training.x, *training.parameters)))
        answer = self._ask({"cell": cell, "file": str(file)})
        JaxScan.version = answer["version"]
        with np.load(answer["file"]) as stored:
            self._results = [stored[f"arr_{k}"] for k in range(len(stored.files))]

    def results(self) -> list[np.ndarray]:
        return self._results

    def run(self, repetitions: int) -> list[float]:
        return self._ask({"run": repetitions})["seconds"]

    @classmethod
    def _ask(cls, request: dict) -> dict:
        if cls._worker is None:
            cls._worker = subprocess.Popen([sys.executable, str(HERE / "jax_worker.py")], text=True,
                                           stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        print(json.dumps(request), file=cls._worker.stdin, flush=True)
        line = cls._worker.stdout.readline()
        if not line:
            raise RuntimeError("the JAX worker has ended; its own message stands above")
        return json.loads(line)

    @classmethod
    def close(cls) -> None:
        if cls._worker is not None:
            cls._worker.stdin.close()
            cls._worker.wait(30)
            cls._worker = None


def check(name: str, found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Raise WrongResults if a result differs: what is wrong is not timed."""
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        what = "output" if k == 0 else "gradient of the input" if k == 1 else f"gradient of parameter {k - 2}"
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        if not error <= TOLERANCE:  # nan is wrong, too
            raise WrongResults(f"{name}: the {what} is {error:.1e} off where {TOLERANCE:.0e} is allowed; not timing it")


def training(layer: torch.nn.Module, x: Tensor, upstream: Tensor) -> Training:
    return Training(lambda x: layer(x)[0], list(layer.parameters()), x, upstream)


def twins(name: str, sizes: tuple[int, int, int, int]) -> dict:
    """gatework's layer and torch.nn's of the same name, with the same parameters."""
    x, upstream = data(sizes)
    theirs = getattr(torch.nn, name)(*sizes[2:])
    ours = getattr(gatework.nn, name)(*sizes[2:])
    ours.load_state_dict(theirs.state_dict())
    found = {"gatework": training(ours, x, upstream), "torch.nn": training(theirs, x, upstream)}
    check(f"gatework.nn.{name} {sizes}", found["gatework"].results(), found["torch.nn"].results())
    return found


def inference(sizes: tuple[int, int, int, int]) -> dict:
    x = data(sizes)[0].detach()
    theirs = torch.nn.LSTM(*sizes[2:])
    ours = gatework.nn.LSTM(*sizes[2:])
    ours.load_state_dict(theirs.state_dict())
    found = {"gatework": Inference(ours, x), "torch.nn": Inference(theirs, x)}
    check(f"gatework.nn.LSTM in evaluation {sizes}", found["gatework"].results(), found["torch.nn"].results())
    return found


def loops(cell: str, sizes: tuple[int, int, int, int], folder: Path) -> dict:
    """gatework's layer, the eager loop and the JAX scan, and for the peephole LSTM our own plain LSTM beside it."""
    x, upstream = data(sizes)
    layer = {"peephole": lambda: gatework.nn.PeepholeLSTM(*sizes[2:]),
             "own": lambda: gatework.nn.Recurrent(leaky_memory, *sizes[2:])}[cell]()
    ours = training(layer, x, upstream)
    found = {"gatework": ours,
             "eager loop": Training(lambda x: EAGER[cell](x, *ours.parameters), ours.parameters, x, upstream),
             "JAX scan": JaxScan(cell, ours, folder)}
    expected = found["eager loop"].results()
    for name in ("gatework", "JAX scan"):
        check(f"{name}, {cell} {sizes}", found[name].results(), expected)
    if cell == "peephole":
        found["gatework LSTM"] = twins("LSTM", sizes)["gatework"]
    return found


def data(sizes: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    T, B, I, H = sizes  # noqa: E741
    return torch.randn(T, B, I, requires_grad=True), torch.randn(T, B, H)
