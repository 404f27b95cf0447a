"""Receives a layer and a plain input, hands on results by the shortest way: one such call has settled what others need.

Plain is a call of one layer in one direction with a dense batch and nothing else, which begins at zeros. All checks and
choices have been made when the first of its kind has gone the whole way. Later ones only make sure that nothing has
changed: at small sizes the whole way takes longer than the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..autograd import Plan, planned

MOST_KINDS = 64  # then they begin anew


@dataclass
class _Settled:
    plan: Plan
    first: list[Tensor]         # states
    shapes: list[torch.Size]    # of the parameters


class Plain:
    """The kinds of plain calls that a layer has had."""

    def __init__(self) -> None:
        self._known: dict[tuple, _Settled] = {}

    def __call__(self, layer, x: Tensor):
        """What the layer makes of x; None where nothing like it has been settled."""
        if type(x) is not Tensor:
            return None
        settled = self._known.get(_kind(layer, x))
        if settled is None:
            return None
        own, dtype = layer._parameters, x.dtype
        parameters = [own.get(name) for name in layer._names[0]]
        for p, shape in zip(parameters, settled.shapes):
            if p is None or p.dtype is not dtype or p.shape != shape or not p.is_cpu:
                return None
        made = settled.plan(x.transpose(0, 1) if layer.batch_first else x, settled.first, parameters)
        if made is None:
            return None
        (output,), last = made
        last = [s.unsqueeze(0) for s in last]
        return output.transpose(0, 1) if layer.batch_first else output, last[0] if len(last) == 1 else tuple(last)

    def settle(self, layer, x: Tensor) -> None:
        """Remember how the layer has made its results of x, if that was plain."""
        if (type(x) is not Tensor or x.dim() != 3 or layer.num_layers > 1 or layer.bidirectional or layer.initial_state
                or layer._random is not None):
            return
        parameters = [layer._parameters.get(name) for name in layer._names[0]]
        if None in parameters:  # parametrized
            return
        steps = x.transpose(0, 1) if layer.batch_first else x
        first = layer._initial(steps.shape[1], x)[0]
        plan = planned(layer.evaluation_cell, steps, first, parameters, layer.backend, layer.checkpoint_every)
        if plan is not None:
            if len(self._known) >= MOST_KINDS:
                self._known.clear()
            self._known[_kind(layer, x)] = _Settled(plan, first, [p.shape for p in parameters])


def _kind(layer, x: Tensor) -> tuple:
    return x.shape, x.dtype, x.is_cpu, layer.backend, layer.checkpoint_every, layer.batch_first
