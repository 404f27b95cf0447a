"""The peers written by hand: the equations as a loop in eager torch, with the input product taken out of the loop.

Each takes the input [T, B, I] and the parameters in the order of the cell, and returns the output [T, B, size]. Those
in EAGER are also what `torch.jit.script` and `torch.compile` are given, so they keep to what TorchScript understands.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def peephole_lstm(x: Tensor, W: Tensor, U: Tensor, p: Tensor, b: Tensor) -> Tensor:
    h = c = x.new_zeros([x.shape[1], U.shape[1]])
    pi, pf, po = p.chunk(3)
    outputs = []
    for wx in functional.linear(x, W, b).unbind():
        i, f, g, o = (wx + functional.linear(h, U)).chunk(4, -1)
        i, f = torch.sigmoid(i + pi * c), torch.sigmoid(f + pf * c)
        c = f * c + i * torch.tanh(g)
        h = torch.sigmoid(o + po * c) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs)


def coupled_lstm(x: Tensor, W: Tensor, U: Tensor, b: Tensor) -> Tensor:
    h = c = x.new_zeros([x.shape[1], U.shape[1]])
    outputs = []
    for wx in functional.linear(x, W, b).unbind():
        i, g, o = (wx + functional.linear(h, U)).chunk(3, -1)
        c = torch.lerp(c, torch.tanh(g), torch.sigmoid(i))
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs)


def layer_norm_lstm(x: Tensor, W: Tensor, U: Tensor, gx: Tensor, gh: Tensor, gc: Tensor, b: Tensor) -> Tensor:
    H = U.shape[1]
    h = c = x.new_zeros([x.shape[1], H])
    bias, shift = b[:4 * H], b[4 * H:]
    outputs = []
    for wx in functional.layer_norm(functional.linear(x, W), [4 * H], gx, bias).unbind():
        i, f, g, o = (wx + functional.layer_norm(functional.linear(h, U), [4 * H], gh)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(functional.layer_norm(c, [H], gc, shift))
        outputs.append(h)
    return torch.stack(outputs)


def projected_lstm(x: Tensor, W: Tensor, U: Tensor, b: Tensor, d: Tensor, R: Tensor) -> Tensor:
    h, c = x.new_zeros([x.shape[1], R.shape[0]]), x.new_zeros([x.shape[1], R.shape[1]])
    outputs = []
    for wx in functional.linear(x, W, b + d).unbind():
        i, f, g, o = (wx + functional.linear(h, U)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = functional.linear(torch.sigmoid(o) * torch.tanh(c), R)
        outputs.append(h)
    return torch.stack(outputs)


def gru_reset_before(x: Tensor, W: Tensor, U: Tensor, b: Tensor) -> Tensor:
    H = U.shape[1]
    h = x.new_zeros([x.shape[1], H])
    gates, candidate = U[:2 * H], U[2 * H:]
    outputs = []
    for wx in functional.linear(x, W, b).unbind():
        r, z = torch.sigmoid(wx[:, :2 * H] + functional.linear(h, gates)).chunk(2, -1)
        n = torch.tanh(wx[:, 2 * H:] + functional.linear(r * h, candidate))
        h = torch.lerp(n, h, z)
        outputs.append(h)
    return torch.stack(outputs)


def leaky_memory(x: Tensor, W: Tensor, U: Tensor, q: Tensor, r: Tensor, b: Tensor) -> Tensor:
    h = m = x.new_zeros([x.shape[1], U.shape[1]])
    leak = torch.sigmoid(r)
    outputs = []
    for wx in functional.linear(x, W, b).unbind():
        k, n, s = (wx + functional.linear(h, U)).chunk(3, -1)
        k = torch.sigmoid(k)
        m = leak * k * m + (1.0 - k) * torch.tanh(n)
        h = torch.sigmoid(s + q * m) * torch.tanh(m)
        outputs.append(h)
    return torch.stack(outputs)


EAGER = {"peephole": peephole_lstm, "coupled": coupled_lstm, "layer-norm": layer_norm_lstm,
         "projected": projected_lstm, "reset-before": gru_reset_before, "own": leaky_memory}


def lstm_with_gates(x: Tensor, W: Tensor, U: Tensor, b: Tensor, d: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The plain LSTM, and what its input gate, forget gate and cell state were."""
    h = c = x.new_zeros(x.shape[1], U.shape[1])
    outputs, values = [], {"i": [], "f": [], "c": []}
    for wx in functional.linear(x, W, b + d).unbind():
        i, f, g, o = (wx + functional.linear(h, U)).chunk(4, -1)
        i, f = torch.sigmoid(i), torch.sigmoid(f)
        c = f * c + i * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
        for name, value in zip(values, (i, f, c)):
            values[name].append(value)
    return torch.stack(outputs), {name: torch.stack(v) for name, v in values.items()}


def lstm_with_resets(layer: torch.nn.LSTM, x: Tensor, resets: Tensor) -> Tensor:
    """torch.nn.LSTM called for every step, its state set to 0 where the row begins anew, as recurrent PPO does it."""
    state = tuple(x.new_zeros(2, 1, x.shape[1], layer.hidden_size))
    outputs = []
    for step, reset in zip(x.split(1), resets):
        keep = (~reset).to(x.dtype)[None, :, None]
        y, state = layer(step, tuple(s * keep for s in state))
        outputs.append(y)
    return torch.cat(outputs)
