"""Receives a traced cell, hands on its time loops: what runs before, inside and after them, forward and backward.

One rule splits the work: only matrix products leave the loop. A product goes before it if it multiplies an input,
and after it if no carried value needs it. Element-wise work always stays inside, where it is free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from .expr import Expr, add, const, is_const, leaf, node, order, substitution
from .grad import vjp
from .ops import PRODUCTS, matvec_t
from .trace import Cell


@dataclass(frozen=True)
class Terms:
    """A sum, taken apart: transposed products (matrix row block, vector) and the element-wise rest, if any."""

    products: tuple[tuple[Expr, Expr], ...]
    rest: Expr | None

    def changed(self, substitute: Callable[[list[Expr]], list[Expr]]) -> Terms:
        products = tuple((m, d) for (m, _), d in zip(self.products, substitute([d for _, d in self.products])))
        return Terms(products, None if self.rest is None else substitute([self.rest])[0])


@dataclass(frozen=True)
class Backward:
    """The loop that runs from the last step to the first, and the products after it.

    A carried gradient that ends in products is not finished in the step that starts it: the loop carries the
    vectors that are to be multiplied (`lagged`) and begins the next step with the product. So the backward loop has
    the shape of the forward one: products of carried vectors, then one element-wise program.
    """

    upstream: dict[str, Expr]     # output -> leaf: gradient that reaches it in this step from outside
    carried: dict[Expr, Expr]     # leaf -> its value for the next turn of the loop
    lagged: dict[Expr, Expr]      # leaf -> the emitted value that it has been in the turn before
    states: dict[str, Terms]      # gradient of each first state, from values of the last turn
    inputs: dict[str, Terms]      # gradient of each input, for the whole sequence
    matrices: dict[tuple[str, str], tuple[tuple[Expr, Expr], ...]]  # (family, row) -> pairs whose outer products add up
    vectors: dict[tuple[str, str], Expr]  # (family, row) -> an emitted value to add up, or the leaf of an accumulator
    emitted: tuple[Expr, ...]     # written for every step, read by the products after the loop
    body: tuple[Expr, ...]        # all values computed in the loop


@dataclass(frozen=True)
class Scan:
    """A cell as loops over time. Values of `saved` and the states in `stored` are kept for the backward pass.

    `outputs` are the names of what is handed out for every step. Those that are no next state are in `beside`: the
    backward pass may read them too, as they were handed out.
    """

    cell: Cell
    outputs: tuple[str, ...]
    beside: dict[str, Expr]
    before: tuple[Expr, ...]      # products of the inputs
    body: tuple[Expr, ...]
    saved: tuple[Expr, ...]
    stored: tuple[str, ...]
    backward: Backward


def terms(e: Expr) -> Terms:
    """Take a sum apart into transposed products and the rest."""
    products, rest, todo = [], const(0.0), [e]
    while todo:
        t = todo.pop()
        if t.op == "add":
            todo += reversed(t.args)
        elif t.op == "matvecT":
            products.append(t.args)
        else:
            rest = add(rest, t)
    return Terms(tuple(products), None if is_const(rest, 0) else rest)


def _outers(e: Expr) -> tuple[tuple[Expr, Expr], ...]:
    """The pairs of vectors in a sum of outer products; none if nothing reaches the parameter."""
    if e.op == "add":
        return _outers(e.args[0]) + _outers(e.args[1])
    return (e.args,) if e.op == "outer" else ()


@cache
def split(cell: Cell, outputs: tuple[str, ...] = ()) -> Scan:
    """Derive the loops of a cell that hand out some of its states and recorded values; only its output if not said.

    >>> from gatework.cells import lstm
    >>> from gatework.compiler import split, trace
    >>> scan = split(trace(lstm))
    >>> len(scan.before), sum(e.op == "matvec" for e in scan.body), len(scan.saved), scan.stored
    (4, 4, 4, ('h', 'c'))
    """
    outputs = outputs or (cell.output,)
    beside = {n: cell.value(n) for n in outputs if cell.value(n) is not cell.next.get(n)}
    forward = order([*cell.next.values(), *beside.values()])
    leaves = set(cell.inputs.values())
    before = tuple(e for e in forward if e.op == "matvec" and e.args[1] in leaves)
    body = tuple(e for e in forward if e not in set(before) and not e.is_leaf)
    backward, saved, stored = _backward(cell, outputs, beside, set(forward))
    return Scan(cell, outputs, beside, before, body, saved, stored, backward)


def with_before(scan: Scan, *kinds: str) -> Scan:
    """The same with other products before the loop: of leaves of these kinds ("input", "constant"; "state", for a loop
    of one step)."""
    forward = order([*scan.cell.next.values(), *scan.beside.values()])
    before = tuple(e for e in forward if e.op == "matvec" and e.args[1].op in kinds)
    return replace(scan, before=before, body=tuple(e for e in forward if e not in set(before) and not e.is_leaf))


def _backward(cell: Cell, outputs: tuple[str, ...], beside: dict[str, Expr],
              forward: set[Expr]) -> tuple[Backward, tuple[Expr, ...], tuple[str, ...]]:
    states = list(cell.states)
    parts = {(f.name, g): p for f in cell.families.values() for g, p in f.parts.items()}
    incoming = {s: leaf("cotangent", f"d{s}", e.dims) for s, e in cell.states.items()}
    inputs = list(cell.inputs)
    upstream = {n: leaf("upstream", f"d{n}_out", cell.value(n).dims) for n in outputs}
    # A gradient that is read after the loop must be a value of the loop: a copy of what comes from outside.
    outside = [node("copy", upstream[n], dims=upstream[n].dims) for n in beside]
    gradients = vjp([*cell.next.values(), *beside.values()], [*(incoming[s] for s in cell.next), *outside],
                    [*cell.states.values(), *cell.inputs.values(), *parts.values()])
    of_state = {s: terms(g) for s, g in zip(states, gradients)}
    of_input = {n: terms(g) for n, g in zip(inputs, gradients[len(states):])}
    of_part = dict(zip(parts, gradients[len(states) + len(inputs):]))

    # What reaches a state of this step: the carried rest, the products begun by the turn before, and the outside.
    lag: dict[Expr, Expr] = {}
    carry: dict[str, Expr] = {}
    total: dict[Expr, Expr] = {}
    for s in states:
        handed = s in upstream and s not in beside
        value = upstream[s] if handed else const(0.0)
        if of_state[s].rest is not None or not handed:
            carry[s] = leaf("carry", f"d{s}", cell.states[s].dims)
            value = add(carry[s], value)
        for matrix, d in of_state[s].products:
            lag.setdefault(d, leaf("lag", f"lag{len(lag)}", d.dims))
            value = add(value, matvec_t(matrix, lag[d]))
        # A product after the loop needs it for every step: a value of its own, not one that the loop overwrites.
        total[incoming[s]] = node("copy", value, dims=value.dims) if value.is_leaf else value

    substitute = substitution(total)
    of_state = {s: t.changed(substitute) for s, t in of_state.items()}
    of_input = {n: t.changed(substitute) for n, t in of_input.items()}
    lagged = dict(zip(lag.values(), substitute(lag)))
    of_part = dict(zip(of_part, substitute(of_part.values())))
    zero = const(0.0)
    carried = {e: node("copy", zero, dims=e.dims) if of_state[s].rest is None else of_state[s].rest
               for s, e in carry.items()}

    matrices = {k: _outers(g) for k, g in of_part.items() if len(parts[k].dims) == 2}
    wanted = dict.fromkeys(d for t in of_input.values() for _, d in t.products)
    vectors_of_outers = [v for pairs in matrices.values() for pair in pairs for v in pair]
    wanted |= dict.fromkeys(v for v in vectors_of_outers if not v.is_leaf)
    for name, t in of_input.items():
        if t.rest is not None and cell.inputs[name].op == "input":
            wanted[t.rest] = None
    wanted |= dict.fromkeys(lagged.values())
    vectors = {}
    for k, g in of_part.items():
        if len(parts[k].dims) == 1:
            vectors[k] = g if g in wanted else _accumulate(carried, g, f"d{k[0]}_{k[1]}", parts[k].dims)
    for name, t in of_input.items():
        if t.rest is not None and cell.inputs[name].op == "constant":
            of_input[name] = Terms(t.products, _accumulate(carried, t.rest, f"d{name}", t.rest.dims))

    # What is mentioned of the forward pass is kept, unless element-wise work brings it back from what is kept.
    following = {*cell.next.values(), *beside.values()}
    roots = [*wanted, *carried.values()]
    mentioned = {r for r in roots if r in forward}
    mentioned |= {a for e in order(roots, known=forward) for a in e.args if a in forward and not a.is_leaf}
    saved: list[Expr] = []
    available: dict[Expr, bool] = {}

    def at_hand(e: Expr) -> bool:
        if e not in available:
            available[e] = (e.is_leaf or e in following
                            or (e.op not in PRODUCTS and e.op != "sum" and all(map(at_hand, e.args))))
        return available[e]

    for e in sorted(mentioned, key=lambda e: e.born):
        if not at_hand(e):
            saved.append(e)
            available[e] = True
    known = {*saved, *following}
    body = tuple(e for e in order(roots, known=known) if not e.is_leaf)
    # A next state that is asked for is read from its stored sequence, like the state before it.
    reads = {a for e in body for a in e.args} | set(roots) | set(vectors_of_outers)
    stored = tuple(s for s in states if (s in upstream and s not in beside)
                   or cell.states[s] in reads or cell.next[s] in reads)
    emitted = tuple(e for e in wanted if e not in known and not e.is_leaf)
    result = Backward(upstream, carried, lagged, of_state, of_input, matrices, vectors, emitted, body)
    return result, tuple(saved), stored


def _accumulate(carried: dict[Expr, Expr], value: Expr, name: str, dims: tuple[str, ...]) -> Expr:
    """Add a value up over the steps, as one more carried vector; returns its leaf."""
    total = leaf("accumulator", name, dims)
    carried[total] = add(total, value)
    return total
