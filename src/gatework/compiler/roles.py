"""Receives a cell, says what parts of its equations do: matrices that multiply a state, gates that keep or write one.

The graph decides, not the letters: f keeps in the LSTM and writes in the minimal gated unit.
"""

from __future__ import annotations

from .expr import Expr, is_const, order
from .trace import Cell


def state_in(e: Expr) -> Expr | None:
    """The state that a matrix multiplies: the value itself, or a factor of it, as in U.n @ (r * h); None if neither."""
    if e.op == "state":
        return e
    factors = e.args if e.op == "mul" else e.args[:1] if e.op == "div" else ()
    return next((s for s in map(state_in, factors) if s is not None), None)


def multiplied_states(cell: Cell) -> tuple[str, ...]:
    """The states that some matrix multiplies, in the order of the cell.

    >>> from gatework.cells import lstm
    >>> from gatework.compiler import trace
    >>> multiplied_states(trace(lstm))
    ('h',)
    """
    found = {state for _, state in _products(cell)}
    return tuple(s for s in cell.states if s in found)


def recurrent_matrices(cell: Cell) -> tuple[str, ...]:
    """The parameters of which some row multiplies a state, in the order of the cell.

    >>> from gatework.cells import projected_lstm
    >>> from gatework.compiler import trace
    >>> recurrent_matrices(trace(projected_lstm))
    ('U',)
    """
    found = {family for family, _ in _products(cell)}
    return tuple(f for f in cell.families if f in found)


def _products(cell: Cell) -> set[tuple[str, str]]:
    """The pairs (parameter, state) of all products."""
    products = [(e.args[0], state_in(e.args[1])) for e in order(cell.next.values()) if e.op == "matvec"]
    return {(matrix.attr[0], state.attr) for matrix, state in products if state is not None}


def keeping_gates(cell: Cell) -> dict[str, int]:
    """The gates that decide how much of a state is kept: 1 if it is kept where the gate is open, -1 where it is shut.

    A gate is a value that is recorded, or a state, under the name of its own row of a Bias, and a factor of the old
    state in its next value: f * c, or (1.0 - z) * h.

    >>> from gatework.cells import coupled_lstm, gru, lstm, minimal_gated_unit
    >>> from gatework.compiler import trace
    >>> [keeping_gates(trace(cell)) for cell in (lstm, gru, minimal_gated_unit, coupled_lstm)]
    [{'f': 1}, {'z': 1}, {'f': -1}, {'i': -1}]
    """
    factors = {g for s, e in cell.states.items() for g in _factors(cell.next[s], e) or ()}
    gates = {}
    for name, value in _gates(cell).items():
        if value in factors:
            gates[name] = 1
        elif any(g.op == "sub" and is_const(g.args[0], 1) and g.args[1] is value for g in factors):
            gates[name] = -1
    return gates


def writing_gates(cell: Cell) -> tuple[str, ...]:
    """The further gates that scale what is added to a state which another gate keeps: i of the LSTM.

    >>> from gatework.cells import gru, lstm
    >>> from gatework.compiler import trace
    >>> writing_gates(trace(lstm)), writing_gates(trace(gru))
    (('i',), ())
    """
    kept = keeping_gates(cell)
    added = [t for s, e in cell.states.items() if _factors(cell.next[s], e)
             for t in _terms(cell.next[s]) if t.op == "mul"]
    return tuple(name for name, value in _gates(cell).items()
                 if name not in kept and is_logistic(cell, name) and any(value in set(t.args) for t in added))


def is_logistic(cell: Cell, gate: str) -> bool:
    """Whether a gate is the sigmoid of a sum with its own bias, so that this bias is the log odds of the gate at rest.

    >>> from gatework.cells import lstm, slstm
    >>> from gatework.compiler import trace
    >>> is_logistic(trace(lstm), "f"), is_logistic(trace(slstm), "f")
    (True, False)
    """
    value = _gates(cell)[gate]
    own = {f.parts[gate] for f in cell.families.values() if f.kind == "Bias" and gate in f.gates}
    return value.op == "sigmoid" and not own.isdisjoint(_terms(value.args[0]))


def _gates(cell: Cell) -> dict[str, Expr]:
    """The values that have a bias of their own, by its name."""
    rows = {g for f in cell.families.values() if f.kind == "Bias" for g in f.gates}
    return {name: e for name, e in {**cell.next, **cell.record}.items() if name in rows}


def _terms(e: Expr) -> list[Expr]:
    return [t for a in e.args for t in _terms(a)] if e.op == "add" else [e]


def _factors(e: Expr, state: Expr) -> set[Expr] | None:
    """What the old state is multiplied by on its way, by sums and products, into its next value; None if on none."""
    if e is state:
        return set()
    if e.op == "add":
        found = [f for f in (_factors(a, state) for a in e.args) if f is not None]
        return set().union(*found) if found else None
    if e.op == "mul":
        for factor, rest in (e.args, e.args[::-1]):
            found = _factors(rest, state)
            if found is not None:
                return found | {factor}
    return None
