"""Receives a kernel and a long sequence, hands on exact gradients in the memory of a few stretches of it.

Of the forward pass only the first states of every stretch are kept; the backward pass computes one stretch after the
other again, from the last one on.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor

from ..backends.batch import Batch
from ..backends.kernel import Kernel
from ..compiler import Cell
from .calls import Call

# Rows in a stretch, at the least, where the distance is not said: shorter products do not fill the machine.
LEAST_ROWS = 1024


def distance(steps: int, rows: int, every: int | str | None) -> int:
    """Steps from one checkpoint to the next; all of them for None."""
    if every is None:
        return steps
    return max(isqrt(steps), -(-LEAST_ROWS // rows)) if every == "auto" else every


def forward(kernel: Kernel, batch: Batch, every: int, inputs: Sequence[Tensor], states: Sequence[Tensor],
            parameters: Sequence[Tensor], reverse: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs, last states, and for each state the first values of every stretch, [stretches, B, size]."""
    spans = _spans(batch, every)
    handed: list[Tensor] = []
    starts = [s.new_empty(len(spans), *s.shape) for s in states]
    for number in reversed(range(len(spans))) if reverse else range(len(spans)):
        span = spans[number]
        for start, s in zip(starts, states):
            start[number] = s
        part, xs = batch.slice(*span), _stretch(kernel.cell, batch, span, inputs)
        pieces, states, _ = Call.of(kernel, part, (part.total,), reverse).forward([*xs, *states, *parameters], False)
        handed = handed or [y.new_empty(batch.total, y.shape[1]) for y in pieces]
        for whole, piece in zip(handed, pieces):
            whole[_places(batch, span)] = piece
    return handed, states, starts


def backward(kernel: Kernel, batch: Batch, every: int, upstream: Sequence[Tensor | None],
             last: Sequence[Tensor | None], inputs: Sequence[Tensor], states: Sequence[Tensor],
             parameters: Sequence[Tensor], starts: Sequence[Tensor], reverse: bool,
             needs: Sequence[bool]) -> list[Tensor | None]:
    """The gradients that `Kernel.backward` finds with all kept."""
    spans, cell = _spans(batch, every), kernel.cell
    a, b = len(inputs), len(inputs) + len(states)
    sequences = [e.op == "input" for e in cell.inputs.values()]
    # Gradients of sequences are written stretch by stretch, those of all that is the same in each are added up.
    total: list[Tensor | None] = [torch.empty_like(x) if need and sequence else None
                                  for x, need, sequence in zip(inputs, needs, sequences)] + [None] * (len(needs) - a)
    for number in range(len(spans)) if reverse else reversed(range(len(spans))):
        span = spans[number]
        part, places = batch.slice(*span), _places(batch, span)
        first, xs = [s[number] for s in starts], _stretch(cell, batch, span, inputs)
        tensors = [*xs, *first, *parameters]
        call = Call.of(kernel, part, (part.total,), reverse)
        handed, _, kept = call.forward(tensors, True)
        made = call.backward([None if d is None else d[places] for d in upstream], last, tensors, handed, kept,
                             (*needs[:a], *[True] * (b - a), *needs[b:]))
        last = made[a:b]
        for k, d in enumerate(made):
            if d is None or a <= k < b:
                continue
            if k < a and sequences[k]:
                total[k][places] = d
            else:
                total[k] = d if total[k] is None else total[k].add_(d)
    total[a:b] = [d if need else None for d, need in zip(last, needs[a:b])]
    return total


def _spans(batch: Batch, every: int) -> list[tuple[int, int]]:
    return [(t, min(t + every, batch.steps)) for t in range(0, batch.steps, every)]


def _places(batch: Batch, span: tuple[int, int]) -> slice:
    """Where the steps of a span lie in a sequence."""
    return slice(int(batch.offsets[span[0]]), int(batch.offsets[span[1]]))


def _stretch(cell: Cell, batch: Batch, span: tuple[int, int], inputs: Sequence[Tensor]) -> list[Tensor]:
    places = _places(batch, span)
    return [x if e.op == "constant" else x[places] for e, x in zip(cell.inputs.values(), inputs)]
