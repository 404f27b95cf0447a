"""Receives a loop, hands on what programs that share units give each other: operands of products, parts of sums.

What a matrix multiplies is needed whole, so each program writes its units of it to memory, where all read it.
"""

from __future__ import annotations

from ...compiler.expr import Expr
from ..plan import Loop


def handed(loop: Loop) -> dict[object, Expr]:
    """What is handed over: values of this turn, and where the turn before stored something -> a value that has it."""
    stored = {(p.buffer, p.offset) for step in loop.passes for _, p in step.stores}
    computed = {e for step in loop.passes for e in step.stage.nodes}
    found: dict[object, Expr] = {}
    for v in (v for step in loop.passes for e in step.stage.products for v in e.args[1::2]):
        if v in computed:
            found[v] = v
        elif (place := loop.reads[v]).turn == -1 or loop.buffers[place.buffer].kind == "rows":
            if (place.buffer, place.offset) in stored:
                found[place.buffer, place.offset] = v
    return found


def sums(loop: Loop) -> list[Expr]:
    """Sums over features, of which each program adds up a part."""
    return [e for step in loop.passes for e in step.stage.sums]
