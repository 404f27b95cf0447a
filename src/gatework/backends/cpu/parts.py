"""Vectors of float32 as bfloat16: rounded to one number, or, for a matrix unit, cut into three whose sum they are."""

from __future__ import annotations

from .ir import Function

PARTS = 3  # of eight bits each
SIDE_BY_SIDE = list(range(32))
IN_PAIRS = [k // 2 + 16 * (k % 2) for k in range(32)]


def in_parts(f: Function, low: str, high: str, order: list[int], parts: int, seen: str | None) -> list[str]:
    """Two vectors as rows of 32 values in this order, as vectors of floats: one that is rounded, or `parts` of them.

    Each part is what is left of the value, rounded to eight bits; the last one needs no rounding. What is infinite (or
    becomes so, rounded) or no number has no parts: its lanes are marked in the variable `seen`.
    """
    if parts == 1:
        return [_rounded(f, low, high, order)]
    found, values = [], [low, high]
    for _ in range(parts - 1):
        part = [_upper_half(f, v) for v in values]
        found.append(_upper_halves(f, *part, order))
        values = [f.arithmetic("fsub", v, p) for v, p in zip(values, part)]
    found.append(_upper_halves(f, *values, order))
    lanes = f.module.lanes
    for v in values:  # infinity less infinity
        odd = f.value(f"bitcast <{lanes} x i1> {f.value(f'fcmp uno {f.module.vector} {v}, zeroinitializer')} to i16")
        before = f.value(f"load i16, ptr {seen}")
        f.line(f"store i16 {f.value(f'or i16 {odd}, {before}')}, ptr {seen}")
    return found


def _rounded(f: Function, low: str, high: str, order: list[int]) -> str:
    m, short = f.module, f"<{f.module.lanes} x bfloat>"
    a, b = (f.value(f"fptrunc {m.vector} {v} to {short}") for v in (low, high))
    mask = ", ".join(f"i32 {k}" for k in order)
    both = f.value(f"shufflevector {short} {a}, {short} {b}, <32 x i32> <{mask}>")
    return f.value(f"bitcast <32 x bfloat> {both} to {m.vector}")


def _upper_half(f: Function, value: str) -> str:
    """Rounded to bfloat16: an integer addition carries into the upper half, for either sign."""
    m = f.module
    bits = f.value(f"bitcast {m.vector} {value} to {m.integers}")
    bits = f.value(f"and {m.integers} {f.value(f'add {m.integers} {bits}, splat (i32 32768)')}, splat (i32 -65536)")
    return f.value(f"bitcast {m.integers} {bits} to {m.vector}")


def _upper_halves(f: Function, low: str, high: str, order: list[int]) -> str:
    m = f.module
    a, b = (f.value(f"bitcast {m.vector} {v} to <32 x i16>") for v in (low, high))
    mask = ", ".join(f"i32 {2 * k + 1}" for k in order)
    both = f.value(f"shufflevector <32 x i16> {a}, <32 x i16> {b}, <32 x i32> <{mask}>")
    return f.value(f"bitcast <32 x i16> {both} to {m.vector}")


def report(f: Function, seen: str, where: str) -> None:
    """Write 1 to an address if something was marked."""
    with f.when(f.value(f"icmp ne i16 {f.value(f'load i16, ptr {seen}')}, 0")):
        f.line(f"store i64 1, ptr {where}")
