"""Receives a cell, hands on its graph as JSON, and back: what a saved model says about its cell.

Such a file may come from a stranger. Reading one runs nothing of it: names are looked up, values are built with the
constructors that the equations use, and what these would not have built is refused.
"""

from __future__ import annotations

import hashlib
import json
import os

from . import expr, ops
from .expr import CellError, Expr, const, elementwise, leaf, node, order, size
from .trace import Cell, Family, check

FORMAT, VERSION = "gatework cell", 1
MOST_CHARACTERS, MOST_VALUES = 1_000_000, 2_000  # of a file; the largest cell of the catalogue has 30 values
_BUILD = {
    "add": expr.add, "sub": expr.sub, "mul": expr.mul, "div": expr.div, "sum": ops.sum, "matvec": ops.matvec,
    **dict.fromkeys(("sigmoid", "tanh", "relu", "exp", "log", "sqrt", "abs", "softplus", "minimum", "maximum", "where",
                     "lt", "le", "expand")),
}
_ARITY = {"where": 3} | dict.fromkeys(("add", "sub", "mul", "div", "minimum", "maximum", "lt", "le", "matvec"), 2)


def to_json(cell: Cell) -> str:
    """Return the cell as JSON: the same text for the same equations, in any process.

    >>> from gatework.cells import elman
    >>> from gatework.compiler import trace
    >>> print(to_json(trace(elman)))  # doctest: +ELLIPSIS
    {"format": "gatework cell",
     "version": 1,
     "name": "elman",
     ...
    """
    def block(values: list) -> str:
        return "[" + ",\n  ".join(json.dumps(v) for v in values) + "]"

    data = as_data(cell)
    lines = (f"{json.dumps(k)}: {block(v) if isinstance(v, list) else json.dumps(v)}" for k, v in data.items())
    return "{" + ",\n ".join(lines) + "}\n"


def fingerprint(cell: Cell) -> str:
    """Return a hash of what the cell computes: its graph and names, not its docstring or the lines of its file."""
    data = as_data(cell)
    for values in (data, *data["values"]):
        values.pop("source")
    del data["doc"]
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def as_data(cell: Cell) -> dict:
    """Return the cell in dicts, lists, strings and whole numbers. Values refer to earlier ones by their position."""
    position, own = _positions(cell), _own([*cell.next.values(), *cell.record.values()])

    def name(e: Expr):
        if e.op in ("const", "size"):
            return {"number" if e.op == "const" else "size": e.attr}
        if e.op == "param":
            return ".".join(filter(None, e.attr))
        return e.attr if e.is_leaf else position[e]

    return {
        "format": FORMAT, "version": VERSION, "name": cell.name, "doc": cell.doc, "source": _file_and_line(cell.source),
        "inputs": [{"name": k, "kind": e.op, "size": "".join(e.dims)} for k, e in cell.inputs.items()],
        "states": [{"name": k, "size": e.dims[0]} for k, e in cell.states.items()],
        "parameters": [{"name": f.name, "kind": f.kind, "rows": f.rows, "columns": f.columns or "", "gates": f.gates}
                       for f in cell.families.values()],
        "values": [{"op": e.op, "args": [name(a) for a in e.args], "dims": list(e.dims),
                    "source": _file_and_line(e.source) if e in own else ""} for e in position],
        "next": [[k, name(e)] for k, e in cell.next.items()],
        "record": [[k, name(e)] for k, e in cell.record.items()],
    }


def _file_and_line(source: str) -> str:
    return os.path.basename(source.replace("\\", "/"))


def _positions(cell: Cell) -> dict[Expr, int]:
    """Number the computed values in the order written; what is made of numbers alone comes before its first user.

    Values made of numbers alone are shared between cells, so their birth depends on what was traced before.
    """
    outputs = [*cell.next.values(), *cell.record.values()]
    own = _own(outputs)
    position: dict[Expr, int] = {}
    todo = [e for e in [*(e for e in order(outputs) if e in own), *outputs] if e.args][::-1]
    while todo:
        missing = next((a for a in todo[-1].args if a.args and a not in position), None)
        if missing is None:
            position.setdefault(todo.pop(), len(position))
        else:
            todo.append(missing)
    return position


def _own(outputs: list[Expr]) -> set[Expr]:
    """The values that rest on a leaf of the cell; the others are made of numbers and sizes alone."""
    own: set[Expr] = set()
    for e in order(outputs):
        if not own.isdisjoint(e.args) or (e.is_leaf and e.op not in ("const", "size")):
            own.add(e)
    return own


def from_json(text: str) -> Cell:
    """Return the cell that `to_json` described. Raises CellError, saying where, for a text that describes none.

    >>> from gatework.cells import gru
    >>> from gatework.compiler import trace
    >>> from_json(to_json(trace(gru)))
    <Cell gru: states h, parameters W, U, b, d>
    """
    data = _parse(text)
    _take(data, "the cell", format=str, version=int, name=str, doc=str, source=str, inputs=list, states=list,
          parameters=list, values=list, next=list, record=list)
    names: dict[str, Expr] = {}
    inputs = dict(_input(d, names) for d in data["inputs"])
    states = dict(_state(d, names) for d in data["states"])
    families = {f.name: f for f in (_family(d, names) for d in data["parameters"])}
    values = _values(data["values"], names)
    following, record = (_outputs(data[k], k, names, values) for k in ("next", "record"))
    if not inputs or not states or not following:
        raise _refuse("a cell needs an input, a state and a next value of it")
    cell = Cell(_identifier(data["name"]), data["doc"], inputs, states, families, following, record,
                _place(data["source"]))
    for family in families.values():
        family.source = cell.source
    check(cell)
    if as_data(cell) != data:
        raise _refuse("it holds values that nothing uses, or the same value twice, or an order that to_json does not "
                      "write")
    return cell


def _refuse(what: str) -> CellError:
    return CellError(f"cell JSON: {what}. Write such files with gatework.compiler.text.to_json")


def _parse(text: str) -> dict:
    def once(pairs):
        keys = [k for k, _ in pairs]
        if len(set(keys)) < len(keys):
            raise _refuse(f"an object has a key twice among {', '.join(keys)[:200]}")
        return dict(pairs)

    if len(text) > MOST_CHARACTERS:
        raise _refuse(f"the text has {len(text)} characters; a cell has at most {MOST_CHARACTERS}")
    try:
        data = json.loads(text, object_pairs_hook=once)
    except CellError:
        raise
    except (ValueError, RecursionError) as error:
        raise _refuse(f"this is not JSON ({error})") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _refuse(f'this is not the description of a cell: "format" must be "{FORMAT}"')
    if data.get("version") != VERSION:
        raise _refuse(f'"version" must be {VERSION}, the one this release reads; {data.get("version")!r} was given')
    return data


def _take(record, where: str, /, **types: type) -> list:
    """Return the fields of an object that has exactly these, each of its type."""
    if not isinstance(record, dict) or record.keys() != types.keys():
        given = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise _refuse(f"{where} must be an object with the keys {', '.join(types)}; given was {given[:200]}")
    for key, kind in types.items():
        if not isinstance(record[key], kind) or isinstance(record[key], bool):
            raise _refuse(f'"{key}" of {where} must be {kind.__name__}; given was {repr(record[key])[:200]}')
    return [record[key] for key in types]


def _identifier(text) -> str:
    if not isinstance(text, str) or not text.isidentifier() or len(text) > 100:
        raise _refuse(f"a name must be a Python identifier of at most 100 characters; given was {repr(text)[:200]}")
    return text


def _place(source: str) -> str:
    if len(source) > 200 or not source.isprintable() or _file_and_line(source) != source:
        raise _refuse(f'"source" must be file:line without folders; given was {source[:200]!r}')
    return source


def _declare(names: dict[str, Expr], name: str, e: Expr) -> Expr:
    if name in names:
        raise _refuse(f"the name {name} is given twice")
    names[name] = e
    return e


def _input(record, names: dict[str, Expr]) -> tuple[str, Expr]:
    name, kind, size = _take(record, "an input", name=str, kind=str, size=str)
    if kind not in ("input", "constant"):
        raise _refuse(f'"kind" of input {name[:100]} must be "input" or "constant"; given was {kind[:100]!r}')
    dims = () if kind == "input" and not size else (_identifier(size),)
    return name, _declare(names, _identifier(name), leaf(kind, name, dims))


def _state(record, names: dict[str, Expr]) -> tuple[str, Expr]:
    name, size = _take(record, "a state", name=str, size=str)
    return name, _declare(names, _identifier(name), leaf("state", name, (_identifier(size),)))


def _family(record, names: dict[str, Expr]) -> Family:
    name, kind, rows, columns, gates = _take(record, "a parameter", name=str, kind=str, rows=str, columns=str,
                                             gates=list)
    fits = {"Matrix": bool(columns), "Blocks": columns == rows} | dict.fromkeys(("Vector", "Gain", "Bias"), not columns)
    if not fits.get(kind):
        raise _refuse(f'"kind" of parameter {name[:100]} must be Matrix, with columns, Blocks, with as many columns as '
                      'rows, or Vector, Gain or Bias, with ""')
    if _identifier(name) in names:
        raise _refuse(f"the name {name} is given twice")
    family = Family(name, kind, _identifier(rows), _identifier(columns) if columns else None)
    if gates != [""]:
        for gate in gates:
            if _identifier(gate).startswith("__"):
                raise _refuse(f"a row of a parameter cannot be named {gate}")
    for gate in gates:
        _declare(names, f"{name}.{gate}" if gate else name, family.part(gate))
    return family


def _values(records: list, names: dict[str, Expr]) -> list[Expr]:
    if len(records) > MOST_VALUES:
        raise _refuse(f"the cell has {len(records)} values; at most {MOST_VALUES} are read")
    values: list[Expr] = []
    for record in records:
        where = f"value {len(values)}"
        op, references, dims, source = _take(record, where, op=str, args=list, dims=list, source=str)
        if op not in _BUILD:
            raise _refuse(f"{where} has the unknown operation {op[:100]!r}; known are {', '.join(_BUILD)}")
        if len(references) != _ARITY.get(op, 1):
            raise _refuse(f"{where}: {op} takes {_ARITY.get(op, 1)} arguments; {len(references)} were given")
        args = tuple(_look_up(r, names, values, where) for r in references)
        values.append(_build(op, args, tuple(map(_identifier, dims)), where))
        if source:
            values[-1].source = _place(source)
    return values


def _look_up(reference, names: dict[str, Expr], values: list[Expr], where: str) -> Expr:
    if isinstance(reference, int) and not isinstance(reference, bool) and 0 <= reference < len(values):
        return values[reference]
    if isinstance(reference, str) and reference in names:
        return names[reference]
    if isinstance(reference, dict) and "size" in reference:
        return size(_identifier(_take(reference, f"a size in {where}", size=str)[0]))
    if isinstance(reference, dict):
        try:
            return const(float(_take(reference, f"a number in {where}", number=str)[0]))
        except ValueError:
            pass
    raise _refuse(f"{where} refers to {repr(reference)[:200]}; it may name an input, a state, a row of a parameter, an "
                  f'earlier value (0 to {len(values) - 1}), a {{"number": "0.5"}} or a {{"size": "H"}}')


def _build(op: str, args: tuple[Expr, ...], dims: tuple[str, ...], where: str) -> Expr:
    if op == "matvec" and (args[0].op != "param" or args[0].dims[1:] != args[1].dims or len(args[1].dims) != 1):
        raise _refuse(f"{where}: matvec needs a row of a Matrix and a vector of its width; the sizes are "
                      f"[{', '.join(args[0].dims)}] and [{', '.join(args[1].dims)}]")
    if op == "expand":
        fits = len(dims) == 1 and not args[0].dims and args[0].op != "const"
        e = node("expand", *args, dims=dims) if fits else None
    else:
        e = _BUILD[op](*args) if _BUILD[op] else elementwise(op, *args)
    if e is None or (e.op, e.dims) != (op, dims) or any(a is not b for a, b in zip(e.args, args)):
        raise _refuse(f"{where}: {op} of sizes {', '.join(str(list(a.dims)) for a in args)} does not give "
                      f"{list(dims)}")
    return e


def _outputs(pairs: list, what: str, names: dict[str, Expr], values: list[Expr]) -> dict[str, Expr]:
    outputs: dict[str, Expr] = {}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise _refuse(f'"{what}" must be pairs of a name and a value; given was {repr(pair)[:200]}')
        if _identifier(pair[0]) in outputs:
            raise _refuse(f"{pair[0]} is given twice in {what}")
        outputs[pair[0]] = _look_up(pair[1], names, values, what)
    return outputs
