"""The reference backend: a plain loop over a cell's graph in torch, on any device, differentiable any number of times.

It defines what is correct. It is slow: one torch call per operation and step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..compiler import Cell, Expr
from ..compiler.expr import number, order


def _constants(meaning):
    """Let torch functions that insist on tensors take the numbers of the equations."""
    def run(*args):
        like = next((a for a in args if isinstance(a, Tensor)), torch.tensor(0.0))
        return meaning(*(a if isinstance(a, Tensor) else torch.as_tensor(a, dtype=like.dtype, device=like.device)
                         for a in args))
    return run


MEANING = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "sigmoid": _constants(torch.sigmoid),
    "tanh": _constants(torch.tanh),
    "relu": _constants(torch.relu),
    "exp": _constants(torch.exp),
    "log": _constants(torch.log),
    "sqrt": _constants(torch.sqrt),
    "abs": _constants(torch.abs),
    # threshold: torch would switch to the identity at 20, exact in float32 only
    "softplus": _constants(lambda a: functional.softplus(a, threshold=40.0)),
    "minimum": _constants(torch.minimum),
    "maximum": _constants(torch.maximum),
    "where": _constants(lambda c, a, b: torch.where(c != 0, a, b)),
    "lt": _constants(lambda a, b: (a < b).to(a.dtype)),
    "le": _constants(lambda a, b: (a <= b).to(a.dtype)),
    "sum": lambda a: a.sum(-1, keepdim=True),
    "expand": lambda a: a,
    "copy": lambda a: a,
    "matvec": lambda m, a: functional.linear(a, m),
    "matvecT": lambda m, d: d @ m,
}


def evaluate(e: Expr, env: dict[Expr, Tensor | float]) -> Tensor | float:
    """The value of an expression; `env` maps leaves (and values already known) to tensors [..., size]."""
    for n in order([e], known=env):
        env[n] = number(n) if n.op == "const" else MEANING[n.op](*(env[a] for a in n.args))
    return env[e]


def rows(cell: Cell, parameters: Sequence[Tensor]) -> dict[Expr, Tensor]:
    """Map every row block of the stacked parameters (one per family, in the order of the cell) to its slice."""
    env = {}
    for family, stacked in zip(cell.families.values(), parameters, strict=True):
        for gate, block in zip(family.gates, stacked.chunk(len(family.gates))):
            env[family.parts[gate]] = block
    return env


def run(cell: Cell, inputs: Sequence[Tensor], states: Sequence[Tensor], parameters: Sequence[Tensor],
        reverse: bool = False, record: Sequence[str] = ()) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """Run a cell over a whole sequence.

    inputs: [T, B, size] each ([B, size] for a Constant), states: [B, size] each, parameters: one stacked tensor per
    family. Returns the output [T, B, size], the last states, and the recorded values [T, B, size] by name.
    """
    given = rows(cell, parameters)
    steps = inputs[0].shape[0]
    state = dict(zip(cell.states, states, strict=True))
    output: list = [None] * steps
    records: dict[str, list] = {name: [None] * steps for name in record}
    for t in reversed(range(steps)) if reverse else range(steps):
        env = dict(given)
        env |= {e: a if e.op == "constant" else a[t] for e, a in zip(cell.inputs.values(), inputs, strict=True)}
        env |= {cell.states[k]: v for k, v in state.items()}
        state = {k: evaluate(cell.next[k], env).expand_as(state[k]) for k in cell.states}
        output[t] = state[cell.output]
        for name in record:
            records[name][t] = evaluate(cell.record[name], env)
    return torch.stack(output), [state[k] for k in cell.states], {k: torch.stack(v) for k, v in records.items()}
