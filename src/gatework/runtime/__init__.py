"""Saved layers without torch, step by step: numpy arrays in, numpy arrays out, and a state that is in your hands.

    folder        a model as two files, bound by a digest
    description   what the tensors of a saved layer mean
    model         step, run, initial_state
    state         the named arrays of several streams

It needs numpy, llvmlite and safetensors. `gatework.nn.save` writes the folders.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..backends.cpu.target import target
from .description import Description
from .folder import FolderError
from .model import Model
from .state import State

MOST_THREADS = 256  # more is a mistake; each is a thread that waits awake

__all__ = ["FolderError", "Model", "State", "load"]


def load(folder: str | os.PathLike, *, threads: int = 1, weights: str | None = None,
         products: str | None = None) -> Model:
    """Read a layer that `gatework.nn.save` wrote, as a model for single steps. Runs nothing that the folder brings.

    threads: how many may work on one call, if it is large enough (from about H 180 on for one stream of an LSTM, and
        from fewer in `run`). All but the caller's wait awake for about a millisecond after each call, and take part in
        those that follow at once: more than one shortens the wait for a result, and costs more time of processors.
        The bits are the same.
    weights: "bfloat16" rounds the matrices of a float32 layer to three digits, and so halves the memory that a step
        reads: from H 256 on, where few streams wait for weights more than for arithmetic, it takes up to half the
        time. States, vectors and sums stay float32. None takes the weights as they were saved.
    products: "bfloat16" rounds what the matrices multiply as well, step by step, as autocast does: twice the arithmetic
        in the same time, which pays with several streams and in `run`. It needs a processor that multiplies bfloat16
        (AMX, AVX512-BF16). None multiplies float32, or float64.

    Raises FolderError, naming the file and what to do, for a folder that is not whole or holds together badly, and
    ValueError for a bidirectional layer, weights other than float32 and float64, a number of threads that is none, or
    products that the processor does not have.

    >>> import gatework, numpy, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> gatework.nn.save(gatework.nn.LSTM(8, 16, num_layers=2), folder)
    >>> model = gatework.runtime.load(folder)
    >>> state = model.initial_state(streams=3)
    >>> y, state = model.step(numpy.ones((3, 8), numpy.float32), state)
    >>> y.shape, list(state)
    ((3, 16), ['h_l0', 'c_l0', 'h_l1', 'c_l1'])
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads must be a whole number from 1 to {MOST_THREADS}; {threads!r} was given")
    folder = Path(folder)
    for name, given in (("weights", weights), ("products", products)):
        if given not in (None, "bfloat16"):
            raise ValueError(f'{name} must be None, as the weights were saved, or "bfloat16"; {given!r} was given')
    if products and not target().multiplies_bfloat16:
        raise ValueError('products="bfloat16" needs a processor that multiplies bfloat16 (AMX, AVX512-BF16); this one '
                         'does not. weights="bfloat16" rounds the weights alone, on every processor')
    description, digest = Description.read(folder)
    if description.bidirectional:
        raise ValueError(f"{folder} holds a bidirectional layer, which reads the sequence from both ends, so it cannot "
                         "go step by step; save one with bidirectional=False, or use gatework.nn.load")
    if description.dtype not in ("float32", "float64"):
        raise ValueError(f"{folder} holds weights of {description.dtype}; the runtime computes in float32 or float64. "
                         "Convert the layer before it is saved: layer.float()")
    rounded = "products" if products else "weights" if weights else ""
    if rounded and description.dtype != "float32":
        raise ValueError(f'{rounded}="bfloat16" needs a layer of float32, {folder} holds one of {description.dtype}; '
                         f"leave out {rounded}=, or convert the layer before it is saved: layer.float()")
    return Model(description, description.tensors(folder, digest, "numpy"), threads, rounded)
