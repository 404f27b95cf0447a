"""Receives a cell, hands on any stage of its way as text a person reads: equations, graph, derivative, loop, LaTeX.

One printer serves all stages. A notation is a table: operation -> how it is written, how tightly it binds, and how
tightly each argument must bind to stand without parentheses.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from .data import as_data, fingerprint, from_json, to_json
from .expr import Expr, is_const, leaf, number
from .grad import vjp
from .scan import Backward, Scan, Terms, split
from .trace import Cell

__all__ = ["STAGES", "fingerprint", "from_json", "show", "to_json"]

Pairs = list[tuple[str, Expr]]
SUM, PRODUCT, TIMES, ATOM = 10, 12, 20, 99
_FUNCTIONS = {op: (op + "({})", ATOM, (0,))
              for op in ("sigmoid", "tanh", "relu", "exp", "log", "sqrt", "abs", "softplus", "sum", "mean")}
PLAIN = _FUNCTIONS | {
    "add": ("{} + {}", SUM, (SUM, SUM + 1)),
    "sub": ("{} - {}", SUM, (SUM, SUM + 1)),
    "neg": ("-{}", SUM, (TIMES,)),
    "mul": ("{} * {}", TIMES, (TIMES, TIMES + 1)),
    "div": ("{} / {}", TIMES, (TIMES, TIMES + 1)),
    "matvec": ("{} @ {}", PRODUCT, (ATOM, TIMES + 1)),
    "matvecT": ("{}.T @ {}", PRODUCT, (ATOM, TIMES + 1)),
    "outer": ("outer({}, {})", ATOM, (0, 0)),
    "copy": ("{}", ATOM, (ATOM,)),
    "minimum": ("minimum({}, {})", ATOM, (0, 0)),
    "maximum": ("maximum({}, {})", ATOM, (0, 0)),
    "where": ("where({}, {}, {})", ATOM, (0, 0, 0)),
    "lt": ("{} < {}", 1, (SUM, SUM)),
    "le": ("{} <= {}", 1, (SUM, SUM)),
}
_NAMED = {op: rf"\operatorname{{{{{op}}}}}\left({{}}\right)" for op in ("relu", "softplus", "sum", "mean")}
_NAMED |= {op: rf"\{op}\left({{}}\right)" for op in ("tanh", "exp", "log")} | {"sigmoid": r"\sigma\left({}\right)"}
LATEX = PLAIN | {op: (text, ATOM, (0,)) for op, text in _NAMED.items()} | {
    "mul": (r"{} \odot {}", TIMES, (TIMES, TIMES + 1)),
    "scale": (r"{} \, {}", TIMES, (TIMES, TIMES + 1)),
    "div": (r"\frac{{{}}}{{{}}}", ATOM, (0, 0)),
    "matvec": ("{} {}", PRODUCT, (ATOM, TIMES + 1)),
    "sqrt": (r"\sqrt{{{}}}", ATOM, (0,)),
    "abs": (r"\left|{}\right|", ATOM, (0,)),
    "minimum": (r"\min\left({}, {}\right)", ATOM, (0, 0)),
    "maximum": (r"\max\left({}, {}\right)", ATOM, (0, 0)),
    "where": (r"\begin{{cases}} {1} & {0} \\ {2} & \text{{otherwise}} \end{{cases}}", ATOM, (0, 0, 0)),
    "le": (r"{} \le {}", 1, (SUM, SUM)),
}


def show(cell: Cell, stage: str) -> str:
    """Return one stage of a cell as text. Raises ValueError, listing the stages, for one that does not exist.

    >>> from gatework.cells import elman
    >>> from gatework.compiler import trace
    >>> print(show(trace(elman), "equations"))
    h' = tanh(W @ x + b + U @ h + d)
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}; {stage!r} was given")
    return STAGES[stage](cell)


def _spread(e: Expr) -> Expr:
    """The value itself where a scalar is spread over a vector: equations do not mention that."""
    return e.args[0] if e.op == "expand" else e


class Printer:
    """Writes values in one notation: by name where they have one, else written out."""

    def __init__(self, cell: Cell, notation: dict, names: dict[Expr, str], leaf_name: Callable[[Expr], str]):
        self.notation, self.names, self.leaf_name = notation, dict(names), leaf_name
        self.taken = {*cell.inputs, *cell.states, *cell.families, *cell.record}

    def write(self, e: Expr, need: int = 0) -> str:
        e = _spread(e)
        if e in self.names:
            return self.names[e]
        if e.op == "const":
            text, binds = self._number(e.attr), TIMES if number(e) < 0 else ATOM
        elif e.is_leaf:
            text, binds = self.leaf_name(e), ATOM
        else:
            text, binds = self._operation(e)
        opening, closing = (r"\left(", r"\right)") if self.notation is LATEX else "()"
        return text if binds >= need else opening + text + closing

    def _number(self, text: str) -> str:
        digits, power, exponent = text.removesuffix(".0").partition("e")
        if power and self.notation is LATEX:
            return rf"{digits} \cdot 10^{{{int(exponent)}}}"
        return digits + power + exponent

    def _operation(self, e: Expr) -> tuple[str, int]:
        op, args = e.op, e.args
        if self._negates(e):
            op, args = "neg", args[1:]
        elif self._is_mean(e):
            op, args = "mean", args[0].args
        elif op == "add" and self._negates(args[1]):
            op, args = "sub", (args[0], args[1].args[1])
        elif op == "mul" and self.notation is LATEX and not all(_spread(a).dims for a in args):
            op = "scale"
        template, binds, needs = self.notation[op]
        return template.format(*map(self.write, args, needs)), binds

    def _negates(self, e: Expr) -> bool:
        return e.op == "mul" and is_const(e.args[0], -1) and e not in self.names

    def _is_mean(self, e: Expr) -> bool:
        if e.op != "div":
            return False
        total, count = e.args
        return (total.op == "sum" and total not in self.names and count.op == "size"
                and total.args[0].dims == (count.attr,))

    def fresh(self, pattern: str) -> Iterator[str]:
        return (name for name in map(pattern.format, itertools.count(1)) if name not in self.taken)

    def equations(self, pairs: Pairs, intermediate: str = "t{}") -> list[tuple[str, str]]:
        """Return (name, text) for the pairs and, before its first use, for what they use more than once."""
        wanted: dict[Expr, str] = {}
        for name, e in pairs:
            if not e.is_leaf and _spread(e) not in self.names:
                wanted.setdefault(_spread(e), name)
        values = _needed((e for _, e in pairs), self.names)
        uses = Counter(a for e in values for a in map(_spread, e.args))
        fresh, lines = self.fresh(intermediate), []
        for e in values:
            name = wanted.get(e) or (next(fresh) if uses[e] > 1 else None)
            if name:
                lines.append((name, self.write(e)))
                self.names[e] = name
        lines += [(name, self.write(e)) for name, e in pairs if self.write(e) != name]
        return lines


def _needed(outputs: Iterable[Expr], known) -> list[Expr]:
    """What the outputs need, arguments first. Not by birth: that of a derivative depends on what was asked before."""
    found: dict[Expr, None] = {}
    todo = [_spread(e) for e in outputs][::-1]
    while todo:
        missing = [a for a in map(_spread, todo[-1].args) if a.args and a not in known and a not in found]
        if missing and todo[-1] not in known:
            todo.append(missing[0])
        else:
            e = todo.pop()
            if e.args and e not in known:
                found.setdefault(e)
    return list(found)


def _plain_leaf(e: Expr) -> str:
    if e.op == "size":
        return f"size({e.attr})"
    return ".".join(filter(None, e.attr)) if e.op == "param" else e.attr


def _forward(cell: Cell) -> Pairs:
    """The values of a step that have a name, as written: c' is the next c; what is recorded keeps its name."""
    pairs = {e: f"{state}'" for state, e in reversed(cell.next.items())}
    taken = {*cell.inputs, *cell.states, *cell.families}
    recorded = [(name, e) for name, e in cell.record.items() if name not in taken]
    for name, e in recorded:
        pairs.setdefault(e, name)
    named = sorted(((name, e) for e, name in pairs.items()), key=lambda pair: pair[1].born)
    again = [*((f"{s}'", e) for s, e in cell.next.items()), *recorded]
    return named + [(name, e) for name, e in again if pairs[e] != name]


def _lines(equations: Iterable[tuple[str, str]], indent: str = "") -> list[str]:
    return [f"{indent}{name} = {text}" for name, text in equations]


def _equations(cell: Cell) -> str:
    return "\n".join(_lines(Printer(cell, PLAIN, {}, _plain_leaf).equations(_forward(cell))))


def _graph(cell: Cell) -> str:
    data = as_data(cell)
    names: dict[int, list[str]] = {}
    for name, reference in [*([f"{k}'", r] for k, r in data["next"]), *data["record"]]:
        if isinstance(reference, int):
            names.setdefault(reference, []).append(name)

    def argument(reference) -> str:
        if isinstance(reference, dict):
            return reference.get("number") or f"size({reference['size']})"
        return f"%{reference}" if isinstance(reference, int) else reference

    rows = [(f"%{k}", v["op"], ", ".join(map(argument, v["args"])), f"[{', '.join(v['dims'])}]", v["source"],
             ", ".join(names.get(k, []))) for k, v in enumerate(data["values"])]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _derivative(cell: Cell) -> str:
    given = {s: leaf("cotangent", f"d{s}'", e.dims) for s, e in cell.states.items()}
    named = [(name, e) for name, e in reversed(_forward(cell)) if not e.is_leaf]
    parts = [(_plain_leaf(p), p) for f in cell.families.values() for p in f.parts.values()]
    wrt = [*named, *cell.states.items(), *cell.inputs.items(), *parts]
    gradients = vjp([cell.next[s] for s in given], list(given.values()), [e for _, e in wrt])
    pairs = [(f"d{name}", d) for (name, _), d in zip(wrt, gradients)]
    return "\n".join(_lines(Printer(cell, PLAIN, {e: name for name, e in named}, _plain_leaf).equations(pairs)))


def _latex(cell: Cell) -> str:
    def symbol(name: str, *below: str) -> str:
        spelled = name.replace("_", r"\_")
        base = name if len(name) == 1 else rf"\mathrm{{{spelled}}}"
        return f"{base}_{{{', '.join(below)}}}" if below else base

    def leaf_name(e: Expr) -> str:
        if e.op == "param":
            return symbol(e.attr[0], *(symbol(g) for g in filter(None, e.attr[1:])))
        return symbol(e.attr, *{"input": ["t"], "state": ["t-1"]}.get(e.op, []))

    pairs = [(symbol(name.rstrip("'"), "t"), e) for name, e in _forward(cell)]
    lines = Printer(cell, LATEX, {}, leaf_name).equations(pairs, "u^{{({})}}_{{t}}")
    return "\\begin{align}\n" + " \\\\\n".join(f"  {name} &= {text}" for name, text in lines) + "\n\\end{align}"


def _loop(cell: Cell) -> str:
    scan = split(cell)
    names = {e: _product_name(e) for e in scan.before}
    stacked: dict[str, list[str]] = {}
    for e in scan.before:
        family, gate = e.args[0].attr
        stacked.setdefault(f"{family}{e.args[1].attr} = {family} @ {e.args[1].attr}", []).append(gate)
    saved = {e for e in scan.saved if e not in names}
    forward = Printer(cell, PLAIN, names, _plain_leaf)
    named = _forward(cell)
    unnamed = sorted(saved - {e for _, e in named}, key=lambda e: e.born)
    extra = list(zip(forward.fresh("s{}"), unnamed))
    equations = forward.equations(sorted([*named, *extra], key=lambda pair: pair[1].born))
    kept = [*map(forward.write, scan.saved), *scan.stored]
    return "\n".join([
        "before the loop, one product over all steps",
        *(f"    {text}" + (f", rows {' '.join(gates)}" if any(gates) else "") for text, gates in stacked.items()),
        "forward, from the first step to the last", *_lines(equations, "    "),
        f"kept for the way back: {', '.join(kept)}",
        *_loop_back(scan, {_spread(e): forward.write(e) for e in [*scan.saved, *cell.next.values()] if not e.is_leaf})])


def _product_name(e: Expr) -> str:
    (family, gate), vector = e.args[0].attr, e.args[1].attr
    return f"{family}{vector}.{gate}" if gate else f"{family}{vector}"


def _loop_back(scan: Scan, names: dict[Expr, str]) -> list[str]:
    back = scan.backward
    printer = Printer(scan.cell, PLAIN, names, lambda e: _total(e) if e.op == "accumulator" else _plain_leaf(e))
    turns = [(f"next {printer.write(e)}", value) for e, value in [*back.carried.items(), *back.lagged.items()]]
    equations = printer.equations([*_emitted_names(scan), *turns])
    return ["backward, from the last step to the first", *_lines(equations, "    "),
            "after the loop, one product over all steps", *_lines(_after(back, printer), "    ")]


def _after(back: Backward, printer: Printer) -> Iterator[tuple[str, str]]:
    for name, terms in back.inputs.items():
        yield f"d{name}", _sum_of(terms, printer)
    for name, terms in back.states.items():
        yield f"d{name} of the first step", _sum_of(terms, printer)
    for (family, gate), pairs in back.matrices.items():
        products = " + ".join(f"outer({printer.write(a)}, {printer.write(b)})" for a, b in pairs)
        yield f"d{family}.{gate}".rstrip("."), f"sum over t of {products}" if pairs else "0"
    for (family, gate), e in back.vectors.items():
        total = printer.write(e)
        yield f"d{family}.{gate}".rstrip("."), total if e.op == "accumulator" else f"sum over t of {total}"


def _total(accumulator: Expr) -> str:
    return f"{accumulator.attr.rstrip('_')}_sum"  # the row of a parameter without rows has an empty name


def _sum_of(terms: Terms, printer: Printer) -> str:
    parts = [f"{printer.write(m)}.T @ {printer.write(d, TIMES + 1)}" for m, d in terms.products]
    return " + ".join(parts + ([] if terms.rest is None else [printer.write(terms.rest)])) or "0"


def _emitted_names(scan: Scan) -> Pairs:
    """Name what the products after the loop read: dz.i is the gradient of W.i @ x, arg.n what U.n multiplies."""
    emitted, taken = set(scan.backward.emitted), Counter()
    names = {e: name for name, e in reversed(_forward(scan.cell)) if e in emitted}
    pairs = [(gate, pair) for (_, gate), pairs in scan.backward.matrices.items() for pair in pairs]
    stems = [(f"{kind}.{gate}" if gate else kind, e) for gate, pair in pairs for kind, e in zip(("dz", "arg"), pair)]
    for stem, e in [*stems, *(("dz", e) for e in scan.backward.emitted)]:
        if e in emitted and e not in names:
            taken[stem] += 1
            names[e] = stem + (str(taken[stem]) if taken[stem] > 1 else "")
    return [(name, e) for e, name in names.items()]


STAGES = {"equations": _equations, "graph": _graph, "derivative": _derivative, "loop": _loop, "latex": _latex}
