"""Receives a function that states a cell's equations, hands on a `Cell`: its graph, states and parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

from .expr import Arithmetic, CellError, Expr, leaf, lift, order, written_at
from .ops import matvec


@dataclass(frozen=True)
class Size:
    """The name of a vector's length, for annotations: `State[P]` with `P = Size("P")`."""

    name: str

    def __repr__(self):
        return self.name


I, H, P = Size("I"), Size("H"), Size("P")  # noqa: E741  features of the input, hidden units, projected units
D = Size("D")  # features of one head, where a parameter is block-diagonal


@dataclass(frozen=True)
class Kind:
    """What an argument of a cell is; `Kind[P]` gives it another length than the usual one."""

    name: str
    size: Size | None  # None: a scalar

    def __getitem__(self, size: Size) -> Kind:
        if self.size is None:
            raise CellError(f"{written_at()}: a {self.name} is one number and has no size; write {self.name}, or "
                            f"Input[{size!r}] for a vector per time step")
        if not isinstance(size, Size):
            raise CellError(f"{written_at()}: {self.name}[...] takes a Size, such as {self.name}[P] with "
                            f'P = Size("P"); {size!r} was given')
        return Kind(self.name, size)

    def __repr__(self):
        return self.name if self.size in (_USUAL.get(self.name), None) else f"{self.name}[{self.size}]"


_USUAL = {"Input": I, "Scalar": None, "Constant": H, "State": H, "Matrix": H, "Blocks": H, "Vector": H, "Gain": H,
          "Bias": H}
_KINDS = ", ".join(_USUAL)
Input = Kind("Input", I)        # one vector per time step
Scalar = Kind("Scalar", None)   # one number per time step, such as the time since the step before
Constant = Kind("Constant", H)  # one vector for the whole sequence
State = Kind("State", H)        # carried from step to step
Matrix = Kind("Matrix", H)      # parameter: rows W.i, W.f, ..., each a matrix with `size` rows
Blocks = Kind("Blocks", H)      # parameter: rows R.i, R.f, ..., each a block-diagonal matrix, one block per head
Vector = Kind("Vector", H)      # parameter: rows p.i, p.f, ..., each a vector
Gain = Kind("Gain", H)          # a Vector that a layer starts at 1: the scale of a norm
Bias = Kind("Bias", H)          # a Vector that a layer with bias=False leaves out


@dataclass
class Family:
    """A stacked parameter: rows of one name that are stored as one array, in the order of first use."""

    name: str
    kind: str
    rows: str  # the size of one row block
    columns: str | None = None  # the size of what a matrix multiplies
    gates: list[str] = field(default_factory=list)
    source: str = ""
    parts: dict[str, Expr] = field(default_factory=dict)

    @property
    def stored_columns(self) -> str | None:
        """The size of a stored row. The equations see a whole matrix where only the blocks of its heads are stored."""
        return D.name if self.kind == "Blocks" else self.columns

    def part(self, gate: str) -> Expr:
        if gate not in self.parts:
            if gate.startswith("__"):
                raise AttributeError(gate)
            if ("" in self.parts) != (gate == "") and self.parts:
                raise CellError(f"{written_at()}: {self.name} is used both whole and by rows "
                                f"({self.name}.{gate or self.gates[0]}); use one way throughout")
            dims = (self.rows,) if self.columns is None else (self.rows, self.columns)
            self.parts[gate] = leaf("param", (self.name, gate), dims)
            self.gates.append(gate)
            self.source = self.source or written_at()
        return self.parts[gate]


class Vectors(Arithmetic):
    """A vector parameter in the equations: `b.i` is one row block; `b` alone where there is only one."""

    def __init__(self, family: Family):
        self._family = family

    def __getattr__(self, gate: str) -> Expr:
        return self._family.part(gate)

    def as_value(self) -> Expr:
        return self._family.part("")

    __hash__ = object.__hash__


class Matrices(Arithmetic):
    """A matrix parameter in the equations: `W.i @ x`, or `W @ x` where there is only one row block."""

    def __init__(self, family: Family, gate: str = ""):
        self._family, self._gate = family, gate

    def __getattr__(self, gate: str) -> Matrices:
        if gate.startswith("__"):
            raise AttributeError(gate)
        if self._gate:
            raise CellError(f"{written_at()}: {self._name} is a row of {self._family.name} and has no rows of its own "
                            f"(.{gate}); write {self._family.name}.{self._gate}_{gate} for another row")
        return Matrices(self._family, gate)

    @property
    def _name(self) -> str:
        return f"{self._family.name}.{self._gate}" if self._gate else self._family.name

    def as_value(self) -> Expr:
        raise CellError(f"{written_at()}: {self._name} is a Matrix parameter and can only multiply a vector: "
                        f"{self._name} @ x")

    def __matmul__(self, value) -> Expr:
        family, value, name = self._family, lift(value), self._name
        if len(value.dims) != 1:
            raise CellError(f"{written_at()}: {name} @ needs a vector on its right side; what was given is a scalar")
        width = value.dims[0]
        if family.kind == "Blocks" and width != family.rows:
            raise CellError(f"{written_at()}: {name} multiplies a vector of size {width}, but is annotated Blocks: its "
                            f"blocks map the heads of a vector onto themselves, so that needs the size {family.rows}; "
                            "use a Matrix for another size")
        if family.columns is None:
            family.columns = width
        if family.columns != width:
            raise CellError(f"{written_at()}: {name} multiplies a vector of size {width}, but at {family.source} the "
                            f"same parameter {family.name} multiplies one of size {family.columns}; use a second "
                            "Matrix parameter for one of them")
        return matvec(family.part(self._gate), value)

    __hash__ = object.__hash__


@dataclass(frozen=True, eq=False)
class Cell:
    """A traced cell. `next` maps every state to its value after the step; the first one is the output."""

    name: str
    doc: str
    inputs: dict[str, Expr]  # leaves, the first is the main input; a `Constant` has op "constant", a `Scalar` no dims
    states: dict[str, Expr]  # leaves
    families: dict[str, Family]
    next: dict[str, Expr]
    record: dict[str, Expr]
    source: str
    handed: dict[str, Expr] = field(default_factory=dict)  # what is handed out in place of a state, where they differ

    @property
    def output(self) -> str:
        return next(iter(self.next))

    def value(self, name: str) -> Expr:
        """What is handed out under the name of a state (its next value) or of a recorded value."""
        return next(values[name] for values in (self.handed, self.next, self.record) if name in values)

    @property
    def sizes(self) -> list[str]:
        """The names of all sizes, I and H first."""
        found = dict.fromkeys(("I", "H"))
        for e in [*self.inputs.values(), *self.states.values()]:
            found |= dict.fromkeys(e.dims)
        for f in self.families.values():
            found |= dict.fromkeys(filter(None, (f.rows, f.columns, f.stored_columns)))
        return list(found)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of what the cell computes, known from the first time it was asked for."""
        from .data import fingerprint
        return fingerprint(self)

    def __deepcopy__(self, memo):
        return self  # immutable

    def __reduce__(self):
        from .text import from_json, to_json
        return from_json, (to_json(self),)

    def __repr__(self):
        return f"<Cell {self.name}: states {', '.join(self.states)}, parameters {', '.join(self.families)}>"


def _arguments(function) -> dict[str, Kind]:
    """Name -> kind of the positional arguments; keyword-only ones are settings and keep their values."""
    inner = function.func if isinstance(function, functools.partial) else function
    try:
        hints = inspect.get_annotations(inner, eval_str=True)
    except CellError as error:  # raised in a line of its own, where the annotation is a string
        raise CellError(f"{_where(inner)}: {str(error).partition(': ')[2]}") from None
    except (NameError, AttributeError) as error:
        raise CellError(f"{_where(inner)}: an annotation of {inner.__name__} cannot be read ({error}); import the "
                        f"kinds from gatework.compiler: {_KINDS}") from error
    kinds = {}
    for name, parameter in inspect.signature(inner).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise CellError(f"{_where(inner)}: {inner.__name__} takes {parameter}; a cell names each of its arguments")
        kind = hints.get(name)
        if not isinstance(kind, Kind):
            raise CellError(f"{_where(inner)}: argument {name} of {inner.__name__} needs one of the annotations "
                            f"{_KINDS}; it has {kind!r}. Settings go behind a bare *")
        kinds[name] = kind
    return kinds


def _where(function) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def trace(function: Callable | Cell, bias: bool = True) -> Cell:
    """Run a cell's equations once, on symbols, and return its graph.

    `bias=False` leaves out the parameters annotated `Bias`. `functools.partial` presets keyword-only settings.
    Raises CellError, naming the file and the line, where the equations cannot be used.

    >>> from gatework.cells import lstm
    >>> from gatework.compiler import trace
    >>> cell = trace(lstm)
    >>> list(cell.states), cell.output, cell.families["W"].gates
    (['h', 'c'], 'h', ['i', 'f', 'g', 'o'])
    """
    if isinstance(function, Cell):
        return function
    inner = function.func if isinstance(function, functools.partial) else function
    if not callable(inner) or not hasattr(inner, "__code__"):
        raise CellError(f"a cell is a plain Python function of its equations; {function!r} was given")
    place = _where(inner)
    inputs, states, families, arguments = {}, {}, {}, []
    for name, kind in _arguments(function).items():
        if kind.name == "Scalar":
            value = inputs[name] = leaf("input", name, ())
        elif kind.name in ("Input", "Constant"):
            value = inputs[name] = leaf(kind.name.lower(), name, (kind.size.name,))
        elif kind.name == "State":
            value = states[name] = leaf("state", name, (kind.size.name,))
        elif kind.name == "Bias" and not bias:
            value = _NoBias()
        else:
            families[name] = Family(name, kind.name, kind.size.name)
            value = (Matrices if kind.name in ("Matrix", "Blocks") else Vectors)(families[name])
        arguments.append(value)
    if not any(e.op == "input" and e.dims for e in inputs.values()):
        raise CellError(f"{place}: {inner.__name__} has no argument annotated Input; a cell needs one: x: Input")
    if not states:
        raise CellError(f"{place}: {inner.__name__} has no argument annotated State; a cell needs one: h: State")
    returned = function(*arguments)
    following, record = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, {})
    if not isinstance(following, dict) or not isinstance(record, dict) or not following:
        raise CellError(f"{place}: {inner.__name__} must return dict(h=..., c=...) with the next value of every state, "
                        f"and may return a second dict of values to record; it returned {type(returned).__name__}")
    cell = Cell(inner.__name__, inspect.getdoc(inner) or "", inputs, states, families,
                _values(following, place), _values(record, place), place)
    check(cell)
    return cell


def _values(returned: dict, place: str) -> dict[str, Expr]:
    for name, value in returned.items():
        if isinstance(value, Matrices) or not isinstance(value, (Arithmetic, _NoBias, int, float)):
            raise CellError(f"{place}: what is returned as {name} is not a value of the cell but a "
                            f"{type(value).__name__}")
    return {name: lift(value) for name, value in returned.items()}


class _NoBias:
    """Stands for a bias that the layer leaves out: zero wherever it is used."""

    def __getattr__(self, gate: str) -> Expr:
        if gate.startswith("__") or gate == "as_value":
            raise AttributeError(gate)
        return lift(0.0)

    def __add__(self, other) -> Expr:
        return lift(other)

    def __sub__(self, other) -> Expr:
        return -lift(other)

    def __mul__(self, other) -> Expr:
        return lift(0.0)

    def __float__(self):
        return 0.0

    __radd__ = __rsub__ = __add__
    __rmul__ = __mul__


def check(cell: Cell) -> None:
    """Raise CellError for what a cell may not be, whether it was traced or read from a file."""
    where, name = cell.source, cell.name
    rows = [g for f in cell.families.values() for g in f.gates if g]
    for label in [name, *cell.sizes, *cell.inputs, *cell.states, *cell.families, *rows, *cell.record]:
        if not label.isidentifier():
            raise CellError(f"{where}: {label!r} in {name} is not a Python identifier; name it with letters, digits, _")
    main, first = next(iter(cell.inputs.items()))
    if first.op != "input" or not first.dims:
        raise CellError(f"{where}: the first input of {name} is {main}, but a layer gives the sequence to the first "
                        "one, which so must be annotated Input; move it behind that one")
    for state, e in cell.states.items():
        if state not in cell.next:
            raise CellError(f"{where}: state {state} of {name} is not returned; return dict({state}=..., ...) with its "
                            "next value (the old one, if it stays as it is)")
        got = cell.next[state]
        if got.dims != e.dims:
            raise CellError(f"{got.source}: the next value of state {state} of {name} has size "
                            f"[{', '.join(got.dims)}], the state has [{', '.join(e.dims)}]")
        if got.is_leaf and cell.output == state:
            raise CellError(f"{where}: {name} returns {got.attr} itself as its output {state}, so it computes nothing")
    for state in cell.next:
        if state not in cell.states:
            raise CellError(f"{where}: {name} returns {state}, which is not one of its states "
                            f"({', '.join(cell.states)}); values to look at go into the second dict")
    for key, e in cell.record.items():
        if len(e.dims) > 1:
            raise CellError(f"{where}: recorded value {key} of {name} is a matrix; only vectors can be recorded")
    if not cell.families:
        raise CellError(f"{where}: {name} has no parameter, so there is nothing to learn; add one, such as U: Matrix")
    unknown = {e.attr for e in order([*cell.next.values(), *cell.record.values()]) if e.op == "size"}.difference(
        cell.sizes)
    if unknown:
        raise CellError(f"{where}: {name} asks for the size {', '.join(sorted(unknown))}, which none of its arguments "
                        f"has; they have {', '.join(cell.sizes)}")
    used = set(order(cell.next.values()))
    for key, e in cell.inputs.items():
        if e not in used:
            raise CellError(f"{where}: {name} never uses its input {key}; use it, or drop the argument")
    for key, family in cell.families.items():
        if not any(part in used for part in family.parts.values()):
            raise CellError(f"{where}: {name} never uses its parameter {key}; use it, or drop the argument")
        for gate, part in family.parts.items():
            if part not in used:
                raise CellError(f"{part.source}: {key}.{gate} of {name} does not reach any next state; use it, or "
                                "drop it")
