"""check_cell: what holds passes, what is spoiled fails under its own name, what cannot be told is unclear."""

from __future__ import annotations

import re
from pathlib import Path

import my_cells
import pytest
import torch

from gatework import autograd, cells
from gatework.autograd import functions, ragged
from gatework.backends import reference
from gatework.backends.cpu import jit, kernel, maths
from gatework.compiler import Bias, CellError, Input, Matrix, State, data, ops, relu, sigmoid, sqrt, tanh, trace
from gatework.compiler.expr import mul
from gatework.compiler.ops import exp, log
from gatework.nn import Recurrent
from gatework.testing import Check, DrawError, Report, check_cell, checks
from gatework.testing.drawn import Drawn
from gatework.testing.slopes import slopes

NAMES = list(checks.NAMES)
FOLDER = Path(cells.__file__).parent
POSITIVE = {"normalised": ["count", "gain"]}  # it takes the root of what they weigh


def gated(x: Input, h: State, c: State, W: Matrix, U: Matrix, b: Bias):
    f = sigmoid(W.f @ x + U.f @ h + b.f)
    c = f * c + (1.0 - f) * tanh(W.n @ x + b.n)
    return dict(h=tanh(c + U.n @ h), c=c), dict(f=f)


@pytest.fixture
def fresh(request):
    """Equations under a name that no other test has: kernels made of them before, or spoiled, are not found again."""
    gated.__name__ = "gated_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    return gated


def failed(report: Report) -> list[str]:
    assert report.passed == all(c.verdict != "failed" for c in report.checks)
    return [c.name for c in report.checks if c.verdict == "failed"]


# What holds.


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__"))
def test_every_cell_of_the_folder_passes_all_checks(name):
    report = check_cell(getattr(cells, name))
    assert [c.name for c in report.checks] == NAMES
    assert {c.verdict for c in report.checks} == {"passed"}, str(report)


@pytest.mark.parametrize("cell", my_cells.CELLS, ids=lambda f: f.__name__)
def test_cells_that_use_the_rest_of_the_notation_pass_all_checks(cell):
    report = check_cell(cell, positive=POSITIVE.get(cell.__name__, ()), seed=1)
    assert {c.verdict for c in report.checks} == {"passed"}, str(report)


def test_sizes_may_be_chosen_and_a_traced_cell_given():
    report = check_cell(trace(cells.slstm), sizes={"I": 1, "H": 4, "D": 2}, scale=0.5, seed=3)
    assert report.passed
    assert report.drawn == "I 1, H 4, D 2; T 5, B 3; seed 3, scale 0.5"


def test_random_state_and_default_dtype_stay_as_they_are():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    with torch.no_grad():
        assert check_cell(cells.elman, sizes={"H": 4}).passed
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32


def test_the_same_seed_gives_the_same_report_and_another_one_other_numbers():
    reports = [str(check_cell(cells.elman, sizes={"H": 4}, seed=s)) for s in (0, 0, 1)]
    assert reports[0] == reports[1]
    assert reports[0].partition("\n")[2] != reports[2].partition("\n")[2]


# What is spoiled, one thing at a time.


def test_a_reference_backend_whose_derivative_is_not_that_of_its_values_fails_gradients(fresh, monkeypatch):
    def flat(a):
        y = torch.tanh(a)
        return y.detach() + 0.999 * (y - y.detach())

    monkeypatch.setitem(reference.MEANING, "tanh", flat)
    report = check_cell(fresh)
    assert failed(report) == ["gradients", "float64", "float32", "recorded"]
    assert 1e-6 < report["gradients"].measured < 1e-2


def test_a_wrong_rule_of_the_derivative_fails_the_kernels_by_the_name_of_the_gradient(fresh, monkeypatch):
    rule = ops.DERIVATIVE["sigmoid"]
    monkeypatch.setitem(ops.DERIVATIVE, "sigmoid", lambda d, y, a: (mul(1.001, rule(d, y, a)[0]),))
    report = check_cell(fresh)
    assert failed(report) == ["float64", "float32", "recorded"]
    assert report["float64"].quantity.startswith("gradient of ")


def test_an_operation_that_means_something_else_on_the_cpu_fails_the_kernels(fresh, monkeypatch):
    right = maths.OPERATIONS["tanh"]
    monkeypatch.setitem(maths.OPERATIONS, "tanh", lambda f, x: f.arithmetic("fmul", right(f, x), f.number(1.0 + 1e-9)))
    monkeypatch.setattr(jit, "WRITERS", f"{jit.WRITERS}, but a little wrong")
    # 1e-9 is far above the roundings of float64, and no number of float32
    assert failed(check_cell(fresh)) == ["float64", "recorded"]


def test_kernels_that_are_wrong_in_float32_only_fail_float32_only(fresh, monkeypatch):
    right = maths.OPERATIONS["tanh"]

    def wrong(f, x):
        return f.arithmetic("fmul", right(f, x), f.number(1.0 + 1e-3 * (f.module.size == 4)))

    monkeypatch.setitem(maths.OPERATIONS, "tanh", wrong)
    monkeypatch.setattr(jit, "WRITERS", f"{jit.WRITERS}, but wrong in float32")
    assert failed(check_cell(fresh)) == ["float32"]


def test_a_kernel_that_is_wrong_for_a_single_step_fails_where_there_is_one(fresh, monkeypatch):
    right = kernel.Kernel.forward

    def wrong(self, xp, batch, *more):
        handed, last, kept = right(self, xp, batch, *more)
        return [y + y for y in handed] if batch.steps == 1 else handed, last, kept

    monkeypatch.setattr(kernel.Kernel, "forward", wrong)
    report = check_cell(fresh)
    assert "float64" in failed(report)
    assert "step" in failed(report)
    assert report["float64"].quantity.endswith("at T 1, B 3")


def test_a_gradient_that_is_lost_on_its_way_from_a_recorded_value_fails_recorded_only(fresh, monkeypatch):
    right = kernel.Kernel._upstream

    def lost(self, xp, batch, arrays, edges, name, d, *more):
        right(self, xp, batch, arrays, edges, name, xp.zeros(*d.shape) if name == "f" else d, *more)

    monkeypatch.setattr(kernel.Kernel, "_upstream", lost)
    assert failed(check_cell(fresh)) == ["recorded"]


def test_padding_that_is_not_zero_fails_lengths(fresh, monkeypatch):
    right = ragged.Ragged.pad

    def pad(self, stored, shape):
        whole = right(self, stored, shape)
        return whole + 1e-6 * (whole == 0.0)

    monkeypatch.setattr(ragged.Ragged, "pad", pad)
    assert failed(check_cell(fresh)) == ["lengths", "resets"]  # the latter with lengths, too


def test_rows_that_come_back_in_another_order_fail_lengths(fresh, monkeypatch):
    monkeypatch.setattr(ragged.Ragged, "unsort", lambda self, rows, dim: rows)
    report = check_cell(fresh)
    assert failed(report) == ["lengths", "resets"]
    assert "last" in report["lengths"].quantity or "first" in report["lengths"].quantity


def test_resets_that_act_a_step_late_fail_resets_only(fresh, monkeypatch):
    right = Recurrent._after_steps

    def late(self, resets, lengths, call):
        return right(self, resets.roll(1, 0), lengths, call)

    monkeypatch.setattr(Recurrent, "_after_steps", late)
    assert failed(check_cell(fresh)) == ["resets"]


def test_a_learned_first_state_that_gets_no_gradient_from_resets_fails_resets_only(fresh, monkeypatch):
    one_way, both_ways = autograd.scan, autograd.scan_both

    def cut_off(cell, inputs):
        return [x.detach() if name.startswith(".first_") else x for name, x in zip(cell.inputs, inputs)]

    monkeypatch.setattr("gatework.nn.recurrent.scan",
                        lambda cell, inputs, *more, **how: one_way(cell, cut_off(cell, inputs), *more, **how))
    monkeypatch.setattr("gatework.nn.recurrent.scan_both", lambda cell, forth, back, *more, **how: both_ways(
        cell, *((cut_off(cell, inputs), *others) for inputs, *others in (forth, back)), *more, **how))
    report = check_cell(fresh)
    assert failed(report) == ["resets"]
    assert report["resets"].quantity.startswith("gradient of initial_")


def test_a_step_that_cuts_the_gradient_fails_step_only(fresh, monkeypatch):
    right = Recurrent.step

    def step(self, x, state=None, **inputs):
        y, (h, c) = right(self, x, state, **inputs)
        return y, (h, c.detach())

    monkeypatch.setattr(Recurrent, "step", step)
    assert failed(check_cell(fresh)) == ["step"]


def test_a_stretch_whose_gradient_is_not_added_fails_checkpoint_every_only(fresh, monkeypatch):
    right = functions._Checkpointed.backward

    def backward(ctx, *gradients):
        made = right(ctx, *gradients)
        return *made[:-1], 0.999 * made[-1]

    monkeypatch.setattr(functions._Checkpointed, "backward", staticmethod(backward))
    report = check_cell(fresh)
    assert failed(report) == ["checkpoint_every"]
    assert "bias" in report["checkpoint_every"].quantity


def test_json_that_cannot_be_read_back_fails_text_only(fresh, monkeypatch):
    right = data._BUILD["mul"]
    monkeypatch.setitem(data._BUILD, "mul", lambda a, b: right(b, a))
    report = check_cell(fresh)
    assert failed(report) == ["text"]
    assert "cell JSON" in report["text"].reason


def test_json_that_is_read_as_other_equations_fails_text_only(fresh, monkeypatch):
    right = data.from_json
    monkeypatch.setattr(checks, "from_json", lambda text: right(text.replace('"number": "1.0"', '"number": "2.0"')))
    report = check_cell(fresh)
    assert failed(report) == ["text"]
    assert "fingerprint" in report["text"].reason


# What cannot be told, and what is said.


def rooted(x: Input, h: State, W: Matrix, U: Matrix):
    a = W @ x + U @ h
    return dict(h=sqrt(a) + a)


def overflowing(x: Input, h: State, W: Matrix, U: Matrix):
    return dict(h=exp(50.0 * (W @ x + U @ h)))


def unrooted(x: Input, h: State, W: Matrix, U: Matrix):
    return dict(h=W @ x + sqrt(h * h) + U @ h)


def chaotic(x: Input, h: State, W: Matrix, U: Matrix):
    return dict(h=tanh(20.0 * (W @ x + 3.0 * (U @ h))))


def rectified(x: Input, h: State, W: Matrix, U: Matrix):
    return dict(h=relu(W @ x + U @ relu(h)))


@pytest.mark.parametrize(("cell", "said"), [
    (rooted, r"in step 0 sqrt gives what is no number, at test_check_cell.py:\d+: return dict\(h=sqrt\(a\) \+ a\)"),
    (overflowing, r"in step 1 exp gives .*return dict\(h=exp\("),
    (unrooted, r"gradient of .* is not finite though all values are: .*sqrt at 0")],
    ids=lambda v: v.__name__ if callable(v) else "")
def test_a_cell_that_gives_no_numbers_fails_with_the_equation_and_compares_nothing_else(cell, said):
    report = check_cell(cell)
    assert failed(report) == ["finite"]
    assert {c.verdict for c in report.checks[1:]} == {"unclear"}
    assert re.search(said, report["finite"].reason)
    assert "positive=" in str(report)


def test_a_cell_that_blows_up_roundings_is_unclear_where_no_bound_is_left_and_judged_where_there_is_one():
    report = check_cell(chaotic)
    assert report.passed
    assert report["float32"].verdict == "unclear"
    assert "ill-conditioned" in report["float32"].reason
    assert report["float64"].verdict == "passed"
    assert report["float64"].bound < 1e-6


def test_a_cell_that_overflows_in_float32_is_unclear_there_and_judged_in_float64():
    def large(x: Input, h: State, W: Matrix, U: Matrix):
        return dict(h=log(exp(100.0 + W @ x) + exp(U @ h)) - 100.0)

    report = check_cell(large)
    assert report["float32"].verdict == "unclear"
    assert "no number in float32" in report["float32"].reason
    assert {c.verdict for c in report.checks if c.name != "float32"} == {"passed"}


def test_zeros_that_relu_leaves_in_a_state_are_no_false_alarm():
    drawn = Drawn(trace(rectified), {}, 1.0, 0, ())
    assert (drawn.values(2, 2)["first h"] == 0.0).sum() > 10
    assert {c.verdict for c in check_cell(rectified).checks} == {"passed"}


def test_a_slope_at_a_kink_is_told_from_a_wrong_gradient():
    drawn = Drawn(trace(rectified), {}, 1.0, 0, ())
    layer = drawn.layer("reference", bidirectional=False, initial_state=False)
    values = drawn.inputs(3, 2)
    at_kink = {s.name for s in slopes(layer, values | {"first h": torch.zeros(1, 2, 33, dtype=torch.float64)})
               if s.kink}
    beside = list(slopes(layer, values | {"first h": torch.full((1, 2, 33), 0.5, dtype=torch.float64)}))
    assert at_kink == {"first h"}
    assert not any(s.kink for s in beside)
    assert all(s.error <= s.bound for s in beside)


def test_a_kink_makes_gradients_unclear_and_is_told_with_the_slopes_of_its_sides(monkeypatch):
    monkeypatch.setattr(checks._Checks, "_off_kinks", lambda self, values: values)
    report = check_cell(rectified)
    assert report.passed
    assert report["gradients"].verdict == "unclear"
    assert "kink" in report["gradients"].reason


def test_the_report_is_a_table_with_hints_below_what_failed():
    bad = Check("step", "failed", "a, b", 0.5, 1e-9, "output", "why")
    report = Report("mine", "I 1, H 2", (Check("finite", "passed", "numbers"), bad))
    assert str(report).splitlines() == [
        "mine: I 1, H 2",
        "                          differs      bound",
        "passed  finite                                numbers",
        "failed  step              5.0e-01 of 1.0e-09  a, b",
        "        output: why",
        "        No equations may cause this: report it, with the cell.",
        "mine: 1 passed, 1 failed"]
    with pytest.raises(AssertionError, match="output: why"):
        report.raise_if_failed()


@pytest.mark.parametrize(("options", "said"), [
    (dict(positive=["h"]), "positive= names h; elman has x, W, U, b, d"), (dict(scale=0.0), "above 0; 0.0 was given"),
    (dict(sizes={"Q": 3}), "elman has the sizes I, H; sizes= gives Q")], ids=["positive", "scale", "sizes"])
def test_what_the_cell_does_not_have_is_refused(options, said):
    with pytest.raises(DrawError, match=said):
        check_cell(cells.elman, **options)


def test_equations_that_cannot_be_used_are_refused_as_everywhere():
    with pytest.raises(CellError, match="annotations"):
        check_cell(lambda x: x)


def test_positive_draws_inputs_and_parameters_above_zero_and_scale_multiplies_them():
    single, double = (Drawn(trace(my_cells.spans), {}, s, 0, ["dt", "p"]) for s in (1.0, 2.0))
    assert single.parameters["weight_peephole_l0"].min() > 0.0
    assert single.parameters["bias_ih_l0"].min() < 0.0
    assert torch.equal(2.0 * single.parameters["weight_ih_l0"], double.parameters["weight_ih_l0"])
    assert single.inputs(4, 3)["dt"].min() > 0.0
