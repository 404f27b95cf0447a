"""Cells with dropout, zoneout and resets in their graph, against loops written by hand from the papers."""

from __future__ import annotations

import pytest
import torch

from gatework import autograd, cells
from gatework.compiler import Bias, Input, Matrix, State, split, tanh, trace
from gatework.compiler.roles import keeping_gates, multiplied_states, recurrent_matrices
from gatework.compiler.text import from_json, to_json
from gatework.compiler.transform import (
    with_dropout,
    with_expected_zoneout,
    with_resets,
    with_variational_dropout,
    with_zoneout,
)

T, B, I, H = 4, 2, 3, 5


class Call:
    """Inputs, first states and parameters of a cell, by name, drawn in float64."""

    def __init__(self, function, seed: int = 3):
        self.base = trace(function)
        self.random = torch.Generator().manual_seed(seed)
        self.x = self.normal(T, B, I)
        self.states = {s: self.normal(B, H) for s in self.base.states}
        self.parameters = {}
        for family in self.base.families.values():
            columns = [{"I": I, "H": H}[family.columns]] if family.columns else []
            self.parameters[family.name] = self.normal(len(family.gates) * H, *columns)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.random)

    def mask(self, *shape: int) -> torch.Tensor:
        return torch.bernoulli(torch.full(shape, 0.5, dtype=torch.float64), generator=self.random)

    def block(self, family: str, gate: str) -> torch.Tensor:
        gates = self.base.families[family].gates
        return self.parameters[family].chunk(len(gates))[gates.index(gate)]

    def run(self, cell, *masks, backend: str = "cpu", outputs=()) -> list[torch.Tensor]:
        handed, last = autograd.scan(cell, [self.x, *masks], list(self.states.values()),
                                     list(self.parameters.values()), False, backend, outputs=outputs)
        return [*handed, *last]

    def affine(self, gate: str, x, h):
        """W.gate x + U.gate h + b.gate"""
        return x @ self.block("W", gate).T + h @ self.block("U", gate).T + self.block("b", gate)


def assert_equal(found, *expected) -> None:
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)  # float64: sums of a dozen terms in another order


def by_step(step, *states) -> list[torch.Tensor]:
    """The outputs [T, B, H] of a step that takes t and the states, and the last states."""
    made = []
    for t in range(T):
        states = step(t, *states)
        made.append(states[0])
    return [torch.stack(made), *states]


BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


@BACKENDS
def test_zoneout_keeps_each_state_by_its_own_mask_and_the_output_gate_shows_the_new_cell_state(backend):
    call = Call(cells.peephole_lstm)
    keep_h, keep_c = call.mask(T, B, H), call.mask(T, B, H)
    p = {g: call.block("p", g) for g in "ifo"}

    def step(t, h, c):
        i = torch.sigmoid(call.affine("i", call.x[t], h) + p["i"] * c)
        f = torch.sigmoid(call.affine("f", call.x[t], h) + p["f"] * c)
        new = f * c + i * torch.tanh(call.affine("g", call.x[t], h))
        shown = torch.sigmoid(call.affine("o", call.x[t], h) + p["o"] * new) * torch.tanh(new)
        return keep_h[t] * h + (1.0 - keep_h[t]) * shown, keep_c[t] * c + (1.0 - keep_c[t]) * new

    cell = with_zoneout(call.base, ("h", "c"))
    assert_equal(call.run(cell, keep_h, keep_c, backend=backend), *by_step(step, *call.states.values()))


@BACKENDS
def test_expected_zoneout_mixes_the_old_and_the_new_state_of_named_states_only(backend):
    call = Call(cells.coupled_lstm)

    def step(t, h, c):
        i = torch.sigmoid(call.affine("i", call.x[t], h))
        new = (1.0 - i) * c + i * torch.tanh(call.affine("g", call.x[t], h))
        return torch.sigmoid(call.affine("o", call.x[t], h)) * torch.tanh(new), 0.3 * c + 0.7 * new

    cell = with_expected_zoneout(call.base, (("c", 0.3),))
    assert_equal(call.run(cell, backend=backend), *by_step(step, *call.states.values()))


def gru_reset_before(call, t, h, candidate=1.0, unit=1.0):
    """Cho et al. 2014, with a factor on the candidate, and one on the state where it is multiplied."""
    r = torch.sigmoid(call.affine("r", call.x[t], unit * h))
    z = torch.sigmoid(call.affine("z", call.x[t], unit * h))
    return (1.0 - z) * candidate * torch.tanh(call.affine("n", call.x[t], r * unit * h)) + z * h


@BACKENDS
def test_dropout_of_the_candidate_scales_it_and_nothing_else(backend):
    call = Call(cells.gru_reset_before)
    mask = call.mask(T, B, H)
    expected = by_step(lambda t, h: (gru_reset_before(call, t, h, candidate=mask[t] / 0.75),), call.states["h"])
    assert_equal(call.run(with_dropout(call.base, (("n", 0.25),)), mask, backend=backend), *expected)


@BACKENDS
def test_variational_dropout_masks_the_state_in_every_product_also_behind_a_gate_but_not_element_by_element(backend):
    call = Call(cells.gru_reset_before)
    mask = call.mask(B, H)
    expected = by_step(lambda t, h: (gru_reset_before(call, t, h, unit=mask / 0.75),), call.states["h"])
    assert_equal(call.run(with_variational_dropout(call.base, (("h", 0.25),)), mask, backend=backend), *expected)


def test_values_dropped_one_behind_the_other_are_both_dropped_and_recorded_so():
    call = Call(cells.recurrent_highway)
    one, two = call.mask(T, B, H), call.mask(T, B, H)
    h, x = call.states["h"], call.x[0]
    for layer, mask in (("1", one), ("2", two)):
        of_x = [x @ call.block("W", kind + "1").T if layer == "1" else 0.0 for kind in "nt"]
        n, t = (a + h @ call.block("U", kind + layer).T + call.block("b", kind + layer)
                for kind, a in zip("nt", of_x))
        n, t = mask[0] / 0.5 * torch.tanh(n), torch.sigmoid(t)
        h = n * t + h * (1.0 - t)
    handed = call.run(with_dropout(call.base, (("n1", 0.5), ("n2", 0.5))), one, two, outputs=("h", "n2"))
    assert_equal([handed[0][0], handed[1][0]], h, n)


def test_all_at_once_equals_a_loop_that_drops_then_keeps_then_begins_anew():
    call = Call(cells.gru_reset_before)
    drop, unit, keep = call.mask(T, B, H), call.mask(B, H), call.mask(T, B, H)
    reset, first = call.mask(T, B, 1), call.normal(B, H)
    cell = with_dropout(call.base, (("n", 0.5),))
    cell = with_resets(with_zoneout(with_variational_dropout(cell, (("h", 0.2),)), ("h",)), learned=True)
    output, h = [], call.states["h"]
    for t in range(T):
        new = gru_reset_before(call, t, h, drop[t] / 0.5, unit / 0.8)
        output.append(torch.where(keep[t] == 1.0, h, new))
        h = torch.where(reset[t] == 1.0, first, output[-1])
    assert_equal(call.run(cell, drop, unit, keep, reset, first), torch.stack(output), h)


@pytest.mark.parametrize("name", cells.__all__)
def test_masks_have_no_derivative_so_that_nothing_is_computed_for_them(name):
    cell = trace(getattr(cells, name))
    states, values = multiplied_states(cell), tuple((n, 0.5) for n in cell.record)
    masked = with_zoneout(with_variational_dropout(with_dropout(cell, values), tuple((s, 0.5) for s in states)),
                          tuple(cell.states))
    assert len(masked.inputs) == len(cell.inputs) + len(values) + len(states) + len(cell.states)
    for outputs in ((masked.output,), (*masked.next, *masked.record)):
        gradients = split(masked, outputs).backward.inputs
        assert all(not gradients[n].products and gradients[n].rest is None for n in masked.inputs if n[0] == ".")


def test_a_cell_without_the_transform_and_with_others_are_different_operators():
    cell = trace(cells.lstm)
    made = [cell, with_zoneout(cell, ("h",)), with_zoneout(cell, ("c",)), with_dropout(cell, (("g", 0.1),)),
            with_dropout(cell, (("g", 0.2),)), with_expected_zoneout(cell, (("h", 0.1),)),
            with_variational_dropout(cell, (("h", 0.1),)), with_resets(cell, False)]
    assert len({c.fingerprint for c in made}) == len(made)
    assert with_dropout(cell, (("g", 0.1),)) is made[3]  # one kernel for all layers that are alike


@pytest.mark.parametrize("name", cells.__all__)
def test_the_evaluation_of_zoneout_is_a_cell_that_can_be_saved(name):
    cell = trace(getattr(cells, name))
    evaluation = with_expected_zoneout(cell, tuple((s, 0.1) for s in cell.states))
    assert from_json(to_json(evaluation)).fingerprint == evaluation.fingerprint


def test_what_a_matrix_multiplies_is_found_through_gates_and_not_through_functions():
    def behind_a_gate(x: Input, h: State, m: State, W: Matrix, U: Matrix, V: Matrix, b: Bias):
        inner = tanh(V @ tanh(h) + b)
        return dict(h=tanh(W @ x + U @ (m / (1.0 + inner * inner))), m=h)

    cell = trace(behind_a_gate)
    assert (multiplied_states(cell), recurrent_matrices(cell), keeping_gates(cell)) == (("m",), ("U",), {})


@pytest.mark.parametrize("transform", [
    lambda cell: with_dropout(cell, (("i", 0.1),)),
    lambda cell: with_variational_dropout(cell, (("h", 0.1),)),
], ids=["dropout", "variational dropout"])
def test_values_that_are_built_anew_keep_the_line_of_their_equation(transform):
    cell = trace(cells.lstm)
    changed = transform(cell)
    assert changed.next["c"] is not cell.next["c"]
    assert {name: e.source for name, e in changed.next.items()} == {name: e.source for name, e in cell.next.items()}
