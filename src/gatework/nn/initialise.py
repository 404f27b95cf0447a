"""Receives a cell and the parameters of one direction of a layer, hands them on with their first values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from ..compiler import Cell, Family
from ..compiler.roles import is_logistic, keeping_gates, recurrent_matrices, writing_gates

SCHEMES = ("torch", "orthogonal", "glorot")


@dataclass(frozen=True)
class Initialisation:
    """First values of the parameters of a cell.

    scheme: what matrices and biases are, "torch": drawn from U(-1/sqrt(H), 1/sqrt(H)), like in torch.nn;
        "orthogonal": each gate's recurrent matrix orthogonal (Saxe et al., 2014), other matrices Glorot, biases 0;
        "glorot": each gate's matrix from U(-a, a) with a = sqrt(6 / (rows + columns)) (Glorot & Bengio, 2010), biases
        0. Other vectors are drawn as in torch.nn, gains of norms are 1, in all of them.
    forget_bias: the bias of what keeps a state (Gers et al., 2000; Jozefowicz et al., 2015).
    chrono_steps: the steps T over which the cell is to remember (Tallec & Ollivier, "Can recurrent neural networks warp
        time?", 2018): what keeps has the bias log(u) with u from U(1, T - 1), what writes the opposite one.

    Both set the sum of the biases that a gate has: the first one, the others are 0. A gate that writes where it is
    open, and so keeps where it is shut, has the opposite sign.

    >>> import gatework
    >>> layer = gatework.nn.GRU(8, 2, init="orthogonal", forget_bias=1.5)
    >>> layer.bias_ih_l0.tolist()  # r, z and n
    [0.0, 0.0, 1.5, 1.5, 0.0, 0.0]
    """

    scheme: str = "torch"
    forget_bias: float | None = None
    chrono_steps: float | None = None

    def check(self, cell: Cell) -> None:
        """Raise ValueError for what makes no sense for this cell."""
        bias, steps = self.forget_bias, self.chrono_steps
        if self.scheme not in SCHEMES:
            hint = "; for chrono initialisation give chrono_steps=" if self.scheme == "chrono" else ""
            raise ValueError(f"init must be one of {', '.join(map(repr, SCHEMES))}{hint}; {self.scheme!r} was given")
        if bias is not None and (isinstance(bias, bool) or not isinstance(bias, Real) or not math.isfinite(bias)):
            raise ValueError(f"forget_bias is a finite number, or None; {bias!r} was given")
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, Real) or not 2 < steps < math.inf):
            raise ValueError(f"chrono_steps is the number of steps to remember, more than 2, or None; {steps!r} was "
                             "given")
        if bias is not None and steps is not None:
            raise ValueError(f"forget_bias={bias} and chrono_steps={steps} both set the bias of what keeps a state; "
                             "give one of them")
        if bias is None and steps is None:
            return
        option = "forget_bias" if steps is None else "chrono_steps"
        gates = keeping_gates(cell)
        if not gates:
            rows = dict.fromkeys(g for f in cell.families.values() if f.kind == "Bias" for g in f.gates if g)
            raise ValueError(f"{option} needs a gate that keeps a state: a value recorded under the name of its own "
                             "bias, and multiplied by the state in its next value, as f * c, or z * h + (1.0 - z) * n. "
                             f"{cell.name} has the biases {', '.join(rows) or 'none'}, none of which is one")
        if steps is not None and not all(is_logistic(cell, g) for g in gates):
            raise ValueError(f"chrono_steps needs gates that are sigmoid(... + bias); {', '.join(gates)} of "
                             f"{cell.name} is none. Use forget_bias")

    @torch.no_grad()
    def fill(self, cell: Cell, parameters: Sequence[Tensor], hidden_size: int) -> None:
        """Give all parameters of one direction, in the order of the cell, their first values.

        Random numbers are drawn in that order, by torch's generator.
        """
        bound, recurrent = 1.0 / math.sqrt(hidden_size), recurrent_matrices(cell)
        for family, p in zip(cell.families.values(), parameters, strict=True):
            if family.kind == "Gain":
                torch.nn.init.ones_(p)
            elif self.scheme == "torch" or family.kind == "Vector":
                torch.nn.init.uniform_(p, -bound, bound)
            elif family.kind == "Bias":
                torch.nn.init.zeros_(p)
            else:
                for matrix in _matrices(family, p):
                    if self.scheme == "orthogonal" and family.name in recurrent:
                        wide = torch.promote_types(p.dtype, torch.float32)  # orthogonal_ knows no half precision
                        matrix.copy_(torch.nn.init.orthogonal_(torch.empty_like(matrix, dtype=wide)))
                    else:
                        torch.nn.init.xavier_uniform_(matrix)
        if self.forget_bias is None and self.chrono_steps is None:
            return
        shape = parameters[0].new_empty(hidden_size)
        kept = self.forget_bias if self.chrono_steps is None else shape.uniform_(1, self.chrono_steps - 1).log_()
        for gate, sign in keeping_gates(cell).items():
            _set_bias(cell, parameters, gate, sign * kept)
        if self.chrono_steps is not None:
            for gate in writing_gates(cell):
                _set_bias(cell, parameters, gate, -kept)


def _matrices(family: Family, p: Tensor) -> list[Tensor]:
    """The matrices of a stacked parameter: one for each gate, and for each head where it is block-diagonal."""
    gates = p.chunk(len(family.gates))
    return [head for g in gates for head in g.split(p.shape[1])] if family.kind == "Blocks" else list(gates)


def _set_bias(cell: Cell, parameters: Sequence[Tensor], gate: str, value: Tensor | float) -> None:
    """Make the biases of a gate add up to a value."""
    rows = [p.chunk(len(f.gates))[f.gates.index(gate)] for f, p in zip(cell.families.values(), parameters)
            if f.kind == "Bias" and gate in f.gates]
    for row in rows:
        row.zero_()
    rows[0].add_(value)
