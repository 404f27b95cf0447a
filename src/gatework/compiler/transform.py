"""Receives a cell, hands on one that does something more with its values: drops them, keeps old ones, begins anew.

Where more than one is wanted, dropout comes first, then zoneout, then resets. Masks and resets are inputs like any
other, so that whoever runs the cell, or runs a part of it again, sees the same. A mask only decides (`where`): it has
no derivative, and no time is spent on one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from .expr import Expr, leaf, order, substitution, with_args
from .ops import matvec, where
from .roles import state_in
from .trace import Cell

# Names that no argument of a function can have: they never meet one of the equations'.
RESET, FIRST = ".reset", ".first_"
DROPOUT, VARIATIONAL, ZONEOUT = ".dropout_", ".variational_", ".zoneout_"

Rates = tuple[tuple[str, float], ...]


@cache
def with_dropout(cell: Cell, rates: Rates) -> Cell:
    """The cell with recorded values dropped, `((name, rate), ...)` (Semeniuta et al., "Recurrent dropout without memory
    loss", 2016).

    For each there is one more Input, not 0 where the value stays; then it is scaled by 1 / (1 - rate), else it is 0,
    wherever the equations read it and where it is recorded.

    >>> from gatework.cells import lstm
    >>> from gatework.compiler import trace
    >>> list(with_dropout(trace(lstm), (("g", 0.1),)).inputs)
    ['x', '.dropout_g']
    """
    following, record, masks = cell.next, cell.record, {}
    for name, rate in rates:
        value = record[name]
        mask = masks[DROPOUT + name] = leaf("input", DROPOUT + name, value.dims)
        dropped = {value: _dropped(value, mask, rate)}
        substitute = substitution(dropped)
        following = dict(zip(following, substitute(following.values())))
        record = dict(zip(record, substitute(record.values())))
    return replace(cell, name=f"{cell.name}_with_dropout", inputs=cell.inputs | masks, next=following, record=record)


@cache
def with_variational_dropout(cell: Cell, rates: Rates) -> Cell:
    """The cell with states dropped where a matrix multiplies them, `((state, rate), ...)` (Gal & Ghahramani, "A
    theoretically grounded application of dropout in recurrent neural networks", 2016).

    For each state there is one more Constant input, not 0 where a unit stays; it is scaled by 1 / (1 - rate). All rows
    of all matrices see the same units of it. Element-wise uses see the whole state.

    >>> from gatework.cells import lstm
    >>> from gatework.compiler import trace
    >>> list(with_variational_dropout(trace(lstm), (("h", 0.2),)).inputs)
    ['x', '.variational_h']
    """
    masks = {s: leaf("constant", VARIATIONAL + s, cell.states[s].dims) for s, _ in rates}
    rate_of = dict(rates)
    made: dict[Expr, Expr] = {}
    for e in order([*cell.next.values(), *cell.record.values()]):
        args = tuple(made[a] for a in e.args)
        state = state_in(e.args[1]) if e.op == "matvec" else None
        if state is not None and state.attr in masks:
            made[e] = matvec(args[0], _dropped(args[1], masks[state.attr], rate_of[state.attr]))
        else:
            made[e] = with_args(e, args)
    return replace(cell, name=f"{cell.name}_with_variational_dropout",
                   inputs=cell.inputs | {m.attr: m for m in masks.values()},
                   next={k: made[e] for k, e in cell.next.items()}, record={k: made[e] for k, e in cell.record.items()})


def _dropped(value: Expr, mask: Expr, rate: float) -> Expr:
    return where(mask, 1.0 / (1.0 - rate) * value, 0.0)


@cache
def with_zoneout(cell: Cell, states: tuple[str, ...]) -> Cell:
    """The cell with one more Input for each of these states: where it is not 0, the state stays as it was (Krueger et
    al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", 2017).

    Other values of the step are computed from the new value, as in the paper: the output gate of an LSTM shows the cell
    state that there would be without zoneout.

    >>> from gatework.cells import lstm
    >>> from gatework.compiler import trace
    >>> list(with_zoneout(trace(lstm), ("h", "c")).inputs)
    ['x', '.zoneout_h', '.zoneout_c']
    """
    masks = {s: leaf("input", ZONEOUT + s, cell.states[s].dims) for s in states}
    return replace(cell, name=f"{cell.name}_with_zoneout", inputs=cell.inputs | {m.attr: m for m in masks.values()},
                   next={s: where(masks[s], cell.states[s], e) if s in masks else e for s, e in cell.next.items()})


@cache
def with_expected_zoneout(cell: Cell, rates: Rates) -> Cell:
    """The cell as zoneout is evaluated, `((state, rate), ...)`: a next state is the mean over all masks.

    >>> from gatework.cells import elman
    >>> from gatework.compiler import trace
    >>> from gatework.compiler.text import show
    >>> print(show(with_expected_zoneout(trace(elman), (("h", 0.25),)), "equations"))
    h' = 0.25 * h + 0.75 * tanh(W @ x + b + U @ h + d)
    """
    rate = dict(rates)
    following = {s: rate[s] * cell.states[s] + (1.0 - rate[s]) * e if s in rate else e for s, e in cell.next.items()}
    return replace(cell, name=f"{cell.name}_with_expected_zoneout", next=following)


@cache
def with_resets(cell: Cell, learned: bool) -> Cell:
    """The cell with one more Scalar input: not 0 in a step after which the row begins anew.

    Then the states that are carried on are the first states again: 0, or with `learned` one more Constant input for
    every state. What is handed out, and recorded, is the state before that.

    >>> from gatework.cells import lstm
    >>> from gatework.compiler import trace
    >>> list(with_resets(trace(lstm), learned=True).inputs)
    ['x', '.reset', '.first_h', '.first_c']
    """
    reset = leaf("input", RESET, ())
    first = {s: leaf("constant", FIRST + s, e.dims) for s, e in cell.states.items()} if learned else {}
    following = {s: where(reset, first.get(s, 0.0), e) for s, e in cell.next.items()}
    inputs = {**cell.inputs, RESET: reset, **{e.attr: e for e in first.values()}}
    return replace(cell, name=f"{cell.name}_with_resets", inputs=inputs, next=following,
                   handed={s: cell.value(s) for s in cell.next})
