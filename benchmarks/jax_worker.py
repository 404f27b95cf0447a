"""The JAX peer, in a process of its own: two thread pools in one process would fight for the cores.

Reads one JSON object a line. {"cell", "file"}: load x, the upstream gradient and the parameters from the .npz file,
compile the scan with its gradients, and answer with the file of results. {"run": n}: answer with the seconds of n
repetitions of output and all gradients. The process inherits the cores that the benchmark is pinned to.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid


def peephole_lstm(x, W, U, p, b):
    pi, pf, po = jnp.split(p, 3)

    def step(state, wx):
        h, c = state
        i, f, g, o = jnp.split(wx + h @ U.T, 4, -1)
        i, f = sigmoid(i + pi * c), sigmoid(f + pf * c)
        c = f * c + i * jnp.tanh(g)
        h = sigmoid(o + po * c) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((x.shape[1], U.shape[1]), x.dtype)
    return jax.lax.scan(step, (zero, zero), x @ W.T + b)[1]


def leaky_memory(x, W, U, q, r, b):
    leak = sigmoid(r)

    def step(state, wx):
        h, m = state
        k, n, s = jnp.split(wx + h @ U.T, 3, -1)
        k = sigmoid(k)
        m = leak * k * m + (1.0 - k) * jnp.tanh(n)
        h = sigmoid(s + q * m) * jnp.tanh(m)
        return (h, m), h

    zero = jnp.zeros((x.shape[1], U.shape[1]), x.dtype)
    return jax.lax.scan(step, (zero, zero), x @ W.T + b)[1]


CELLS = {"peephole": peephole_lstm, "own": leaky_memory}


def build(name, file):
    with np.load(file) as stored:
        values = [jax.device_put(stored[f"arr_{k}"]) for k in range(len(stored.files))]
    upstream, *given = values

    @jax.jit
    def train(upstream, *given):
        output, pull = jax.vjp(CELLS[name], *given)
        return output, pull(upstream)

    def run():
        return jax.block_until_ready(train(upstream, *given))

    output, gradients = run()
    results = file.replace(".npz", "-results.npz")
    np.savez(results, output, *gradients)
    return run, results


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main():
    run = None
    for line in sys.stdin:
        request = json.loads(line)
        if "cell" in request:
            run, results = build(request["cell"], request["file"])
            answer = {"file": results, "version": jax.__version__}
        else:
            answer = {"seconds": [timed(run) for _ in range(request["run"])]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
