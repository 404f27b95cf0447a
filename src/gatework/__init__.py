"""Recurrent networks from their equations.

The package in the order in which a cell travels through it:

    cells       the catalogue: one file per cell, equations only
    compiler    equations -> graph -> derivative -> time loops
    backends    time loops -> code: cpu (LLVM), reference (a loop in torch)
    autograd    compiled loops as one torch operator
    nn          the operator as layers: Recurrent, LSTM, GRU, RNN, PeepholeLSTM, CoupledLSTM
    recipes     layers at work on a task
    cli         the command `gatework`

`cells`, `compiler` and `backends.cpu` work without torch; `nn` and `recipes` are imported on first use.
"""

import importlib

from . import cells, compiler
from .compiler import CellError, trace

__version__ = "0.1.0"
__all__ = ["CellError", "cells", "compiler", "nn", "recipes", "trace"]


def __getattr__(name: str):
    if name in ("nn", "recipes", "autograd", "backends"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
