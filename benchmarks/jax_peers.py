"""The JAX peers: jitted scans, with the input product taken out of the loop, like the loops of peers.py.

Each cell takes the input [T, B, I] and the parameters in the order of the cell, and returns the output [T, B, size].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid


def zeros(x, size):
    return jnp.zeros((x.shape[1], size), x.dtype)


def norm(a, gain):
    centred = a - a.mean(-1, keepdims=True)
    return gain * centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)


def elman(x, W, U, b, d):
    def step(h, wx):
        h = jnp.tanh(wx + h @ U.T)
        return h, h

    return jax.lax.scan(step, zeros(x, U.shape[1]), x @ W.T + (b + d))[1]


def lstm(x, W, U, b, d):
    def step(state, wx):
        h, c = state
        i, f, g, o = jnp.split(wx + h @ U.T, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = zeros(x, U.shape[1])
    return jax.lax.scan(step, (zero, zero), x @ W.T + (b + d))[1]


def gru(x, W, U, b, d):
    def step(h, wx):
        (wr, wz, wn), (ur, uz, un) = jnp.split(wx, 3, -1), jnp.split(h @ U.T + d, 3, -1)
        r, z = sigmoid(wr + ur), sigmoid(wz + uz)
        n = jnp.tanh(wn + r * un)
        h = (1.0 - z) * n + z * h
        return h, h

    return jax.lax.scan(step, zeros(x, U.shape[1]), x @ W.T + b)[1]


def peephole_lstm(x, W, U, p, b):
    pi, pf, po = jnp.split(p, 3)

    def step(state, wx):
        h, c = state
        i, f, g, o = jnp.split(wx + h @ U.T, 4, -1)
        i, f = sigmoid(i + pi * c), sigmoid(f + pf * c)
        c = f * c + i * jnp.tanh(g)
        h = sigmoid(o + po * c) * jnp.tanh(c)
        return (h, c), h

    zero = zeros(x, U.shape[1])
    return jax.lax.scan(step, (zero, zero), x @ W.T + b)[1]


def coupled_lstm(x, W, U, b):
    def step(state, wx):
        h, c = state
        i, g, o = jnp.split(wx + h @ U.T, 3, -1)
        i = sigmoid(i)
        c = (1.0 - i) * c + i * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = zeros(x, U.shape[1])
    return jax.lax.scan(step, (zero, zero), x @ W.T + b)[1]


def layer_norm_lstm(x, W, U, gx, gh, gc, b):
    bias, shift = b[:len(gx)], b[len(gx):]

    def step(state, wx):
        h, c = state
        i, f, g, o = jnp.split(wx + norm(h @ U.T, gh), 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(norm(c, gc) + shift)
        return (h, c), h

    zero = zeros(x, U.shape[1])
    return jax.lax.scan(step, (zero, zero), norm(x @ W.T, gx) + bias)[1]


def projected_lstm(x, W, U, b, d, R):
    def step(state, wx):
        h, c = state
        i, f, g, o = jnp.split(wx + h @ U.T, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        h = (sigmoid(o) * jnp.tanh(c)) @ R.T
        return (h, c), h

    return jax.lax.scan(step, (zeros(x, R.shape[0]), zeros(x, R.shape[1])), x @ W.T + (b + d))[1]


def gru_reset_before(x, W, U, b):
    H = U.shape[1]
    gates, candidate = U[:2 * H].T, U[2 * H:].T

    def step(h, wx):
        r, z = jnp.split(sigmoid(wx[:, :2 * H] + h @ gates), 2, -1)
        n = jnp.tanh(wx[:, 2 * H:] + (r * h) @ candidate)
        h = (1.0 - z) * n + z * h
        return h, h

    return jax.lax.scan(step, zeros(x, H), x @ W.T + b)[1]


def leaky_memory(x, W, U, q, r, b):
    leak = sigmoid(r)

    def step(state, wx):
        h, m = state
        k, n, s = jnp.split(wx + h @ U.T, 3, -1)
        k = sigmoid(k)
        m = leak * k * m + (1.0 - k) * jnp.tanh(n)
        h = sigmoid(s + q * m) * jnp.tanh(m)
        return (h, m), h

    zero = zeros(x, U.shape[1])
    return jax.lax.scan(step, (zero, zero), x @ W.T + b)[1]


CELLS = {"lstm": lstm, "gru": gru, "rnn": elman, "peephole": peephole_lstm, "coupled": coupled_lstm,
         "layer-norm": layer_norm_lstm, "projected": projected_lstm, "reset-before": gru_reset_before,
         "own": leaky_memory}


class Scan:
    """A jitted function of arrays as a contestant; see contestants.py for what it has."""

    def __init__(self, function: Callable, given: Sequence[np.ndarray]):
        self.function, self.given = jax.jit(function), [jax.device_put(a) for a in given]

    def results(self) -> list[np.ndarray]:
        return [np.asarray(v) for v in self.function(*self.given)]

    def run(self, repetitions: int) -> list[float]:
        seconds = []
        for _ in range(repetitions):
            start = time.perf_counter()
            jax.block_until_ready(self.function(*self.given))
            seconds.append(time.perf_counter() - start)
        return seconds


def training(cell: str, given: Sequence[np.ndarray], upstream: np.ndarray) -> Scan:
    """Output and gradients of `given`, which are the input and the parameters."""
    def train(upstream, *given):
        output, pull = jax.vjp(CELLS[cell], *given)
        return output, *pull(upstream)

    return Scan(train, [upstream, *given])


def inference(cell: str, given: Sequence[np.ndarray]) -> Scan:
    return Scan(lambda *given: [CELLS[cell](*given)], given)
