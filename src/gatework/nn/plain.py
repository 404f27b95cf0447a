"""Receives a layer and a plain input, hands on results by the shortest way: one such call has settled what others need.

Plain is a call of one layer in one direction, given first states or none, with lengths or resets or neither, recording
or not, under autocast or not. All checks and choices have been made when the first of its kind has gone the whole way.
Later ones only make sure that nothing has changed: at small sizes the whole way takes longer than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..autograd import Plan, planned
from ..autograd.ragged import Ragged
from .arguments import check_lengths
from .resets import after_steps, begin_anew

MOST_KINDS = 64  # then they begin anew


@dataclass
class _Settled:
    plan: Plan
    outputs: tuple[str, ...]
    first: list[Tensor]         # states, of calls that are given none
    shapes: list[torch.Size]    # of the parameters


class Plain:
    """The kinds of plain calls that a layer has had."""

    def __init__(self) -> None:
        self._known: dict[tuple, _Settled] = {}

    def __call__(self, layer, x: Tensor, hx, lengths, resets: Tensor | None, recorded: tuple[str, ...]
                 ) -> tuple[Tensor, list[Tensor], dict[str, Tensor]] | None:
        """Output, last states and recorded values of a layer; None where nothing like this call has been settled."""
        settled = self._known.get(_kind(layer, x, lengths, resets, recorded)) if type(x) is Tensor else None
        if settled is None or resets is not None and not _fit(resets, x):
            return None
        own, dtype = layer._parameters, settled.first[0].dtype
        parameters = [own.get(name) for name in layer._names[0]]
        for p, shape in zip(parameters, settled.shapes):
            if p is None or p.dtype is not dtype or p.shape != shape or not p.is_cpu:
                return None
        first = settled.first if hx is None else _states(hx, settled.first)
        if first is None:
            return None
        if lengths is not None:
            rows, steps = settled.first[0].shape[0], x.shape[1 if layer.batch_first else 0]
            lengths = check_lengths(lengths, rows, steps)
            if not (lengths.numpy() == steps).all():
                ragged = Ragged.of_lengths(lengths, steps, layer.batch_first, x.device)
                made = settled.plan([x], first, parameters, ragged, layer.batch_first)
                return None if made is None else self._results(settled, *made, recorded)
        inputs = [x.transpose(0, 1) if layer.batch_first else x]
        if resets is not None:
            resets = resets.transpose(0, 1) if layer.batch_first else resets
            inputs.append(after_steps(resets, False, dtype).unsqueeze(2))
            if hx is not None:
                first = begin_anew(resets[0], settled.first, first)
        made = settled.plan(inputs, first, parameters)
        if made is None:
            return None
        handed, last = made
        if layer.batch_first:
            handed = [y.transpose(0, 1) for y in handed]
            if lengths is not None:  # a padded output has one form, whatever the lengths are
                handed = [y.contiguous() for y in handed]
        return self._results(settled, handed, last, recorded)

    @staticmethod
    def _results(settled: _Settled, handed: Sequence[Tensor], last: Sequence[Tensor], recorded: tuple[str, ...]
                 ) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        records = {}
        if recorded:
            named = dict(zip(settled.outputs, handed))
            records = {f"{name}_l0": named[name] for name in recorded}
        return handed[0], list(last), records

    def settle(self, layer, x: Tensor, lengths, resets: Tensor | None, recorded: tuple[str, ...]) -> None:
        """Remember how the layer has made its results of x, if that was plain."""
        # Where `planned` would have nothing to offer, no first state is made for it.
        if (type(x) is not Tensor or not x.is_cpu or layer.backend in ("gpu", "reference") or x.dim() != 3
                or layer.num_layers > 1 or layer.bidirectional or layer.initial_state or layer._random is not None
                or (lengths is not None and resets is not None)):
            return
        parameters = [layer._parameters.get(name) for name in layer._names[0]]
        if None in parameters:  # parametrized
            return
        cell, inputs = layer.evaluation_cell, [x.transpose(0, 1) if layer.batch_first else x]
        outputs = (cell.output, *(n for n in recorded if n != cell.output))
        if resets is not None:
            cell = layer.evaluation_cell_with_resets
            inputs.append(inputs[0][:, :, :1])
        with torch.inference_mode(False):  # or a training step could not use them
            first = layer._initial(inputs[0].shape[1], x)[0]
        plan = planned(cell, inputs, first, parameters, layer.backend, layer.checkpoint_every, outputs)
        if plan is not None:
            if len(self._known) >= MOST_KINDS:
                self._known.clear()
            settled = _Settled(plan, outputs, first, [p.shape for p in parameters])
            self._known[_kind(layer, x, lengths, resets, recorded)] = settled


def _kind(layer, x: Tensor, lengths, resets: Tensor | None, recorded: tuple[str, ...]) -> tuple:
    shape = x.shape
    if lengths is not None and layer.checkpoint_every is None and len(shape) == 3 and 0 not in shape:
        shape = (shape[0 if layer.batch_first else 1], shape[2])  # a padded batch is as long as its longest row
    return (shape, x.dtype, x.is_cpu, torch.is_autocast_enabled("cpu"), layer.backend, layer.checkpoint_every,
            layer.batch_first, lengths is None, resets is None, recorded)


def _fit(resets: Tensor, x: Tensor) -> bool:
    """Whether these are resets for this input; others are for the whole way to refuse."""
    return type(resets) is Tensor and resets.dtype is torch.bool and resets.shape == x.shape[:2] and resets.is_cpu


def _states(hx, like: list[Tensor]) -> list[Tensor] | None:
    """The states that a call is given, [1, B, size] each, as [B, size]; None where they do not fit."""
    states = (hx,) if type(hx) is Tensor else hx
    if not isinstance(states, (tuple, list)) or len(states) != len(like):
        return None
    for s, zeros in zip(states, like):
        if type(s) is not Tensor or s.shape != (1, *zeros.shape) or s.dtype is not zeros.dtype or not s.is_cpu:
            return None
    return [s.squeeze(0) for s in states]
