"""The one data structure: an immutable, interned expression of one time step of one example.

Receives the author's arithmetic, hands on `Expr` nodes. Batch and time never occur here, so a value is a
scalar, a vector or a parameter matrix. Arguments exist before their users: sorting the reachable nodes by
birth number is a topological order, and it is the order in which the equations were written.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from functools import cache
from operator import attrgetter

_HERE = os.path.dirname(os.path.abspath(__file__))


class CellError(ValueError):
    """A cell's equations cannot be used as written; the message names the file and the line."""


def written_at() -> str:
    """Return "file:line" of the innermost caller outside the compiler: the equation at work."""
    frame = sys._getframe(1)
    while frame and _is_here(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "?"


@cache
def _is_here(file: str) -> bool:
    """Whether a file is part of the compiler; asked some thousand times per cell."""
    return os.path.dirname(os.path.abspath(file)) == _HERE


class Arithmetic:
    """The operators of the notation, shared by values and by vector parameters."""

    __slots__ = ()
    def __add__(self, other): return add(self, other)
    def __radd__(self, other): return add(other, self)
    def __sub__(self, other): return sub(self, other)
    def __rsub__(self, other): return sub(other, self)
    def __mul__(self, other): return mul(self, other)
    def __rmul__(self, other): return mul(other, self)
    def __truediv__(self, other): return div(self, other)
    def __rtruediv__(self, other): return div(other, self)
    def __neg__(self): return mul(-1.0, self)
    def __pos__(self): return self
    def __abs__(self): return elementwise("abs", self)
    def __lt__(self, other): return elementwise("lt", self, other)
    def __gt__(self, other): return elementwise("lt", other, self)
    def __le__(self, other): return elementwise("le", self, other)
    def __ge__(self, other): return elementwise("le", other, self)

    def __eq__(self, other):
        raise CellError(f"{written_at()}: values of a cell are not compared with == or !=; "
                        "compare with <, <=, > or >= inside where(condition, a, b)")

    __ne__ = __eq__

    def __bool__(self):
        raise CellError(f"{written_at()}: Python's if, and, or, not, while, min and max need the value now, but the "
                        "equations are traced once for all steps; write where(condition, a, b), minimum or maximum")

    def __pow__(self, power):
        raise CellError(f"{written_at()}: ** is not part of the notation; write a * a, sqrt(a) or exp(p * log(a))")

    __rpow__ = __pow__

    def _round_off(self, other):
        raise CellError(f"{written_at()}: // and % are not part of the notation: they have no useful derivative")

    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __divmod__ = __rdivmod__ = _round_off

    def _logic(self, other=None):
        raise CellError(f"{written_at()}: &, |, ^ and ~ are not part of the notation; a condition is 1 or 0, so write "
                        "a * b for and, maximum(a, b) for or, 1.0 - a for not")

    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __invert__ = _logic

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        # A numpy number on the left of an operator asks here first.
        operation = {"add": add, "subtract": sub, "multiply": mul, "divide": div}.get(ufunc.__name__, self._number)
        return operation(*inputs)

    def _number(self, *_):
        raise CellError(f"{written_at()}: a traced value has no number yet; functions of `math` or `numpy` cannot "
                        "take it. Use those of gatework.compiler: sigmoid, tanh, exp, log, sqrt, ...")

    __float__ = __int__ = __index__ = __len__ = __array__ = __round__ = __trunc__ = __floor__ = __ceil__ = _number

    def __iter__(self):
        raise CellError(f"{written_at()}: a value is a whole vector and cannot be unpacked or looped over")

    def __getitem__(self, key):
        raise CellError(f"{written_at()}: a value is a whole vector and cannot be indexed; split it by using two "
                        "rows of a parameter, such as W.a @ x and W.b @ x")

    def __matmul__(self, other):
        raise CellError(f"{written_at()}: the left side of @ must be a Matrix parameter, such as W.i @ x; for a sum "
                        "over features write sum(a * b)")

    __rmatmul__ = __matmul__


class Expr(Arithmetic):
    """One value in a cell's equations: an operation applied to other values."""

    __slots__ = ("op", "args", "attr", "dims", "born", "source", "__weakref__")
    __hash__ = object.__hash__

    def __init__(self, op, args, attr, dims, born, source):
        self.op: str = op
        self.args: tuple[Expr, ...] = args
        self.attr = attr  # number of a const, name of a leaf or of a size, (family, row) of a param
        self.dims: tuple[str, ...] = dims  # () scalar, ("H",) vector, ("H", "I") matrix
        self.born: int = born
        self.source: str = source  # "file:line" of the equation

    def __repr__(self):
        label = "" if self.attr is None else f" {self.attr}"
        return f"<{self.op}{label} [{', '.join(self.dims)}] #{self.born}>"

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        raise CellError(f"{written_at()}: a value has no .{name}; only parameters have rows, such as W.i, and "
                        "functions are written sigmoid(a), not a.sigmoid()")

    @property
    def is_leaf(self) -> bool:
        return not self.args


_interned: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
_births = itertools.count()
_lock = threading.RLock()


def node(op: str, *args: Expr, attr=None, dims: tuple[str, ...], source: str = "") -> Expr:
    """Build a value, or return the identical one built before (all the common-subexpression work we need).

    `source` is that of the equation at work, if not said.
    """
    # Arguments are named by identity: an entry keeps its arguments alive, so an id in a live key is never reused.
    key = (op, tuple(map(id, args)), attr, dims)
    with _lock:
        found = _interned.get(key)
        if found is None:
            found = _interned[key] = Expr(op, args, attr, dims, next(_births), source or written_at())
        return found


def with_args(e: Expr, args: tuple[Expr, ...]) -> Expr:
    """The same operation of other values, of the same line; `e` itself if these are its own."""
    for a, b in zip(args, e.args):
        if a is not b:
            return node(e.op, *args, attr=e.attr, dims=e.dims, source=e.source)
    return e


def leaf(op: str, attr, dims: tuple[str, ...]) -> Expr:
    """Build a value that nothing computes. Never shared: two cells that are traced alike have leaves of their own."""
    return Expr(op, (), attr, dims, next(_births), written_at())


def const(number: float) -> Expr:
    """A number written in the equations; it takes the shape of whatever it meets."""
    # repr keeps 0.0 and -0.0 apart and makes nan equal to itself
    return node("const", attr=repr(float(number)), dims=())


def size(name: str) -> Expr:
    """The length of a vector, as a number: known when the kernel is made, and the same in all steps."""
    return node("size", attr=name, dims=())


def number(e: Expr) -> float:
    return float(e.attr)


def is_const(e: Expr, value: float | None = None) -> bool:
    return e.op == "const" and (value is None or number(e) == value)


def lift(value) -> Expr:
    """Take what an author may write where a value is meant: a value, a number, a vector parameter without rows."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        if not hasattr(type(value), "as_value"):
            if hasattr(value, "__float__") and not hasattr(value, "__len__"):
                return const(float(value))
            raise CellError(f"{written_at()}: {type(value).__name__} {value!r} is not a value of the cell; use its "
                            "arguments, numbers, and the functions of gatework.compiler")
        return value.as_value()
    return const(value)


def fit(*values) -> tuple[tuple[Expr, ...], tuple[str, ...]]:
    """Bring the arguments of an element-wise operation to one shape: scalars are spread, constants stay as they are."""
    args = tuple([lift(v) for v in values])
    shapes = {a.dims for a in args}
    shapes.discard(())
    if len(shapes) > 1:
        sizes = " and ".join(f"[{', '.join(s)}]" for s in sorted(shapes))
        raise CellError(f"{written_at()}: element-wise arithmetic of values of different sizes {sizes}; bring one to "
                        "the size of the other with a product, such as V @ a")
    dims = shapes.pop() if shapes else ()
    if len(dims) > 1:
        raise CellError(f"{written_at()}: a Matrix parameter can only multiply a vector: W.i @ x")
    if dims:
        args = tuple([a if a.dims or a.op == "const" else node("expand", a, dims=dims) for a in args])
    return args, dims


def elementwise(op: str, *values) -> Expr:
    args, dims = fit(*values)
    return node(op, *args, dims=dims)


def add(a, b) -> Expr:
    a, b = lift(a), lift(b)
    if is_const(a) and is_const(b):
        return const(number(a) + number(b))
    if is_const(a, 0):
        return b
    if is_const(b, 0):
        return a
    return elementwise("add", a, b)


def sub(a, b) -> Expr:
    a, b = lift(a), lift(b)
    if is_const(a) and is_const(b):
        return const(number(a) - number(b))
    if is_const(b, 0):
        return a
    return elementwise("sub", a, b)


def mul(a, b) -> Expr:
    a, b = lift(a), lift(b)
    if is_const(a) and is_const(b):
        return const(number(a) * number(b))
    if is_const(a, 1):
        return b
    if is_const(b, 1):
        return a
    if is_const(a, 0) or is_const(b, 0):
        return const(0)
    return elementwise("mul", a, b)


def div(a, b) -> Expr:
    a, b = lift(a), lift(b)
    if is_const(b, 1):
        return a
    if is_const(a) and is_const(b) and number(b) != 0:
        return const(number(a) / number(b))
    return elementwise("div", a, b)


def order(outputs: Iterable[Expr], known=()) -> list[Expr]:
    """Every value the outputs need, in the order it was written; nothing behind a known value."""
    seen: set[Expr] = set()
    todo = list(outputs)
    while todo:
        e = todo.pop()
        if e not in seen and e not in known:
            seen.add(e)
            todo += e.args
    return sorted(seen, key=attrgetter("born"))


def substitution(replace: dict[Expr, Expr]) -> Callable[[Iterable[Expr]], list[Expr]]:
    """A function that takes values and returns them with some others replaced, rebuilt only where they change.

    It knows what it has rebuilt: large graphs have much in common.
    """
    done = dict(replace)

    def substitute(outputs: Iterable[Expr]) -> list[Expr]:
        outputs = list(outputs)
        for e in order(outputs, known=done):
            done[e] = with_args(e, tuple([done[a] for a in e.args]))
        return [done[e] for e in outputs]

    return substitute
