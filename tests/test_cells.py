"""The cells of the catalogue beyond those of torch: values against literal steps, gradients against the reference."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import CORE
from literal_cells import LITERAL

from gatework import autograd, cells
from gatework.compiler import CellError, trace

ROOT = Path(__file__).parents[1]
# 3 heads of 11 features: no multiple of any vector
SIZES = {"I": 3, "H": 33, "S": 2, "D": 11}


def name_of(function) -> str:
    if isinstance(function, functools.partial):
        return "-".join([function.func.__name__, *map(str, function.keywords.values())])
    return function.__name__


class Drawn:
    """Inputs, first states and parameters of one call, in numpy."""

    def __init__(self, function, T: int, B: int, seed: int = 31):
        self.cell = trace(function)
        rng = np.random.default_rng(seed)
        shapes = [(*((B,) if e.op == "constant" else (T, B)), *([SIZES[d] for d in e.dims] or [1]))
                  for e in self.cell.inputs.values()]
        self.inputs = [rng.standard_normal(s) for s in shapes]
        self.inputs = [np.abs(x) if x.shape[-1] == 1 else x for x in self.inputs]  # a span of time is not negative
        self.states = [rng.standard_normal((B, SIZES[e.dims[0]])) for e in self.cell.states.values()]
        if "n" in self.cell.states:  # the normaliser adds up gates
            at = list(self.cell.states).index("n")
            self.states[at] = np.abs(self.states[at]) + 0.5
        self.parameters = {f.name: self._parameter(rng, f) for f in self.cell.families.values()}

    def _parameter(self, rng, family) -> np.ndarray:
        columns = family.stored_columns
        shape = [len(family.gates) * SIZES[family.rows], *([SIZES[columns]] if columns else [])]
        return rng.uniform(-1.0, 1.0, shape) * (shape[1]**-0.5 if columns else 1.0)

    def tensors(self, **options) -> list[list[torch.Tensor]]:
        return [[torch.tensor(a, **options) for a in group]
                for group in (self.inputs, self.states, self.parameters.values())]

    def literal(self, step, reverse: bool):
        """The output [T, B, H] and the last states by one step after the other, one example after the other."""
        T, B = self.inputs[0].shape[:2]
        output, last = np.empty((T, B, SIZES["H"])), [np.empty_like(s) for s in self.states]
        for k in range(B):
            state = [s[k] for s in self.states]
            for t in reversed(range(T)) if reverse else range(T):
                given = zip(self.cell.inputs.values(), self.inputs)
                given = [x[k] if e.op == "constant" else x[t, k] for e, x in given]
                state = step(*given, *state, self.parameters)
                output[t, k] = state[0]
            for end, s in zip(last, state):
                end[k] = s
        return output, last


def test_every_file_of_the_catalogue_has_a_literal_step():
    files = {p.stem for p in (ROOT / "src" / "gatework" / "cells").glob("*.py")} - {"__init__"}
    assert files == {*CORE, *(trace(function).name for function, _ in LITERAL)}  # those of CORE: test_reference.py


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("T", "B", "reverse"), [(1, 1, False), (5, 2, False), (5, 2, True)],
                         ids=["T1-B1", "T5-B2", "T5-B2-reverse"])
@pytest.mark.parametrize(("function", "step"), LITERAL, ids=name_of)
def test_outputs_and_last_states_equal_a_literal_loop(function, step, T, B, reverse, backend):
    drawn = Drawn(function, T, B)
    wanted, ends = drawn.literal(step, reverse)
    (output,), last = autograd.scan(drawn.cell, *drawn.tensors(), reverse, backend)
    # float64 both; the sums of 33 terms are added up in another order, and the sLSTM divides by exp(m)
    for name, got, value in zip(["output", *drawn.cell.states], [output, *last], [wanted, *ends], strict=True):
        np.testing.assert_allclose(got.numpy(), value, rtol=1e-10, atol=1e-11, err_msg=name)


@pytest.mark.parametrize(("function", "step"), LITERAL, ids=name_of)
def test_gradients_of_the_kernels_equal_those_of_torch_over_the_reference(function, step):
    drawn = Drawn(function, 4, 3)
    found = {}
    for backend in ("reference", "cpu"):
        parts = drawn.tensors(requires_grad=True)
        (output,), last = autograd.scan(drawn.cell, *parts, False, backend)
        rng = np.random.default_rng(32)
        upstream = [torch.from_numpy(rng.standard_normal(y.shape)) for y in (output, *last)]
        leaves = [t for group in parts for t in group]
        found[backend] = torch.autograd.grad([output, *last], leaves, upstream, materialize_grads=True)
    names = [*drawn.cell.inputs, *drawn.cell.states, *drawn.cell.families]
    for name, wanted, got in zip(names, found["reference"], found["cpu"], strict=True):
        # float64 both; relative to the largest gradient, as sums of both signs may come out small
        scale = max(1.0, wanted.abs().max().item())
        assert (wanted - got).abs().max().item() < 1e-10 * scale, name


# What single cells promise.


def run(function, drawn: Drawn, backend: str = "cpu") -> torch.Tensor:
    (output,), _ = autograd.scan(drawn.cell, *drawn.tensors(), False, backend)
    return output


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("forget", ["sigmoid", "exp"])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_slstm_starts_from_zeros_with_the_mean_of_its_candidates_and_finite_gradients(forget, size, backend):
    drawn = Drawn(functools.partial(cells.slstm, forget=forget), 4, 2)
    drawn.states = [np.zeros_like(s) for s in drawn.states]
    drawn.inputs[0] *= size  # exponents up to several hundred, which no exp of float32 holds
    inputs, states, parameters = drawn.tensors(requires_grad=True, dtype=torch.float32)
    (output,), last = autograd.scan(drawn.cell, inputs, states, parameters, False, backend)
    x, p = drawn.inputs[0][0, 0], drawn.parameters
    z, o = ((np.split(p["W"], 4)[k] @ x + np.split(p["b"], 4)[k]) for k in (2, 3))
    # with nothing stored before, the normaliser cancels the input gate: h = o * z, whatever its exponent; float32
    np.testing.assert_allclose(output[0, 0].detach(), np.tanh(z) / (1.0 + np.exp(-o)), atol=1e-5)
    assert (output.abs() <= 1.0).all()
    gradients = torch.autograd.grad([output.sum(), *(s.sum() for s in last)], [*inputs, *states, *parameters])
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_two_gates_of_the_min_lstm_that_are_both_shut_still_add_up_to_one(backend):
    drawn = Drawn(cells.min_lstm, 3, 2)
    H = SIZES["H"]
    drawn.parameters["b"][:2 * H] = -1000.0  # sigmoid(-1000) is 0: f / (f + i) would be 0 / 0
    drawn.parameters["W"][:2 * H] = 0.0
    output = run(cells.min_lstm, drawn, backend)
    h = torch.from_numpy(drawn.states[0])
    n = torch.from_numpy(drawn.inputs[0] @ drawn.parameters["W"][2 * H:].T + drawn.parameters["b"][2 * H:])
    for t in range(3):
        h = 0.5 * h + 0.5 * n[t]
        torch.testing.assert_close(output[t], h, rtol=1e-12, atol=1e-12)  # float64


def test_ct_rnn_is_unchanged_by_a_step_without_time_and_forgets_all_in_a_long_one():
    drawn = Drawn(cells.ct_rnn, 2, 3)
    drawn.inputs[1][0], drawn.inputs[1][1] = 0.0, 1e6
    output = run(cells.ct_rnn, drawn)
    h, p = drawn.states[0], drawn.parameters
    np.testing.assert_array_equal(output[0], h)
    np.testing.assert_allclose(output[1], np.tanh(drawn.inputs[0][1] @ p["W"].T + h @ p["U"].T + p["b"]), rtol=1e-12)


def test_ct_rnn_over_two_half_steps_of_a_held_drive_equals_one_whole_step():
    whole, half = Drawn(cells.ct_rnn, 1, 2), Drawn(cells.ct_rnn, 2, 2)
    half.states, half.parameters = whole.states, whole.parameters
    half.parameters["U"][:] = 0.0  # else the drive changes between the halves
    half.inputs = [np.repeat(whole.inputs[0], 2, 0), np.repeat(whole.inputs[1] / 2.0, 2, 0)]
    torch.testing.assert_close(run(cells.ct_rnn, half)[1], run(cells.ct_rnn, whole)[0], rtol=1e-12, atol=1e-12)


def test_leaky_rnn_that_leaks_everything_is_the_elman_network():
    drawn = Drawn(functools.partial(cells.leaky_rnn, leak=1.0), 4, 2)
    W, U, b = drawn.tensors()[2]
    elman, inputs, states = trace(cells.elman), *drawn.tensors()[:2]
    (expected,), _ = autograd.scan(elman, inputs, states, [W, U, b, torch.zeros_like(b)], False, "cpu")
    torch.testing.assert_close(run(drawn.cell, drawn), expected, rtol=1e-12, atol=1e-12)


def test_input_gate_of_the_ea_lstm_stays_the_same_over_the_sequence():
    drawn = Drawn(cells.ea_lstm, 4, 2)
    (gate,), _ = autograd.scan(drawn.cell, *drawn.tensors(), False, "reference", outputs=("i",))
    assert gate.shape == (4, 2, SIZES["H"])
    assert (gate == gate[0]).all()


@pytest.mark.parametrize(("function", "setting", "value"), [
    (cells.recurrent_highway, "depth", 0), (cells.recurrent_highway, "depth", 1.5), (cells.slstm, "forget", "tanh"),
    (cells.ct_rnn, "tau", 0.0), (cells.ct_rnn, "tau", -1.0), (cells.leaky_rnn, "leak", 0.0),
    (cells.leaky_rnn, "leak", 1.5), (cells.elman, "nonlinearity", "sigmoid"),
])
def test_a_setting_that_means_nothing_is_refused_by_name(function, setting, value):
    with pytest.raises(ValueError, match=f"{setting}.*{re.escape(repr(value))} was given") as caught:
        trace(functools.partial(function, **{setting: value}))
    assert not isinstance(caught.value, CellError)


def test_the_catalogue_in_the_documentation_has_one_row_for_each_file_and_names_its_states_and_parameters():
    text = (ROOT / "docs" / "cells.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
            if line.startswith("| [`")]
    names = [re.fullmatch(r"\[`(\w+)`\]\(\.\./src/gatework/cells/(\w+)\.py\)", row[0]).groups() for row in rows]
    assert sorted(a for a, _ in names) == sorted(cells.__all__)
    for (name, file), (_, _, paper, parameters, record) in zip(names, rows, strict=True):
        cell = trace(getattr(cells, name))
        year = re.search(r"(19|20)\d\d", paper)[0]
        assert file == name
        assert year in cell.doc
        assert parameters.replace("`", "").split() == list(cell.families)
        assert record.replace("`", "").split() == [*cell.states, *(k for k in cell.record if k not in cell.states)]
