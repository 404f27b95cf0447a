"""The way into torch: one operator that runs any compiled cell over a whole sequence."""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .backends import reference
from .compiler import Cell

BACKENDS = ("auto", "cpu", "reference")


def scan(cell: Cell, inputs: Sequence[Tensor], states: Sequence[Tensor], parameters: Sequence[Tensor],
         reverse: bool = False, backend: str = "auto") -> tuple[Tensor, list[Tensor]]:
    output, last, _ = reference.run(cell, inputs, states, parameters, reverse)
    return output, last
