"""Receives the values that one turn of a loop computes, hands on the order in which a kernel computes them.

A stage is one pass over the units of a vector, for all rows. It begins with products whose operands were complete
before it, and evaluates on registers what these make possible, but what is made of memory alone only once it is read. A
product of a value of this step, or a sum over features, needs the whole vector and so begins a later stage.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import chain

from ..compiler.expr import Expr, add, node, order, with_args


@dataclass
class Stage:
    level: int
    dims: tuple[str, ...]               # of its vectors; () for scalars
    nodes: list[Expr]
    sums: list[Expr]                    # sums over features that this stage adds up

    @property
    def products(self) -> list[Expr]:
        return [e for e in self.nodes if e.op == "contract"]

    def by_operand(self) -> list[tuple[Expr, dict[int, tuple[Expr, str]]]]:
        """What multiplies each operand: for slots, numbers of products, a matrix and how it multiplies ("N", "T").

        An operand that one product has several times comes as often.
        """
        found: dict[tuple[Expr, int], dict[int, tuple[Expr, str]]] = {}
        for slot, e in enumerate(self.products):
            seen: dict[Expr, int] = {}
            for matrix, v, flag in zip(e.args[::2], e.args[1::2], e.attr):
                seen[v] = seen.get(v, -1) + 1
                found.setdefault((v, seen[v]), {})[slot] = (matrix, flag)
        return [(v, of_slot) for (v, _), of_slot in found.items()]


@dataclass
class Schedule:
    stages: list[Stage]
    roots: list[Expr]                   # what was asked for, in the order asked, as regrouped
    stage_of: dict[Expr, int]           # where a value is computed
    read_until: dict[Expr, int]         # the last stage that reads a leaf or a value element by element
    multiplied_until: dict[Expr, int]   # the last stage that multiplies it by a matrix

    def free_after(self, e: Expr) -> int:
        """The first stage whose stores may overwrite the memory of a leaf."""
        # A product reads other units than the ones at work, so its own stage may not overwrite the operand.
        return max(self.read_until.get(e, 0), self.multiplied_until.get(e, -1) + 1)


def is_invariant(e: Expr, memo: dict[Expr, bool]) -> bool:
    """Whether a value depends on parameters and numbers only."""
    if e not in memo:
        memo[e] = e.op in ("param", "const", "size") or (bool(e.args) and e.op not in ("contract", "sum")
                                                 and all(is_invariant(a, memo) for a in e.args))
    return memo[e]


def regroup(roots: list[Expr], known: set[Expr]) -> list[Expr]:
    """Rewrite every sum: what stays the same in all steps first, then vectors, then its products as one `contract`."""
    nodes = order(roots, known=known)
    uses = Counter(chain(roots, *(e.args for e in nodes)))
    into_sum = {a for e in nodes if e.op == "add" for a in e.args if uses[a] == 1 and a not in known}
    memo: dict[Expr, bool] = {}
    done: dict[Expr, Expr] = {}

    def parts(e: Expr) -> list[Expr]:
        return [p for a in e.args for p in (parts(a) if a.op == "add" and a in into_sum else [a])]

    for e in nodes:
        if e.op in ("add", "matvec", "matvecT"):
            if e in into_sum:
                continue  # rewritten with the sum that it belongs to
            terms = parts(e) if e.op == "add" else [e]
            products = [t for t in terms if t in into_sum and t.op in ("matvec", "matvecT")] if e.op == "add" else [e]
            multiplied = set(products)
            others = [done.get(t, t) for t in terms if t not in multiplied]
            others.sort(key=lambda t: not is_invariant(t, memo))
            if products:
                pairs = [a for t in products for a in (t.args[0], done.get(t.args[1], t.args[1]))]
                flags = tuple("N" if t.op == "matvec" else "T" for t in products)
                others.append(node("contract", *pairs, attr=flags, dims=e.dims))
            value = others[0]
            for t in others[1:]:
                value = add(value, t)
            done[e] = value
        else:
            done[e] = with_args(e, tuple([done.get(a, a) for a in e.args]))
    return [done.get(r, r) for r in roots]


def schedule(roots: list[Expr], known: set[Expr]) -> Schedule:
    """Order the work of one turn. `known` values are read from memory, like leaves."""
    roots = regroup(roots, known)
    nodes = [e for e in order(roots, known=known) if not e.is_leaf]
    # A value of numbers alone is shared by all cells, so it may be older than this one or not. It comes first either
    # way, and the order is the same in any process.
    nodes.sort(key=lambda e: any(a.op not in ("const", "size") for a in e.args))
    level: dict[Expr, int] = {}
    for e in nodes:
        if e.op == "contract":
            level[e] = max((level[v] + 1 for v in e.args[1::2] if v in level), default=0)
        elif e.op == "sum":
            level[e] = level.get(e.args[0], 0) + 1
        else:
            level[e] = max((level[a] for a in e.args if a in level), default=0)
    _put_off(nodes, roots, level)
    spread = _spread(nodes, roots)
    members: defaultdict[tuple, dict[Expr, None]] = defaultdict(dict)
    sums: defaultdict[tuple, list[Expr]] = defaultdict(list)
    for e in nodes:
        if e not in spread:
            of_stage = members[level[e], e.dims]
            for a in e.args:
                if a in spread:
                    of_stage[a] = None
            of_stage[e] = None
        if e.op == "sum":
            sums[level[e] - 1, e.args[0].dims].append(e)
    ordered = [Stage(*at, list(members[at]), sums[at]) for at in sorted({*members, *sums})]
    stage_of = {e: k for k, s in enumerate(ordered) for e in s.nodes if e not in spread}
    read_until: dict[Expr, int] = {}
    multiplied_until: dict[Expr, int] = {}
    for k, stage in enumerate(ordered):
        for e in stage.nodes:
            if e.op == "contract":
                for a in e.args[1::2]:
                    multiplied_until[a] = k
            elif e.op != "sum":
                for a in e.args:
                    read_until[a] = k
        for e in stage.sums:
            read_until[e.args[0]] = k
    return Schedule(ordered, roots, stage_of, read_until, multiplied_until)


def _put_off(nodes: list[Expr], roots: list[Expr], level: dict[Expr, int]) -> None:
    """What is made of memory alone is computed where it is first read, so that nothing keeps it until then."""
    from_memory: set[Expr] = set()
    for e in nodes:
        if e.op not in ("contract", "sum") and all(a in from_memory for a in e.args if a in level):
            from_memory.add(e)
    others = {(level[e], e.dims) for e in nodes if e not in from_memory}
    first: dict[Expr, int] = dict.fromkeys(roots, 0)
    for e in reversed(nodes):
        if e in from_memory and (first.get(e), e.dims) in others:
            level[e] = first[e]
        at = level[e] - (e.op in ("contract", "sum"))  # complete before the stage begins
        for a in e.args:
            first[a] = min(at, first.get(a, at))


def _spread(nodes: list[Expr], roots: list[Expr]) -> set[Expr]:
    """Scalars that are spread over a vector: done wherever that is read, so that only the scalar is kept."""
    whole = {*roots, *(a for e in nodes if e.op in ("contract", "sum") for a in e.args)}
    return {e for e in nodes if e.op == "expand" and e not in whole}
