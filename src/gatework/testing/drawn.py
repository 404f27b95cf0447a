"""Receives a cell, hands on numbers for it, layers that have them as parameters, and what these layers make of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ..compiler import Cell
from ..nn import Recurrent

LENGTHS = {"I": 7, "H": 33}  # no multiple of any vector register, and not each other's
FURTHER = 5  # a size that only this cell names
WARM_UP = 4  # steps after which a state is one that the cell reaches by itself


class DrawError(ValueError):
    """Numbers cannot be drawn as asked; the message says what was given and what the cell has."""


class Drawn:
    """Parameters, inputs and first states, all of them numbers of float32: both precisions begin with the same.

    Inputs are normal; matrices uniform within 1 / sqrt(columns), vectors within 1/2, gains around 1. First states are
    those that the cell reaches from zero within a few steps of other inputs, so they are states that it can have.
    """

    def __init__(self, cell: Cell, sizes: Mapping[str, int], scale: float, seed: int, positive: Collection[str]):
        known = [*cell.inputs, *cell.families]
        unknown = [n for n in positive if n not in known]
        if unknown:
            raise DrawError(f"positive= names {', '.join(unknown)}; {cell.name} has {', '.join(known)} (its states "
                            "are reached by the equations, not drawn)")
        if not 0 < scale < float("inf"):
            raise DrawError(f"scale must be a number above 0; {scale!r} was given")
        self.cell, self.scale, self.positive = cell, scale, set(positive)
        self.sizes = self._sizes(sizes)
        self.random = torch.Generator().manual_seed(seed)
        layer = self._empty(torch.float64, bidirectional=True, initial_state=True)
        for direction in layer.all_weights:
            for family, weight in zip(cell.families.values(), direction):
                weight.data.copy_(self._parameter(family, weight.shape))
        self.parameters = layer.state_dict()
        for s, reached in zip(cell.states, self._reached(1)):
            for suffix, value in zip(("_l0", "_l0_reverse"), reached):
                self.parameters[f"initial_{s}{suffix}"].copy_(value[0])

    def _sizes(self, given: Mapping[str, int]) -> dict[str, int]:
        unknown = [s for s in given if s not in self.cell.sizes]
        if unknown:
            raise DrawError(f"{self.cell.name} has the sizes {', '.join(self.cell.sizes)}; sizes= gives "
                            f"{', '.join(unknown)}")
        lengths = LENGTHS | dict(given)
        units = lengths["H"]
        lengths.setdefault("D", next((units // n for n in range(2, units) if units % n == 0), 1))
        return {s: lengths.get(s, FURTHER) for s in self.cell.sizes}

    def _empty(self, dtype: torch.dtype, **options) -> Recurrent:
        further = {s: n for s, n in self.sizes.items() if s not in LENGTHS}
        return Recurrent(self.cell, self.sizes["I"], self.sizes["H"], sizes=further, dtype=dtype, **options)

    def layer(self, backend: str = "cpu", dtype: torch.dtype = torch.float64, **options) -> Recurrent:
        """A layer with the drawn parameters; of both directions, with learned first states, unless options say."""
        layer = self._empty(dtype, backend=backend, **{"bidirectional": True, "initial_state": True} | options)
        layer.load_state_dict({n: self.parameters[n] for n in layer.state_dict()})
        return layer

    def _normal(self, *shape: int) -> Tensor:
        return self.scale * torch.randn(shape, generator=self.random)

    def _parameter(self, family, shape) -> Tensor:
        value = 2.0 * torch.rand(shape, generator=self.random) - 1.0
        value *= shape[1]**-0.5 if len(shape) == 2 else 0.5
        if family.kind == "Gain":
            value = 1.0 + 0.5 * value
        return self.scale * (value.abs() if family.name in self.positive else value)

    def inputs(self, steps: int, rows: int) -> dict[str, Tensor]:
        """[T, B, size] each, [B, size] for a Constant, in float64."""
        made = {}
        for name, e in self.cell.inputs.items():
            lead = (rows,) if e.op == "constant" else (steps, rows)
            value = self._normal(*lead, *([self.sizes[d] for d in e.dims] or [1]))
            made[name] = (value.abs() if name in self.positive else value).double()
        return made

    def values(self, steps: int, rows: int) -> dict[str, Tensor]:
        """Inputs, and first states [2, B, size] as "first h"."""
        return self.inputs(steps, rows) | {f"first {s}": v for s, v in zip(self.cell.states, self._reached(rows))}

    def _reached(self, rows: int) -> list[Tensor]:
        with torch.no_grad():
            made = call(self.layer("reference", initial_state=False), self.inputs(WARM_UP, rows))
        return [made[f"last {s}"].float().double() for s in self.cell.states]


def call(layer: Recurrent, values: Mapping[str, Tensor], **how) -> dict[str, Tensor]:
    """What a layer returns, by name; from its initial states where the values have none."""
    first, *further = layer.cell.inputs
    states = [values[f"first {s}"] for s in layer.cell.states if f"first {s}" in values]
    output, last, *recorded = layer(values[first], states or None, **{n: values[n] for n in further}, **how)
    last = [last] if isinstance(last, Tensor) else last
    made = {"output": output} | {f"last {s}": v for s, v in zip(layer.cell.states, last)}
    return made | {f"recorded {n}": v for r in recorded for n, v in r.items()}


def outcome(make, layer: Recurrent, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The results `make(layer, values)` and, by name, the gradients of values and parameters.

    They belong to the sum of all results, each number of them with a weight of its own: always the same weights for
    results of the same names and shapes.
    """
    dtype = layer.first_parameter.dtype
    leaves = {n: v.to(dtype, copy=True).requires_grad_() for n, v in values.items()}
    made = make(layer, leaves)
    weights = weights_for(made)
    leaves |= layer.named_parameters()
    used = [n for n, y in made.items() if y.requires_grad]
    gradients = torch.autograd.grad([made[n] for n in used], list(leaves.values()), [weights[n] for n in used],
                                    materialize_grads=True)
    return {n: y.detach() for n, y in made.items()} | {f"gradient of {n}": g for n, g in zip(leaves, gradients)}


def weights_for(made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    return {n: torch.randn(y.shape, generator=random).to(y.dtype) for n, y in made.items()}
