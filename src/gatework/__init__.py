"""Recurrent networks from their equations.

The package in the order in which a cell travels through it:

    cells       the catalogue: one file per cell, equations only
    compiler    equations -> graph -> derivative -> time loops
    backends    time loops -> code: cpu (LLVM), reference (a loop in torch)
    autograd    compiled loops as one torch operator
    nn          the operator as layers: Recurrent, LSTM, GRU, RNN, PeepholeLSTM, CoupledLSTM, ...
    runtime     saved layers, step by step, without torch
    convert     layers to and from torch.nn, Keras, Flax and ONNX
    testing     check_cell: is a cell of your own right, in all that a layer can do with it?
    recipes     layers at work on a task
    cli         the command `gatework`

`cells`, `compiler`, `backends.cpu` and `runtime` work without torch; what stands below `compiler` is imported on first
use.
"""

import importlib

from . import cells, compiler
from .compiler import CellError, trace

__version__ = "0.1.0"
_ON_FIRST_USE = ("autograd", "backends", "convert", "nn", "recipes", "runtime", "testing")
__all__ = ["CellError", "cells", "compiler", "convert", "nn", "recipes", "runtime", "testing", "trace"]


def __getattr__(name: str):
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
