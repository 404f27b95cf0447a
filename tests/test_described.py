"""Loops are known by their description: the same in any process, and never the same for different code."""

import copy
import inspect
import os
import subprocess
import sys
from dataclasses import is_dataclass, replace
from functools import partial

import pytest

from gatework import cells
from gatework.backends.cpu import jit
from gatework.backends.cpu.described import described
from gatework.backends.cpu.emit import emit
from gatework.backends.cpu.kernel import Kernel
from gatework.backends.cpu.parts import PARTS
from gatework.backends.cpu.shape import Run, shape
from gatework.backends.cpu.target import _host, target
from gatework.compiler import split, trace

CELLS = sorted(name for name, cell in vars(cells).items() if inspect.isfunction(cell))
PRINT = """
from gatework import cells
from gatework.compiler import trace
trace(cells.slstm), trace(cells.gru)  # other values come first
from test_described import loops
from gatework.backends.cpu.described import described
for loop, machine, size in loops("layer_norm_lstm"):
    print(machine.name, size, described(loop))
"""


def loops(name: str, hidden: int = 9):
    """(loop, machine, bytes of a value) of a cell that is traced anew: float32, float64, bfloat16, float32 in parts,
    and weights in bfloat16, by vectors of every width and by a matrix unit."""
    cell = trace(getattr(cells, name))
    sizes = dict.fromkeys(cell.sizes, hidden) | dict(I=4)
    pairs = replace(target(), bits=512, registers=32, pairs=True, tiles=False)
    for size, short, machines in ((4, False, _host().values()), (8, False, _host().values()),
                                  (4, True, (pairs, replace(pairs, tiles=True)))):
        kernel = Kernel(split(cell, (cell.output,)), sizes, size, target(), short)
        for plan, _ in (kernel._training, kernel._backward, kernel._inference):
            for machine in machines:
                yield shape(plan.loop, machine, machine.lanes(size)), machine, size
                if machine.tiles:
                    yield shape(plan.loop, machine, machine.lanes(size), PARTS), machine, size
                elif size == 4 and not short:
                    yield shape(plan.loop, machine, machine.lanes(size), short_weights=True), machine, size


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_that_is_traced_again_is_described_and_written_alike(name):
    for (loop, *how), (again, *_) in zip(loops(name), loops(name), strict=True):
        assert described(loop) == described(again)
        assert emit(loop, *how) == emit(again, *how)


def test_operands_of_products_are_not_compared(monkeypatch):
    """Python 3.13 compares dataclasses field by field, and values of a cell refuse to be, even with themselves."""
    def refuse(self, other):
        raise AssertionError(f"{self} was compared with {other}")

    monkeypatch.setattr(Run, "__eq__", refuse)
    for name in ("block_gru", "layer_norm_lstm", "recurrent_highway"):
        for loop, *how in loops(name):
            emit(loop, *how)


def test_loops_are_described_alike_where_they_are_written_alike_and_only_there():
    texts = {}
    for name in CELLS:
        for hidden in (9, 16):
            for loop, machine, size in loops(name, hidden):
                if loop.panels or not loop.parts:  # nobody multiplies nothing in parts
                    text = emit(loop, machine, size)
                    assert texts.setdefault((machine, size, described(loop)), text) == text
    assert len(texts) == len({(machine, size, text) for (machine, size, _), text in texts.items()})


def changed(a):
    """Copies of a loop, or of a part of it, with one number, one flag, or one way to lie changed."""
    other = {"N": "T", "T": "N", "first": "last", "last": "first"}
    if isinstance(a, bool):
        yield not a
    elif isinstance(a, int):
        yield a + 1
    elif isinstance(a, str):
        yield from [other[a]] if a in other else []
    elif isinstance(a, dict):
        yield from ({**a, k: new} for k, v in a.items() for new in changed(v))
    elif isinstance(a, (list, tuple)):
        yield from (type(a)([*a[:k], new, *a[k + 1:]]) for k, v in enumerate(a) for new in changed(v))
    elif is_dataclass(a):
        for name, value in vars(a).items():
            for new in changed(value):
                made = copy.copy(a)
                made.__dict__[name] = new
                yield made


@pytest.mark.parametrize("name", ["lstm", "layer_norm_lstm", "gru"])
def test_whatever_changes_the_text_of_a_loop_changes_its_description(name):
    told = 0
    for loop, machine, size in loops(name, 40):  # several blocks of units
        if machine != target() or size == 8 or any(p.short for p in loop.panels):  # a flag that is changed, too
            continue
        text, words = emit(loop, machine, size), described(loop)
        for other in changed(loop):
            try:
                differs = emit(other, machine, size) != text
            except (KeyError, IndexError, ZeroDivisionError, ValueError):  # no such loop can be written
                continue
            if differs:
                told += 1
                assert described(other) != words
    assert told > 300


def test_numbers_in_the_equations_change_a_description():
    one, other = (Kernel(split(trace(partial(cells.layer_norm_lstm, eps=eps)), ("h",)), dict(I=4, H=9), 4, target())
                  for eps in (1e-5, 1e-6))
    a, b = (described(shape(k._training[0].loop, target(), target().lanes(4))) for k in (one, other))
    assert a != b


def test_another_process_that_has_traced_other_cells_before_describes_a_loop_alike():
    here = [f"{machine.name} {size} {described(loop)}" for loop, machine, size in loops("layer_norm_lstm")]
    done = subprocess.run([sys.executable, "-c", PRINT], text=True, capture_output=True, check=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout.splitlines() == here


def test_what_another_version_has_compiled_is_not_taken(monkeypatch, tmp_path):
    monkeypatch.setenv(jit.SETTING, str(tmp_path))
    kept = []
    for version in ("one", "two", "one"):
        monkeypatch.setattr(jit, "_loaded", {})
        monkeypatch.setattr(jit, "WRITERS", version)
        jit.load("nothing", lambda: "define void @nothing() {\n  ret void\n}\n", target()).address("nothing")
        kept.append(len(list(tmp_path.iterdir())))
    assert kept == [1, 2, 2]
