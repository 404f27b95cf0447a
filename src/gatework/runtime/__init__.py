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

from .description import Description
from .folder import FolderError
from .model import Model
from .state import State

__all__ = ["FolderError", "Model", "State", "load"]


def load(folder: str | os.PathLike) -> Model:
    """Read a layer that `gatework.nn.save` wrote, as a model for single steps. Runs nothing that the folder brings.

    Raises FolderError, naming the file and what to do, for a folder that is not whole or holds together badly, and
    ValueError for a bidirectional layer or weights other than float32 and float64.

    >>> import gatework, numpy, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> gatework.nn.save(gatework.nn.LSTM(8, 16, num_layers=2), folder)
    >>> model = gatework.runtime.load(folder)
    >>> state = model.initial_state(streams=3)
    >>> y, state = model.step(numpy.ones((3, 8), numpy.float32), state)
    >>> y.shape, list(state)
    ((3, 16), ['h_l0', 'c_l0', 'h_l1', 'c_l1'])
    """
    folder = Path(folder)
    description, digest = Description.read(folder)
    if description.bidirectional:
        raise ValueError(f"{folder} holds a bidirectional layer, which reads the sequence from both ends, so it cannot "
                         "go step by step; save one with bidirectional=False, or use gatework.nn.load")
    if description.dtype not in ("float32", "float64"):
        raise ValueError(f"{folder} holds weights of {description.dtype}; the runtime computes in float32 or float64. "
                         "Convert the layer before it is saved: layer.float()")
    return Model(description, description.tensors(folder, digest, "numpy"))
