"""Cells, arrays for them, and their outputs and gradients, for the tests of the fused kernels."""

from __future__ import annotations

import my_cells
import torch

from gatework import autograd, cells
from gatework.backends.reference import dense
from gatework.compiler import Cell, trace

# Between them they use all of the notation; test_cells.py runs every other cell of the catalogue.
CORE = ["coupled_lstm", "elman", "gru", "gru_reset_before", "lstm", "peephole_lstm", "projected_lstm"]
CELLS = [trace(f) for f in (*(getattr(cells, name) for name in CORE), *my_cells.CELLS)]
PROJECTION, ATTRIBUTES = 7, 2


class Example:
    """Inputs, first states, parameters and upstream gradients of one call, drawn in float64."""

    def __init__(self, cell: Cell, T: int, B: int, I: int, H: int, dtype=torch.float64, seed: int = 0):
        self.cell, self.dtype = cell, dtype
        # as many heads as H allows, 1 for a prime
        heads = next(n for n in (3, 2, 17, 19, 11, 1) if H % n == 0)
        lengths = {"I": I, "H": H, "P": PROJECTION, "S": ATTRIBUTES, "D": H // heads}
        self.sizes = {name: lengths[name] for name in cell.sizes}
        self.random = torch.Generator().manual_seed(seed)
        lead = {"constant": (B,)}
        self.inputs = [self._normal(*lead.get(e.op, (T, B)), *self._shape(e)) for e in cell.inputs.values()]
        self.states = [self._normal(B, *self._shape(e)) for e in cell.states.values()]
        self.parameters = [self._parameter(f) for f in cell.families.values()]
        output = cell.states[cell.output]
        self.upstream = [self._normal(T, B, *self._shape(output)),
                         *(self._normal(B, *self._shape(e)) for e in cell.states.values())]

    def _shape(self, e) -> list[int]:
        return [self.sizes[d] for d in e.dims] or [1]

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.random).to(self.dtype)

    def _parameter(self, family) -> torch.Tensor:
        """Matrices as layers draw them; vectors positive and small: `normalised` takes a root of what they scale."""
        columns = family.stored_columns
        shape = [len(family.gates) * self.sizes[family.rows], *([self.sizes[columns]] if columns else [])]
        bound = shape[1]**-0.5 if family.columns else 1.0 / self.sizes[family.rows]
        drawn = torch.rand(shape, dtype=torch.float64, generator=self.random)
        return ((2.0 * drawn - 1.0 if family.columns else drawn) * bound).to(self.dtype)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [*self.inputs, *self.states, *self.parameters]

    @property
    def names(self) -> list[str]:
        made = ["output", *(f"last {s}" for s in self.cell.states)]
        return made + [f"gradient of {n}" for n in (*self.cell.inputs, *self.cell.states, *self.cell.families)]

    def parts(self, tensors):
        a, b = len(self.inputs), len(self.inputs) + len(self.states)
        return tensors[:a], tensors[a:b], tensors[b:]

    def flat(self):
        """Inputs, states and parameters as the kernels take them: sequences are [T * B, size]."""
        parameters = [dense(f, p) for f, p in zip(self.cell.families.values(), self.parameters)]
        return [autograd.calls.flat(x) for x in self.inputs], self.states, parameters

    def fused(self, reverse: bool = False) -> dict[str, torch.Tensor]:
        """Output, last states and all gradients, by name."""
        return self._results(self.dtype, lambda *parts: autograd.scan(self.cell, *parts, reverse, "cpu"))

    def expected(self, reverse: bool = False) -> dict[str, torch.Tensor]:
        """The same by the reference backend, always in float64; 0 where nothing reaches a tensor."""
        return self._results(torch.float64, lambda *parts: autograd.scan(self.cell, *parts, reverse, "reference"))

    def _results(self, dtype, run) -> dict[str, torch.Tensor]:
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in self.tensors]
        (output,), last = run(*self.parts(leaves))
        made = [output, *last]
        gradients = torch.autograd.grad(made, leaves, [u.to(dtype) for u in self.upstream], materialize_grads=True)
        return dict(zip(self.names, [*(m.detach() for m in made), *gradients], strict=True))


def assert_close(found: dict, expected: dict, bound: float) -> None:
    """The largest difference within `bound` times the largest value, or times 1."""
    for name, value in expected.items():
        scale = max(1.0, value.abs().max().item())
        difference = (found[name] - value).abs().max().item()
        assert difference <= bound * scale, f"{name}: differs by {difference:.1e}, largest value {scale:.1e}"


def assert_same_bits(found: dict, expected: dict) -> None:
    for name, value in expected.items():
        assert torch.equal(found[name], value), f"{name} differs by {(found[name] - value).abs().max().item():.1e}"
