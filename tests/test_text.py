"""The stages of a cell as text, and the cell as data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import my_cells
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_meaning import NUMPY, draw_leaf, draw_parameters, stacked

from gatework import cells
from gatework.backends import reference
from gatework.compiler import CellError, Input, Matrix, State, sigmoid, tanh, trace
from gatework.compiler.text import STAGES, fingerprint, from_json, show, to_json

CATALOGUE = [getattr(cells, name) for name in cells.__all__]
ALL = [*CATALOGUE, *my_cells.CELLS]
SIZES = {"I": 2, "H": 5, "P": 3, "S": 4}


def name_of(function) -> str:
    return function.__name__


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("function", CATALOGUE, ids=name_of)
def test_stage_is_the_golden_text(function, stage, golden):
    golden(f"{function.__name__}/{stage}.txt", show(trace(function), stage))


@pytest.mark.parametrize("function", CATALOGUE, ids=name_of)
def test_json_is_the_golden_text(function, golden):
    golden(f"{function.__name__}/json.txt", to_json(trace(function)).rstrip("\n"))


def test_an_unknown_stage_is_refused_with_a_list_of_the_stages():
    with pytest.raises(ValueError, match="equations, graph, derivative, loop, latex; 'assembly' was given"):
        show(trace(cells.lstm), "assembly")


EVERYTHING = """
import sys; sys.path.insert(0, {tests!r})
import my_cells
from gatework import cells
from gatework.compiler import trace
from gatework.compiler.text import STAGES, show, to_json
catalogue = [*(getattr(cells, name) for name in cells.__all__), *my_cells.CELLS]
for function in {order}(catalogue):
    cell = trace(function)
    for stage in {order}(list(STAGES)):
        print(stage, function.__name__, repr(show(cell, stage)))
    print(function.__name__, repr(to_json(cell)))
"""


def test_texts_do_not_depend_on_the_process_or_on_what_was_asked_before():
    tests = str(Path(__file__).parent)
    runs = []
    for order, seed in (("list", "1"), ("reversed", "2")):
        code = EVERYTHING.format(tests=tests, order=order)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                              env={"PYTHONHASHSEED": seed})
        runs.append(sorted(done.stdout.splitlines()))
    assert len(runs[0]) == len(ALL) * (len(STAGES) + 1)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("function", ALL, ids=name_of)
@pytest.mark.parametrize("stage", [*STAGES, "json"])
def test_no_text_holds_an_absolute_path(function, stage):
    cell = trace(function)
    text = to_json(cell) if stage == "json" else show(cell, stage)
    assert str(Path(__file__).parent) not in text
    assert str(Path(cells.__file__).parent) not in text


class Rows(SimpleNamespace):
    """A parameter by rows, or the gradient of one."""


def run_text(text: str, names: dict) -> dict:
    """Execute equations as Python; a prime becomes _next."""
    names = NUMPY | {"sum": np.sum, "mean": np.mean, "size": SIZES.get} | {s: s for s in SIZES} | names
    for line in text.replace("'", "_next").splitlines():
        left = line.partition(" = ")[0].partition(".")
        if left[1]:
            names.setdefault(left[0], Rows())
        exec(line, {}, ChainToNames(names))
    return names


class ChainToNames(dict):
    """Lets exec read and write the names of the equations."""

    def __init__(self, names):
        super().__init__()
        self.names = names

    def __getitem__(self, key):
        return self.names[key]

    def __setitem__(self, key, value):
        self.names[key] = value


def draw_step(cell):
    rng = np.random.default_rng(11)
    leaves = {e: draw_leaf(rng, e, SIZES) for e in [*cell.inputs.values(), *cell.states.values()]}
    parameters = draw_parameters(rng, cell, SIZES)
    names = {e.attr: v for e, v in leaves.items()}
    for family in cell.families.values():
        rows = {g: parameters[e] for g, e in family.parts.items()}
        names[family.name] = rows[""] if "" in rows else Rows(**rows)
    return leaves, parameters, names


def step_in_torch(cell, leaves, parameters):
    """Next states and recorded values of one step of one example, and the tensors they came from."""
    def tensors(arrays):
        return [torch.tensor(a, requires_grad=True) for a in arrays]

    inputs = tensors(leaves[e] for e in cell.inputs.values())
    states = tensors(leaves[e] for e in cell.states.values())
    stacks = tensors(stacked(cell, parameters))
    given = [i[None] if e.op == "constant" else i[None, None] for i, e in zip(inputs, cell.inputs.values())]
    names = list(cell.record) or [cell.output]
    values, last = reference.run(cell, given, [s[None] for s in states], stacks, outputs=names)
    return dict(zip(cell.states, (e[0] for e in last))), dict(zip(cell.record, values)), inputs, states, stacks


@pytest.mark.parametrize("function", ALL, ids=name_of)
def test_equations_run_as_python_give_the_next_states_and_recorded_values(function):
    cell = trace(function)
    leaves, parameters, names = draw_step(cell)
    following, record, *_ = step_in_torch(cell, leaves, parameters)
    found = run_text(show(cell, "equations"), names)
    for state, value in following.items():
        np.testing.assert_allclose(found[f"{state}_next"], value.detach().numpy(), rtol=1e-12)  # float64 both
    for name, value in record.items():
        np.testing.assert_allclose(found[name], np.squeeze(value.detach().numpy()), rtol=1e-12)


@pytest.mark.parametrize("function", ALL, ids=name_of)
def test_derivative_run_as_python_gives_the_gradients_of_torch(function):
    cell = trace(function)
    leaves, parameters, names = draw_step(cell)
    following, _, inputs, states, stacks = step_in_torch(cell, leaves, parameters)
    rng = np.random.default_rng(12)
    names = run_text(show(cell, "equations"), names)
    for state, value in following.items():
        names[f"d{state}_next"] = rng.standard_normal(value.shape)
    loss = sum((value * torch.from_numpy(names[f"d{state}_next"])).sum() for state, value in following.items())
    wanted = torch.autograd.grad(loss, [*inputs, *states, *stacks], allow_unused=True, materialize_grads=True)
    found = run_text(show(cell, "derivative"), names)
    got = [found[f"d{k}"] for k in [*cell.inputs, *cell.states]]
    for family in cell.families.values():
        d, parts = found[f"d{family.name}"], family.parts
        got.append(d if "" in parts else np.concatenate([getattr(d, g) for g in parts]))
    for name, a, b in zip([*cell.inputs, *cell.states, *cell.families], got, wanted, strict=True):
        np.testing.assert_allclose(np.broadcast_to(a, b.shape), b.detach(), rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("function", ALL, ids=name_of)
def test_latex_is_balanced_and_names_every_state_after_the_step(function):
    cell = trace(function)
    text = show(cell, "latex")
    assert text.count("{") == text.count("}")
    assert text.count(r"\left") == text.count(r"\right")
    assert text.count(r"\begin") == text.count(r"\end")
    assert all(f"{state}_{{t}} &= " in text for state in cell.states)


def test_sums_stay_in_the_order_written_and_parentheses_where_they_matter():
    def cell(x: Input, h: State, W: Matrix):
        a = W @ x
        return dict(h=a - (h - 2.0 * (a + h)) / (h / a) + (-(a * h) - (a - -h)) * -0.5)

    assert show(trace(cell), "equations") == "\n".join([
        "t1 = W @ x",
        "h' = t1 - (h - 2 * (t1 + h)) / (h / t1) + (-t1 * h - (t1 - (-h))) * (-0.5)",
    ])


def test_a_state_that_passes_through_and_one_that_is_shared_are_written_out():
    def cell(x: Input, h: State, c: State, k: State, W: Matrix):
        a = tanh(W @ x + h + c)
        return dict(h=a, c=a, k=k)

    assert show(trace(cell), "equations") == "h' = tanh(W @ x + h + c)\nk' = k\nc' = h'"


def test_names_made_up_for_intermediate_values_avoid_those_of_the_cell():
    def cell(x: Input, t1: State, s1: State, W: Matrix, U: Matrix):
        shared = W @ x + t1
        t2 = tanh(shared * sigmoid(shared))
        return dict(t1=t2, s1=U @ (s1 * sigmoid(shared))), dict(t2=t2)

    text = show(trace(cell), "equations")
    assert [line.partition(" = ")[0] for line in text.splitlines()] == ["t3", "t4", "t1'", "s1'", "t2"]
    assert "s1 = " not in show(trace(cell), "loop").replace("ds1 = ", "")


# The cell as data


@pytest.mark.parametrize("function", ALL, ids=name_of)
def test_json_round_trip_is_exact_and_the_cell_computes_the_same(function):
    cell = trace(function)
    again = from_json(to_json(cell))
    assert to_json(again) == to_json(cell)
    assert fingerprint(again) == fingerprint(cell) == cell.fingerprint
    leaves, parameters, _ = draw_step(cell)
    first = step_in_torch(cell, leaves, parameters)[0]
    leaves = dict(zip([*again.inputs.values(), *again.states.values()], leaves.values()))
    parts = [e for f in again.families.values() for e in f.parts.values()]
    second = step_in_torch(again, leaves, dict(zip(parts, parameters.values())))[0]
    assert all(torch.equal(first[k], second[k]) for k in cell.states)


def test_fingerprint_ignores_docstring_and_place_but_not_the_equations():
    def make(doc, number):
        def cell(x: Input, h: State, W: Matrix):
            return dict(h=tanh(W @ x + number * h))
        cell.__doc__ = doc
        return trace(cell)

    assert fingerprint(make("one", 0.5)) == fingerprint(make("two", 0.5))
    assert fingerprint(make("one", 0.5)) != fingerprint(make("one", 0.25))


def test_values_made_of_numbers_alone_do_not_make_the_text_depend_on_other_cells():
    def cell(x: Input, h: State, W: Matrix):
        return dict(h=W @ x + h * (tanh(sigmoid(0.375)) + sigmoid(0.625)))

    text = to_json(trace(cell))
    keep = [sigmoid(0.625), tanh(sigmoid(0.375)), tanh(sigmoid(0.625))]
    assert to_json(trace(cell)) == text == to_json(from_json(text))
    assert len(keep) == 3


def lstm_data() -> dict:
    return json.loads(to_json(trace(cells.lstm)))


def change(path: str, value):
    """A copy of the LSTM's description with one entry replaced; the path is keys and positions."""
    data = lstm_data()
    *front, last = [int(k) if k.lstrip("-").isdigit() else k for k in path.split("/")]
    at = data
    for key in front:
        at = at[key]
    at[last] = value
    return data


LIES = {
    "format": (change("format", "onnx"), "description of a cell"),
    "version": (change("version", 99), '"version" must be 1'),
    "key missing": ({k: v for k, v in lstm_data().items() if k != "next"}, "with the keys"),
    "key too many": (lstm_data() | {"code": "print(1)"}, "with the keys"),
    "name with a path": (change("name", "../lstm"), "identifier"),
    "name not a text": (change("name", 3), '"name" of the cell must be str'),
    "huge name": (change("name", "a" * 10_000), "at most 100 characters"),
    "source with a folder": (change("source", "/etc/lstm.py:1"), "without folders"),
    "source with an escape": (change("values/0/source", "\x1b[2J:1"), "without folders"),
    "input kind": (change("inputs/0/kind", "state"), '"kind" of input'),
    "input twice": (change("inputs", lstm_data()["inputs"] * 2), "given twice"),
    "input named as a state": (change("inputs/0/name", "h"), "given twice"),
    "no input": (change("inputs", []), "refers to"),
    "state size": (change("states/0/size", "I"), "sizes"),
    "parameter kind": (change("parameters/0/kind", "Pickle"), '"kind" of parameter'),
    "matrix without columns": (change("parameters/0/columns", ""), '"kind" of parameter'),
    "vector with columns": (change("parameters/2/columns", "I"), '"kind" of parameter'),
    "gate twice": (change("parameters/0/gates", ["i", "i"]), "given twice"),
    "gate not an identifier": (change("parameters/0/gates", ["i", "f", "g", "o.o"]), "identifier"),
    "gate dunder": (change("parameters/0/gates", ["i", "f", "g", "__class__"]), "cannot be named __class__"),
    "gate too many": (change("parameters/0/gates", ["i", "f", "g", "o", "p"]), "does not reach"),
    "gate and whole": (change("parameters/0/gates", ["", "f"]), "identifier"),
    "unknown operation": (change("values/1/op", "system"), "unknown operation 'system'"),
    "operation of derivatives": (change("values/1/op", "outer"), "unknown operation 'outer'"),
    "arity": (change("values/1/args", [0]), "add takes 2 arguments; 1 were given"),
    "forward reference": (change("values/1/args", [0, 2]), "value 1 refers to 2"),
    "itself": (change("values/1/args", [1, "b.i"]), "value 1 refers to 1"),
    "negative reference": (change("values/1/args", [-1, "b.i"]), "refers to -1"),
    "true as a reference": (change("values/5/args", [True]), "refers to True"),
    "list as a reference": (change("values/5/args", [[]]), r"refers to \[\]"),
    "unknown name": (change("values/1/args", [0, "b.q"]), "refers to 'b.q'"),
    "not a number": (change("values/1/args", [0, {"number": "ten"}]), "refers to"),
    "folded number": (change("values/1/args", [0, {"number": "0.0"}]), "does not give"),
    "dims": (change("values/1/dims", ["I"]), "does not give"),
    "dims of a matrix": (change("values/1/dims", ["H", "I"]), "does not give"),
    "matrix as a value": (change("values/1/args", ["W.i", "W.f"]), "multiply a vector"),
    "vector as a matrix": (change("values/0/args", ["b.i", "x"]), "matvec needs"),
    "wrong width": (change("values/0/args", ["W.i", "h"]), "matvec needs"),
    "state returned twice": (change("next/1/0", "h"), "twice in next"),
    "state not returned": (change("next", lstm_data()["next"][:1]), "not returned"),
    "next state unknown": (change("next/1/0", "q"), "not returned"),
    "next state of wrong size": (change("next/1/1", "x"), r"has size \[I\]"),
    "recorded matrix": (change("record/0/1", "W.i"), "is a matrix"),
    "unused value": (change("values", [*lstm_data()["values"], lstm_data()["values"][0] | {"args": ["W.f", "x"]}]),
                     "nothing uses"),
    "too many values": (change("values", lstm_data()["values"] * 100), "at most 2000"),
    "a list": ([1, 2], "description of a cell"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_description_that_lies_is_refused(lie):
    data, message = LIES[lie]
    with pytest.raises(CellError, match=message):
        from_json(json.dumps(data))


@pytest.mark.parametrize(("text", "message"), [
    ("", "not JSON"),
    ("{", "not JSON"),
    (to_json(trace(cells.lstm))[:500], "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("1" * 5_000, "not JSON"),
    (" " * 1_000_001, "at most 1000000"),
    ('{"format": "gatework cell", "format": "gatework cell"}', "key twice"),
    ("NaN", "description of a cell"),
], ids=["empty", "open", "truncated", "deep", "huge number", "huge", "key twice", "nan"])
def test_a_text_that_is_no_description_is_refused(text, message):
    with pytest.raises(CellError, match=message):
        from_json(text)


def test_a_long_chain_is_read_without_recursion():
    def cell(x: Input, h: State, W: Matrix):
        a = W @ x + h
        for _ in range(1900):
            a = tanh(a)
        return dict(h=a)

    traced = trace(cell)
    assert to_json(from_json(to_json(traced))) == to_json(traced)


def places(data, at=()):
    """The paths of all entries."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-3, 40), st.floats(), st.text(max_size=3),
                   st.sampled_from(["x", "h", "c", "W.i", "b.f", "H", "I", "add", "sum", "expand", "where", "matvec"]),
                   st.just([]), st.just({}), st.just({"number": "2.0"}))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(places(lstm_data()))), LEAVES)
def test_a_description_with_any_entry_replaced_is_refused_or_is_read_as_it_stands(path, value):
    data = lstm_data()
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    text = json.dumps(data)
    try:
        described = to_json(from_json(text))
    except CellError:  # the one error that a stranger's text may cause
        return
    assert json.loads(described) == json.loads(text)
