"""What is timed: by case and name, functions that make a contestant for sizes T, B, I, H.

A contestant has `results()`, its output and gradients for the check before the timing, and `run(n)`, the seconds of n
repetitions. Training is the forward pass and the gradients of the input and of every parameter, for a dense random
upstream gradient and a first state of zeros. Before every training repetition, outside of the timed part, each torch
parameter is written to, as an optimizer would, so that nothing which is kept per version of the weights (packed
panels, in gatework) is kept from one repetition to the next. In inference the weights stay as they are, so everybody
may keep what was made of them.

Every contestant is made in a process of its own (worker.py), from the same seed: all of a case have the same weights,
input and upstream gradient.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from groups import FLOAT32, OURS, RUNTIME
from own_cell import leaky_memory
from peers import EAGER
from torch import Tensor

import gatework

UNROLLED = 128  # steps up to which a loop is given to torch.compile, which writes code for each of them

Sizes = tuple[int, int, int, int]


class NotMeasured(Exception):
    """A contestant that cannot run here, or not at this size; the message says why."""


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
        return [v.detach().float().numpy() for v in self.step()]

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
    """eval() and no_grad(); with bfloat16, autocast is entered once, as around an evaluation."""

    layer: torch.nn.Module
    x: Tensor
    bfloat16: bool = False

    def results(self) -> list[np.ndarray]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, self.bfloat16):
            return [self.layer.eval()(self.x)[0].float().numpy()]

    def run(self, repetitions: int) -> list[float]:
        seconds = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, self.bfloat16):
            for _ in range(repetitions):
                start = time.perf_counter()
                self.layer(self.x)
                seconds.append(time.perf_counter() - start)
        return seconds


def layer_norm_lstm(I: int, H: int) -> gatework.nn.LayerNormLSTM:
    """Gains of 0.1, with which Cooijmans et al. (2017) start normalised states.

    With gains of 1 and random weights the state is chaotic: the last digits decide what it is some hundred steps later,
    gradients explode, and there is nothing to compare.
    """
    layer = gatework.nn.LayerNormLSTM(I, H)
    for gain in (layer.gx_l0, layer.gh_l0):
        torch.nn.init.constant_(gain, 0.1)
    return layer


# Cases for which torch.nn and gatework.nn have layers of the same name and arguments.
TORCHS = {"lstm": ("LSTM", {}), "gru": ("GRU", {}), "rnn": ("RNN", {}), "two-layers": ("LSTM", {"num_layers": 2}),
          "bidirectional": ("LSTM", {"bidirectional": True})}
LAYERS, TWINS = ({case: partial(getattr(library, name), **options) for case, (name, options) in TORCHS.items()} |
                 {"projected": lambda I, H, make=library.LSTM: make(I, H, proj_size=H // 2)}
                 for library in (gatework.nn, torch.nn))
LAYERS |= {
    "peephole": gatework.nn.PeepholeLSTM,
    "coupled": gatework.nn.CoupledLSTM,
    "layer-norm": layer_norm_lstm,
    "reset-before": partial(gatework.nn.Recurrent, gatework.cells.gru_reset_before),
    "own": partial(gatework.nn.Recurrent, leaky_memory),
}


def layer_of(cell: str, sizes: Sizes) -> gatework.nn.Recurrent:
    torch.manual_seed(1)
    return LAYERS[cell](*sizes[2:])


def twin_of(cell: str, sizes: Sizes) -> torch.nn.Module:
    """torch.nn's layer with the weights of ours."""
    theirs = TWINS[cell](*sizes[2:])
    theirs.load_state_dict(layer_of(cell, sizes).state_dict())
    return theirs


def data(sizes: Sizes, features: int | None = None) -> tuple[Tensor, Tensor]:
    """The input and the upstream gradient of an output of so many features, H if not given."""
    torch.manual_seed(0)
    T, B, I, H = sizes
    return torch.randn(T, B, I, requires_grad=True), torch.randn(T, B, features or H)


def training(call: Callable[[Tensor], Tensor], layer: torch.nn.Module, x: Tensor, upstream: Tensor) -> Training:
    return Training(call, list(layer.parameters()), x, upstream)


def train(make: Callable, cell: str, sizes: Sizes) -> Training:
    layer = make(cell, sizes)
    return training(lambda x: layer(x)[0], layer, *data(sizes, layer_of(cell, sizes).output_size))


def train_bfloat16(make: Callable, cell: str, sizes: Sizes) -> Training:
    """Forward under autocast and backward outside of it, as torch says to do."""
    made = train(make, cell, sizes)
    plain = made.call

    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return plain(x)

    return Training(call, made.parameters, made.x, made.upstream.to(call(made.x).dtype))


def infer(make: Callable, cell: str, sizes: Sizes, bfloat16: bool = False) -> Inference:
    return Inference(make(cell, sizes), data(sizes)[0].detach(), bfloat16)


def without_onednn(make: Callable, sizes: Sizes):
    torch.backends.mkldnn.set_flags(False)  # of this process, which has no other contestant
    return make(sizes)


def loop(compiler: Callable, cell: str, sizes: Sizes) -> Training:
    """The loop of peers.py, over the parameters of our layer."""
    layer = layer_of(cell, sizes)
    function, parameters = compiler(EAGER[cell]), list(layer.parameters())
    return Training(lambda x: function(x, *parameters), parameters, *data(sizes, layer.output_size))


def compiled(cell: str, sizes: Sizes) -> Training:
    if sizes[0] > UNROLLED:
        raise NotMeasured(f"torch.compile unrolls the loop: not tried for more than {UNROLLED} steps")
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise NotMeasured("no C++ compiler")
    return loop(partial(torch.compile, fullgraph=True, dynamic=False), cell, sizes)


def jax_training(cell: str, sizes: Sizes):
    import jax_peers
    layer = layer_of(cell, sizes)
    x, upstream = data(sizes, layer.output_size)
    return jax_peers.training(cell, [v.detach().numpy() for v in (x, *layer.parameters())], upstream.numpy())


def jax_inference(cell: str, sizes: Sizes):
    import jax_peers
    given = (data(sizes)[0], *layer_of(cell, sizes).parameters())
    return jax_peers.inference(cell, [v.detach().numpy() for v in given])


def onnx_runtime(cell: str, sizes: Sizes):
    from runtimes import OnnxRuntime
    return OnnxRuntime(layer_of(cell, sizes), data(sizes)[0].detach().numpy())


def runtime(cell: str, sizes: Sizes, products: str | None = None):
    from runtimes import Runtime
    return Runtime(layer_of(cell, sizes), data(sizes)[0].detach().numpy(), products)


def openvino(cell: str, sizes: Sizes, precision: str = "f32"):
    from runtimes import OpenVino
    return OpenVino(layer_of(cell, sizes), data(sizes)[0].detach().numpy(), precision)


def twins(how: Callable, cell: str) -> dict[str, Callable]:
    return {OURS: partial(how, layer_of, cell), "torch.nn": partial(how, twin_of, cell)}


def loops(cell: str) -> dict[str, Callable]:
    """Ours and what else there is for a cell that torch.nn does not have."""
    return {OURS: partial(train, layer_of, cell), "eager loop": partial(loop, lambda function: function, cell),
            "torch.jit.script": partial(loop, torch.jit.script, cell), "torch.compile": partial(compiled, cell),
            "JAX scan": partial(jax_training, cell)}


CASES: dict[str, dict[str, Callable]] = {
    "lstm": twins(train, "lstm") | {
        "torch.nn without oneDNN": partial(without_onednn, partial(train, twin_of, "lstm")),
        "JAX scan": partial(jax_training, "lstm")},
    "inference": twins(infer, "lstm") | {
        RUNTIME: partial(runtime, "lstm"),
        "torch.nn without oneDNN": partial(without_onednn, partial(infer, twin_of, "lstm")),
        "ONNX Runtime": partial(onnx_runtime, "lstm"), "OpenVINO": partial(openvino, "lstm"),
        "JAX scan": partial(jax_inference, "lstm")},
    "gru": twins(train, "gru") | {"JAX scan": partial(jax_training, "gru")},
    "rnn": twins(train, "rnn") | {"JAX scan": partial(jax_training, "rnn")},
    "peephole": loops("peephole") | {"gatework LSTM": partial(train, layer_of, "lstm")},
    "coupled": loops("coupled"),
    "layer-norm": loops("layer-norm"),
    "projected": loops("projected") | {"torch.nn": partial(train, twin_of, "projected")},
    "reset-before": loops("reset-before"),
    "own": loops("own"),
    # float32 tells who is right where the others differ.
    "lstm-bfloat16": twins(train_bfloat16, "lstm") | {FLOAT32: partial(train, twin_of, "lstm")},
    "inference-bfloat16": twins(partial(infer, bfloat16=True), "lstm") | {
        RUNTIME: partial(runtime, "lstm", products="bfloat16"),
        "OpenVINO": partial(openvino, "lstm", precision="bf16"), FLOAT32: partial(infer, twin_of, "lstm")},
    "two-layers": twins(train, "two-layers"),
    "bidirectional": twins(train, "bidirectional"),
}


def make(case: str, name: str, sizes: Sizes):
    from sequences import SEQUENCES
    return (CASES | SEQUENCES)[case][name](sizes)
