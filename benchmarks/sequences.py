"""What layers are asked for beside plain sequences: ragged batches, resets, recorded gates, checkpoints, single steps.

Contestants by case and name, as in contestants.py. All are LSTMs of the same weights.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from contestants import Sizes, Training, data, layer_of, train, training, twin_of
from groups import ONE_THREAD, OURS
from machine import THREADS
from peers import lstm_with_gates, lstm_with_resets
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gatework

RESET_RATE = 0.02  # of all steps: episodes of fifty
RECORDED = ("i", "f", "c")
STEPS = 200


def drawn_lengths(T: int, B: int) -> Tensor:
    """Lengths drawn evenly from 1 to T, together as many steps as B rows of half the length."""
    lengths = 1 + torch.randperm(T)[:B] if B <= T else torch.randint(1, T + 1, (B,))
    for _ in range(100 * T * B):  # move single lengths until all steps together are those of the dense batch
        off = int(lengths.sum()) - (T + 1) // 2 * B
        if off == 0:
            break
        k = int(torch.randint(0, B, (1,)))
        lengths[k] = (lengths[k] - (1 if off > 0 else -1)).clamp(1, T)
    return lengths


def ragged(name: str, sizes: Sizes) -> Training:
    """Two dense batches have as many valid steps as the ragged one: one of as many rows is half as long, so that half
    as many steps wait for each other; one that is as long has half the rows.
    """
    T, B = sizes[:2]
    x, upstream = data(sizes)
    lengths = drawn_lengths(T, B)
    layer = twin_of("lstm", sizes) if name == "torch.nn, packed" else layer_of("lstm", sizes)
    steps, rows = (T + 1) // 2, (B + 1) // 2
    if name == "gatework, dense, half as long":
        x, upstream = x[:steps].detach().contiguous().requires_grad_(), upstream[:steps].contiguous()
        return training(lambda x: layer(x)[0], layer, x, upstream)
    if name == "gatework, dense, half the rows":
        x, upstream = x[:, :rows].detach().contiguous().requires_grad_(), upstream[:, :rows].contiguous()
        return training(lambda x: layer(x)[0], layer, x, upstream)
    upstream = upstream * (torch.arange(T)[:, None] < lengths)[:, :, None]
    if name == OURS:
        return training(lambda x: layer(x, lengths=lengths)[0], layer, x, upstream)

    def packed(x: Tensor) -> Tensor:
        output, _ = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(output, total_length=T)[0]

    return training(packed, layer, x, upstream)


def resets(name: str, sizes: Sizes) -> Training:
    x, upstream = data(sizes)
    where = torch.rand(*sizes[:2]) < RESET_RATE
    if name == OURS:
        layer = layer_of("lstm", sizes)
        return training(lambda x: layer(x, resets=where)[0], layer, x, upstream)
    layer = twin_of("lstm", sizes)
    return training(lambda x: lstm_with_resets(layer, x, where), layer, x, upstream)


def record(name: str, sizes: Sizes) -> Training:
    """Training while the gates are looked at: they are handed out, no gradient comes back through them."""
    x, upstream = data(sizes)
    layer = layer_of("lstm", sizes)

    def with_record(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        output, _, values = layer(x, record=RECORDED)
        return output, [values[f"{n}_l0"] for n in RECORDED]

    def with_loop(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        output, values = lstm_with_gates(x, *layer.parameters())
        return output, list(values.values())

    return Recording(with_record if name == OURS else with_loop, list(layer.parameters()), x, upstream)


@dataclass
class Recording(Training):
    """A call that gives the output and what it has recorded, which is checked as well."""

    def step(self) -> tuple[Tensor, ...]:
        output, _ = self.call(self.x)
        return output, *torch.autograd.grad(output, [self.x, *self.parameters], self.upstream)

    def results(self) -> list[np.ndarray]:
        with torch.no_grad():
            recorded = self.call(self.x)[1]
        return [*super().results(), *(v.numpy() for v in recorded)]


def checkpoints(sizes: Sizes) -> Training:
    thrifty = gatework.nn.LSTM(*sizes[2:], checkpoint_every="auto")
    thrifty.load_state_dict(layer_of("lstm", sizes).state_dict())
    return training(lambda x: thrifty(x)[0], thrifty, *data(sizes))


@dataclass
class Steps:
    """Single steps, the state carried by the caller; the seconds are those of one."""

    start: Callable[[], object]
    step: Callable[[np.ndarray, object], tuple[np.ndarray, object]]
    x: np.ndarray

    def results(self) -> list[np.ndarray]:
        state, outputs = self.start(), []
        for x in self.x:
            y, state = self.step(x, state)
            outputs.append(np.array(y).reshape(self.x.shape[1], -1))
        return [np.stack(outputs)]

    def run(self, repetitions: int) -> list[float]:
        seconds = []
        step, state = self.step, self.start()
        for _ in range(max(1, repetitions // len(self.x))):
            begin = time.perf_counter()
            for x in self.x:
                _, state = step(x, state)
            seconds.append((time.perf_counter() - begin) / len(self.x))
        return seconds


def streamed(sizes: Sizes) -> tuple[gatework.nn.Recurrent, np.ndarray]:
    _, B, I, _ = sizes
    torch.manual_seed(0)
    return layer_of("lstm", sizes), torch.randn(STEPS, B, I).numpy()


def stream_runtime(sizes: Sizes, threads: int = 1, weights: str | None = None) -> Steps:
    layer, x = streamed(sizes)
    with tempfile.TemporaryDirectory() as folder:
        gatework.nn.save(layer, Path(folder) / "model")
        model = gatework.runtime.load(Path(folder) / "model", threads=threads, weights=weights)
    return Steps(lambda: model.initial_state(sizes[1]), model.step, x)


def stream_onnx(sizes: Sizes, threads: int = 1) -> Steps:
    import onnxruntime
    layer, x = streamed(sizes)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(gatework.convert.to_onnx(layer).SerializeToString(), options)
    zero = np.zeros((1, sizes[1], sizes[3]), np.float32)

    def step(x, state):
        y, h, c = session.run(None, {"input": x[None], "h_0": state[0], "c_0": state[1]})
        return y, (h, c)

    return Steps(lambda: (zero, zero), step, x)


def stream_torch(sizes: Sizes) -> Steps:
    layer, x = streamed(sizes)
    cell = torch.nn.LSTMCell(*sizes[2:])
    cell.load_state_dict({n.removesuffix("_l0"): p for n, p in layer.state_dict().items()})

    def step(x, state):
        with torch.inference_mode():
            h, c = cell(torch.from_numpy(x), state)
        return h.numpy(), (h, c)

    return Steps(lambda: tuple(torch.zeros(2, sizes[1], sizes[3])), step, x)


def by_name(how: Callable, *names: str) -> dict[str, Callable]:
    return {name: partial(how, name) for name in names}


PLAIN = partial(train, layer_of, "lstm")
SEQUENCES: dict[str, dict[str, Callable]] = {
    "ragged": by_name(ragged, OURS, "torch.nn, packed", "gatework, dense, half as long",
                      "gatework, dense, half the rows"),
    "resets": by_name(resets, OURS, "torch.nn, step by step") | {"gatework, none": PLAIN},
    "record": by_name(record, OURS, "eager loop") | {"gatework, none": PLAIN},
    "checkpoints": {OURS: checkpoints, "gatework, all kept": PLAIN},
    # One step of a small layer is too little to share.
    "streaming": {OURS: stream_runtime, "ONNX Runtime": stream_onnx, "torch.nn.LSTMCell": stream_torch},
    "large-step": {OURS: partial(stream_runtime, threads=THREADS), ONE_THREAD: stream_runtime,
                   "ONNX Runtime": partial(stream_onnx, threads=THREADS)},
    "large-step-bfloat16": {OURS: partial(stream_runtime, threads=THREADS, weights="bfloat16"),
                            ONE_THREAD: partial(stream_runtime, weights="bfloat16"),
                            "ONNX Runtime": partial(stream_onnx, threads=THREADS)},
}
