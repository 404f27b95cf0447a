"""What layers are asked for beside plain sequences: ragged batches, resets, recorded gates, checkpoints, single steps.

Each function takes sizes (T, B, I, H) and returns contestants as contestants.py does, checked before they are timed.
All are LSTMs of the same weights.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from contestants import Training, check, data
from peers import lstm_with_gates, lstm_with_resets
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gatework

RESET_RATE = 0.02  # of all steps: episodes of fifty
RECORDED = ("i", "f", "c")


def twins(sizes) -> tuple[torch.nn.LSTM, gatework.nn.LSTM]:
    torch.manual_seed(0)
    theirs, ours = torch.nn.LSTM(*sizes[2:]), gatework.nn.LSTM(*sizes[2:])
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def ragged(sizes: tuple[int, int, int, int]) -> dict:
    """Lengths drawn evenly from 1 to T, half of T in the mean.

    Two dense batches have as many valid steps: one of as many rows is half as long, so that half as many steps wait
    for each other; one that is as long has half the rows.
    """
    T, B = sizes[:2]
    x, upstream = data(sizes)
    theirs, ours = twins(sizes)
    steps = (T + 1) // 2
    lengths = 1 + torch.randperm(T)[:B] if B <= T else torch.randint(1, T + 1, (B,))
    for _ in range(100 * T * B):  # move single lengths until all steps together are those of the dense batch
        off = int(lengths.sum()) - steps * B
        if off == 0:
            break
        k = int(torch.randint(0, B, (1,)))
        lengths[k] = (lengths[k] - (1 if off > 0 else -1)).clamp(1, T)
    valid = (torch.arange(T)[:, None] < lengths)[:, :, None]
    upstream = upstream * valid

    def packed(x: Tensor) -> Tensor:
        output, _ = theirs(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(output, total_length=T)[0]

    short, narrow = (a.detach().contiguous().requires_grad_() for a in (x[:steps], x[:, :(B + 1) // 2]))
    found = {"gatework": training(lambda x: ours(x, lengths=lengths)[0], ours, x, upstream),
             "torch.nn, packed": training(packed, theirs, x, upstream),
             "gatework, dense, half as long": training(lambda x: ours(x)[0], ours, short,
                                                       upstream[:steps].contiguous()),
             "gatework, dense, half the rows": training(lambda x: ours(x)[0], ours, narrow,
                                                        upstream[:, :(B + 1) // 2].contiguous())}
    check(f"ragged {sizes}", found["gatework"].results(), found["torch.nn, packed"].results())
    return found


def resets(sizes: tuple[int, int, int, int]) -> dict:
    T, B = sizes[:2]
    x, upstream = data(sizes)
    theirs, ours = twins(sizes)
    where = torch.rand(T, B) < RESET_RATE
    found = {"gatework": training(lambda x: ours(x, resets=where)[0], ours, x, upstream),
             "torch.nn, step by step": training(lambda x: lstm_with_resets(theirs, x, where), theirs, x, upstream),
             "gatework, none": training(lambda x: ours(x)[0], ours, x, upstream)}
    check(f"resets {sizes}", found["gatework"].results(), found["torch.nn, step by step"].results())
    return found


def record(sizes: tuple[int, int, int, int]) -> dict:
    """Training while the gates are looked at: they are handed out, no gradient comes back through them."""
    x, upstream = data(sizes)
    theirs, ours = twins(sizes)
    found = {"gatework": training(lambda x: ours(x, record=RECORDED)[0], ours, x, upstream),
             "eager loop": training(lambda x: lstm_with_gates(x, *theirs.parameters())[0], theirs, x, upstream),
             "gatework, none": training(lambda x: ours(x)[0], ours, x, upstream)}
    check(f"record {sizes}", found["gatework"].results(), found["eager loop"].results())
    with torch.no_grad():
        values = lstm_with_gates(x, *theirs.parameters())[1]
        handed = ours(x, record=RECORDED)[2]
    check(f"recorded values {sizes}", [handed[f"{n}_l0"].numpy() for n in RECORDED],
          [values[n].numpy() for n in RECORDED])
    return found


def checkpoints(sizes: tuple[int, int, int, int]) -> dict:
    x, upstream = data(sizes)
    torch.manual_seed(0)
    plain = gatework.nn.LSTM(*sizes[2:])
    thrifty = gatework.nn.LSTM(*sizes[2:], checkpoint_every="auto")
    thrifty.load_state_dict(plain.state_dict())
    found = {"gatework": training(lambda x: thrifty(x)[0], thrifty, x, upstream),
             "gatework, all kept": training(lambda x: plain(x)[0], plain, x, upstream)}
    check(f"checkpoints {sizes}", found["gatework"].results(), found["gatework, all kept"].results())
    return found


def training(call: Callable[[Tensor], Tensor], layer: torch.nn.Module, x: Tensor, upstream: Tensor) -> Training:
    return Training(call, list(layer.parameters()), x, upstream)


@dataclass
class Steps:
    """T single steps, the state carried by the caller; the seconds are those of one."""

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


def streaming(sizes: tuple[int, int, int, int]) -> dict:
    """One step at a time through Python, without gradients: every contestant takes and returns its own arrays."""
    import onnxruntime
    theirs, ours = twins(sizes)
    T, B, I, H = sizes  # noqa: E741
    x = torch.randn(T, B, I).numpy()
    with tempfile.TemporaryDirectory() as folder:
        gatework.nn.save(ours, Path(folder) / "model")
        model = gatework.runtime.load(Path(folder) / "model")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # one step is too little to share
    session = onnxruntime.InferenceSession(gatework.convert.to_onnx(ours).SerializeToString(), options)
    zero = np.zeros((1, B, H), np.float32)

    def onnx_step(x, state):
        y, h, c = session.run(None, {"input": x[None], "h_0": state[0], "c_0": state[1]})
        return y, (h, c)

    cell = torch.nn.LSTMCell(I, H)
    cell.load_state_dict({n.removesuffix("_l0"): p for n, p in theirs.state_dict().items()})

    def torch_step(x, state):
        with torch.inference_mode():
            h, c = cell(torch.from_numpy(x), state)
        return h.numpy(), (h, c)

    found = {"gatework": Steps(lambda: model.initial_state(B), model.step, x),
             "ONNX Runtime": Steps(lambda: (zero, zero), onnx_step, x),
             "torch.nn.LSTMCell": Steps(lambda: tuple(torch.zeros(2, B, H)), torch_step, x)}
    expected = [theirs(torch.from_numpy(x))[0].detach().numpy()]
    for name, contestant in found.items():
        check(f"single steps of {name} {sizes}", contestant.results(), expected)
    return found
