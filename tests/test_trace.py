"""Equations that cannot be used are refused, with the file and the line where they are written."""

from __future__ import annotations

import functools
import inspect
import pickle
from copy import deepcopy

import numpy as np
import pytest
from bad_cells import MESSAGE

from gatework import cells
from gatework.compiler import CellError, Input, Matrix, State, exp, minimum, tanh, trace, vjp
from gatework.compiler.text import to_json


def marked_line(function) -> int:
    lines, first = inspect.getsourcelines(function)
    (at,) = [k for k, line in enumerate(lines) if "# <- here" in line]
    return first + at


@pytest.mark.parametrize("function", MESSAGE, ids=lambda f: f.__name__)
def test_bad_equations_raise_a_cell_error_with_file_line_and_remedy(function):
    with pytest.raises(CellError, match=MESSAGE[function]) as caught:
        trace(function)
    assert str(caught.value).startswith(f"{inspect.getsourcefile(function)}:{marked_line(function)}: ")


@pytest.mark.parametrize("what", [None, "lstm", 3, int, print], ids=str)
def test_what_is_not_a_function_of_equations_is_refused(what):
    with pytest.raises(CellError, match="a cell is a plain Python function"):
        trace(what)


def test_a_kind_takes_only_a_size():
    with pytest.raises(CellError, match="takes a Size"):
        State["P"]


def test_gates_keep_the_order_of_first_use():
    cell = trace(cells.lstm)
    assert {k: f.gates for k, f in cell.families.items()} == dict.fromkeys("WUbd", ["i", "f", "g", "o"])
    assert trace(cells.gru).families["W"].gates == ["r", "z", "n"]


def test_first_returned_state_is_the_output():
    assert trace(cells.projected_lstm).output == "h"
    assert trace(cells.projected_lstm).states["h"].dims == ("P",)


@pytest.mark.parametrize("name", cells.__all__)
def test_without_bias_no_bias_parameter_is_left_and_the_rest_stays(name):
    function = getattr(cells, name)
    full, bare = trace(function), trace(function, bias=False)
    assert [k for k, f in full.families.items() if f.kind != "Bias"] == list(bare.families)
    assert bare.states.keys() == full.states.keys()


@pytest.mark.parametrize("peepholes", ["i", "f", "o", "if", "io", "fo", "ifo"])
def test_peepholes_are_parameters_only_of_the_gates_that_look(peepholes):
    cell = trace(functools.partial(cells.peephole_lstm, peepholes=peepholes))
    assert sorted(cell.families["p"].gates) == sorted(peepholes)


def test_equal_subexpressions_are_one_value():
    def cell(x: Input, h: State, W: Matrix):
        return dict(h=tanh(W @ x + h) * tanh(W @ x + h))

    square = trace(cell).next["h"]
    assert square.args[0] is square.args[1]


def test_two_traces_share_no_value():
    first, second = trace(cells.gru), trace(cells.gru)
    assert first.next["h"] is not second.next["h"]


def test_numbers_keep_their_value_whatever_their_type():
    def cell(x: Input, h: State, W: Matrix):
        return dict(h=W @ x + np.float64(0.25) * h + 2 * exp(minimum(h, np.float32(0.5))))

    numbers = {e.attr for e in _constants(trace(cell))}
    assert numbers == {"0.25", "2.0", "0.5"}


def _constants(cell):
    todo, found = list(cell.next.values()), set()
    while todo:
        e = todo.pop()
        todo += e.args
        found |= {e} if e.op == "const" else set()
    return found


def test_a_traced_cell_passes_through_trace_unchanged():
    cell = trace(cells.lstm)
    assert trace(cell) is cell


@pytest.mark.parametrize("name", cells.__all__)
def test_cells_survive_pickle_and_deepcopy(name):
    cell = trace(getattr(cells, name))
    assert to_json(pickle.loads(pickle.dumps(cell))) == to_json(cell)
    assert deepcopy(cell) is cell


def test_gradient_of_what_an_output_does_not_reach_is_the_constant_zero():
    cell = trace(cells.elman)
    (gradient,) = vjp([cell.states["h"]], [cell.next["h"]], [cell.inputs["x"]])
    assert gradient.op == "const"
    assert gradient.attr == "0.0"
