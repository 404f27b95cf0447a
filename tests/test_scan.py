"""The derived loops, run literally, give the outputs and all gradients that torch finds on the reference backend."""

from __future__ import annotations

import my_cells
import numpy as np
import pytest
import torch
from numpy_meaning import compute, draw_leaf, draw_parameters, evaluate, stacked

import gatework
from gatework import cells
from gatework.backends import reference
from gatework.compiler import Bias, Cell, Expr, Input, Matrix, Scan, State, Terms, mean, split, sqrt, tanh, trace
from gatework.compiler import sum as feature_sum
from gatework.compiler.expr import order, size
from gatework.compiler.ops import PRODUCTS


def not_the_mean(x: Input, h: State, W: Matrix, U: Matrix, b: Bias):
    """A sum over the features of one vector, divided by the length of another: what is left does not add up to 0."""
    a = W @ x + U @ h
    left = a - feature_sum(a) / size("I")
    return dict(h=tanh(left / sqrt(mean(left * left) + 0.1) + b))


CELLS = [*(getattr(cells, name) for name in cells.__all__), *my_cells.CELLS, not_the_mean]
SIZES = {"I": 2, "H": 5, "P": 3, "S": 4}
Values = dict[Expr, np.ndarray]


def name_of(function) -> str:
    return function.__name__


def shape_of(e: Expr) -> list[int]:
    return [SIZES[d] for d in e.dims] or [1]


class Loops:
    """An interpreter of a Scan that may read only what the Scan says is kept."""

    def __init__(self, scan: Scan, inputs: Values, first: Values, parameters: Values):
        self.scan, self.cell, self.inputs, self.first, self.parameters = scan, scan.cell, inputs, first, parameters
        self.batch = len(next(iter(first.values())))
        main = next(iter(inputs.values()))
        self.steps = len(main)

    def step_inputs(self, t: int) -> Values:
        return {e: v if e.op == "constant" else v[t] for e, v in self.inputs.items()}

    def forward(self) -> list[Values]:
        """The next states of every step; keeps `kept`: per step, the saved values and the stored states."""
        state, following, self.kept = dict(self.first), [], []
        for t in range(self.steps):
            env = self.parameters | self.step_inputs(t) | state
            for e in [*self.scan.before, *self.scan.body]:
                env[e] = compute(e, env, SIZES)
            after = {k: evaluate(e, env, SIZES) for k, e in self.cell.next.items()}
            kept = {e: env[e] for e in self.scan.saved}
            for k in self.scan.stored:
                kept |= {self.cell.states[k]: state[self.cell.states[k]], self.cell.next[k]: after[k]}
            self.kept.append(kept)
            following.append(after)
            state = {e: after[k] for k, e in self.cell.states.items()}
        return following

    def backward(self, upstream: np.ndarray, last: dict[str, np.ndarray]) -> dict:
        """All gradients, from those of the output of every step and of the last states."""
        back, upstream = self.scan.backward, upstream.copy()
        carried = {e: np.zeros((self.batch, *shape_of(e))) for e in [*back.carried, *back.lagged]}
        of_state = {e.attr: e for e in back.carried if e.op == "carry"}
        for k, d in last.items():
            if f"d{k}" in of_state:
                carried[of_state[f"d{k}"]] = d
            else:
                assert k == self.cell.output
                upstream[-1] += d
        self.turns: list[Values] = [{}] * self.steps
        for t in reversed(range(self.steps)):
            outside = {back.upstream[self.cell.output]: upstream[t]}
            env = self.parameters | self.step_inputs(t) | self.kept[t] | carried | outside
            for e in back.body:
                env[e] = compute(e, env, SIZES)
            carried = {e: evaluate(v, env, SIZES) for e, v in [*back.carried.items(), *back.lagged.items()]}
            self.turns[t] = env
        self.carried = carried
        readable = {*back.emitted, *self.scan.saved, *self.cell.states.values(), *self.cell.next.values()}
        self.readable = readable | {*self.inputs}
        return self.after()

    def after(self) -> dict:
        back, inputs = self.scan.backward, self.cell.inputs
        found = {n: self.terms(back.inputs[n], slice(None), e) for n, e in inputs.items()}
        found |= {n: g.sum(0) for n, g in found.items() if inputs[n].op == "constant" and g.ndim == 3}
        found |= {s: self.terms(back.states[s], 0, e) for s, e in self.cell.states.items()}
        for key, pairs in back.matrices.items():
            family = self.cell.families[key[0]]
            found[key] = np.zeros((SIZES[family.rows], SIZES[family.columns]))
            for a, b in pairs:
                found[key] += np.einsum("tbi,tbj->ij", self.sequence(a), self.sequence(b))
        for key, e in back.vectors.items():
            found[key] = self.carried[e].sum(0) if e in self.carried else self.sequence(e).sum((0, 1))
        return found

    def terms(self, terms: Terms, steps, like: Expr) -> np.ndarray:
        shape = (self.steps, self.batch, *shape_of(like))
        total = np.zeros(shape)[steps]
        for matrix, d in terms.products:
            total = total + np.einsum("ij,...i->...j", self.parameters[matrix], self.sequence(d)[steps])
        if terms.rest is None:
            return total
        if terms.rest in self.carried:  # a constant input: added up in the loop
            return total.sum(0) + self.carried[terms.rest]
        if like.op == "state":
            return total + evaluate(terms.rest, self.turns[0], SIZES)
        return total + self.sequence(terms.rest)

    def sequence(self, e: Expr) -> np.ndarray:
        assert e in self.readable, f"{e} is read after the loop, but not written in it"
        return np.stack([self.turns[t][e] for t in range(self.steps)])


def draw_all(cell: Cell, steps: int, batch: int) -> tuple[Values, Values, Values]:
    rng = np.random.default_rng(7)
    inputs = {e: draw_leaf(rng, e, SIZES, (batch,) if e.op == "constant" else (steps, batch))
              for e in cell.inputs.values()}
    first = {e: draw_leaf(rng, e, SIZES, (batch,)) for e in cell.states.values()}
    return inputs, first, draw_parameters(rng, cell, SIZES)


def torch_gradients(cell: Cell, inputs: Values, first: Values, parameters: Values, upstream, last):
    """Outputs, last states and gradients by torch's own differentiation of the reference loop."""
    def tensors(arrays):
        return [torch.tensor(a, requires_grad=True) for a in arrays]

    x, s, p = tensors(inputs.values()), tensors(first.values()), tensors(stacked(cell, parameters))
    (output,), end = reference.run(cell, x, s, p)
    loss = (output * torch.tensor(upstream)).sum() + sum((e * torch.tensor(last[k])).sum()
                                                         for e, k in zip(end, cell.states))
    found = torch.autograd.grad(loss, [*x, *s, *p], allow_unused=True, materialize_grads=True)
    return output.detach().numpy(), [e.detach().numpy() for e in end], [g.detach().numpy() for g in found]


@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (4, 3)], ids=lambda n: str(n))
@pytest.mark.parametrize("function", CELLS, ids=name_of)
def test_derived_loops_give_the_outputs_and_all_gradients_of_torch(function, steps, batch):
    cell = trace(function)
    inputs, first, parameters = draw_all(cell, steps, batch)
    rng = np.random.default_rng(8)
    upstream = rng.standard_normal((steps, batch, SIZES[cell.states[cell.output].dims[0]]))
    last = {k: rng.standard_normal(first[e].shape) for k, e in cell.states.items()}
    output, end, wanted = torch_gradients(cell, inputs, first, parameters, upstream, last)

    loops = Loops(split(cell), inputs, first, parameters)
    following = loops.forward()
    # float64 against float64, sums of some ten terms per step over four steps: rounding stays near 1e-14
    np.testing.assert_allclose(np.stack([f[cell.output] for f in following]), output, rtol=1e-11, atol=1e-12)
    for got, e in zip((following[-1][k] for k in cell.states), end):
        np.testing.assert_allclose(got, e, rtol=1e-11, atol=1e-12)
    found = loops.backward(upstream, last)
    got = [found[k] for k in [*cell.inputs, *cell.states]]
    for f in cell.families.values():
        got.append(np.concatenate([found[f.name, g] for g in f.gates]))
    for name, a, b in zip([*cell.inputs, *cell.states, *cell.families], got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11, err_msg=f"gradient of {name}")


@pytest.mark.parametrize("function", CELLS, ids=name_of)
def test_products_of_inputs_and_only_those_leave_the_forward_loop(function):
    scan = split(trace(function))
    leaves = set(scan.cell.inputs.values())
    assert all(e.op == "matvec" and e.args[1] in leaves for e in scan.before)
    assert not [e for e in scan.body if e.op in PRODUCTS and e.args[1] in leaves]
    assert all(e.op in PRODUCTS for e in scan.before)


@pytest.mark.parametrize("function", CELLS, ids=name_of)
def test_no_outer_product_is_left_in_the_backward_loop(function):
    assert not [e for e in split(trace(function)).backward.body if e.op == "outer"]


@pytest.mark.parametrize(("function", "saved"), [
    (cells.lstm, ["i", "f", "g", "o"]),
    (cells.peephole_lstm, ["i", "f", "g", "o"]),
    (cells.coupled_lstm, ["i", "g", "o"]),
    (cells.elman, []),
], ids=["lstm", "peephole_lstm", "coupled_lstm", "elman"])
def test_saved_values_are_those_a_hand_written_kernel_keeps(function, saved):
    scan = split(trace(function))
    names = {e: name for name, e in scan.cell.record.items()}
    assert [names[e] for e in scan.saved] == saved


@pytest.mark.parametrize("function", [cells.layer_norm_lstm, cells.layer_norm_gru], ids=name_of)
def test_no_sum_of_a_normalisation_waits_for_another_in_its_backward_pass(function):
    scan = split(trace(function))
    sums = [e for e in scan.backward.body if e.op == "sum"]
    known = {*scan.saved, *scan.cell.next.values()}
    inner = {e for s in sums for e in order(s.args, known=known) if e.op == "sum"}
    norms = 4 if function is cells.layer_norm_gru else 3  # that of c comes first in an LSTM
    assert len(sums) == 2 * norms
    assert len(inner) == 2 * (function is cells.layer_norm_lstm)


def test_package_splits_a_cell_only_once():
    cell = gatework.trace(cells.gru)
    assert split(cell) is split(cell)
