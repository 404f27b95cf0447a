"""The reference backend: a plain loop over a cell's graph in torch, on any device, differentiable any number of times.

It defines what is correct. It is slow: one torch call per operation and step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..compiler import Cell, Expr, Family
from ..compiler.expr import number, order, size


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


def dense(family: Family, stacked: Tensor) -> Tensor:
    """A stacked parameter as the loops read it. Raises ValueError where the units are no whole number of heads.

    Blocks are stored as [gates * H, D], each row with the D weights of its own head, and become [gates * H, H], zero
    outside the blocks; what else there is stays as it is. torch differentiates it any number of times.
    """
    if family.kind != "Blocks":
        return stacked
    gates, features = len(family.gates), stacked.shape[1]
    units = stacked.shape[0] // gates
    if units % features:
        raise ValueError(f"{family.name} has blocks of {family.stored_columns} = {features} features, one for each "
                         f"head, but {family.rows} = {units} is no multiple of that; choose {family.stored_columns} "
                         f"among the divisors of {units}")
    blocks = stacked.reshape(gates, units // features, features, features)
    return torch.diag_embed(blocks.permute(0, 2, 3, 1), dim1=1, dim2=3).reshape(-1, units)


def _sizes(cell: Cell, inputs: Sequence[Tensor], states: Sequence[Tensor],
           parameters: Sequence[Tensor]) -> dict[Expr, float]:
    """What the sizes in the equations stand for."""
    found = {}
    for e, a in zip((*cell.inputs.values(), *cell.states.values()), (*inputs, *states)):
        found |= dict.fromkeys(e.dims, a.shape[-1])
    for family, stacked in zip(cell.families.values(), parameters):
        found |= zip(filter(None, (family.rows, family.columns)), (stacked.shape[0] // len(family.gates),
                                                                   *stacked.shape[1:]))
    return {size(name): float(n) for name, n in found.items()}


def rows(cell: Cell, parameters: Sequence[Tensor]) -> dict[Expr, Tensor]:
    """Map every row block of the stacked parameters (one per family, in the order of the cell) to its slice."""
    env = {}
    for family, stacked in zip(cell.families.values(), parameters, strict=True):
        for gate, block in zip(family.gates, stacked.chunk(len(family.gates))):
            env[family.parts[gate]] = block
    return env


def run(cell: Cell, inputs: Sequence[Tensor], states: Sequence[Tensor], parameters: Sequence[Tensor],
        reverse: bool = False, outputs: Sequence[str] = (),
        sizes: Sequence[int] | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Run a cell over a whole sequence; return the outputs, by default the cell's own, and the last states.

    inputs: [T, B, size] each ([B, size] for a Constant, [T, B, 1] for a Scalar), states: [B, size] each, parameters:
    one stacked tensor per family, made `dense`; the outputs are [T, B, size]. With `sizes` [T], the rows of every
    step, sequences are [N, size] as in `gatework.backends.cpu.batch`.
    """
    given = rows(cell, parameters) | _sizes(cell, inputs, states, parameters)
    sequences = [a for e, a in zip(cell.inputs.values(), inputs, strict=True) if e.op == "input"]
    steps = list(zip(*(a.unbind(0) if sizes is None else a.split(list(sizes)) for a in sequences)))
    state = dict(zip(cell.states, states, strict=True))
    handed: dict[str, list] = {name: [None] * len(steps) for name in outputs or (cell.output,)}
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        count = len(steps[t][0])
        now = iter(steps[t])
        env = dict(given)
        env |= {e: a[:count] if e.op == "constant" else next(now) for e, a in zip(cell.inputs.values(), inputs)}
        env |= {cell.states[k]: v[:count] for k, v in state.items()}
        following = {k: evaluate(cell.next[k], env).expand(count, -1) for k in cell.states}
        for name, values in handed.items():
            value = evaluate(cell.value(name), env)
            value = value if isinstance(value, Tensor) else states[0].new_full((1,), value)
            values[t] = value.expand(count, -1)
        # Rows without this step wait: for their first one, or with their last state.
        state = {k: following[k] if count == len(v) else torch.cat([following[k], v[count:]])
                 for k, v in state.items()}
    join = torch.stack if sizes is None else torch.cat
    return [join(values) for values in handed.values()], list(state.values())
